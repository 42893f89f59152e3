"""A model's own picture recipe at every door of the service, and the proof that starts with encoded files."""

import json
import logging
from dataclasses import replace

import httpx
import numpy as np
import pytest
from PIL import Image

from foldserve.format.image import ImageRecipe
from foldserve.pictures import decode
from foldserve.pictures.golden_files import pack
from foldserve.service.app import create_app
from foldserve.service.artifacts.repository import Repository
from foldserve.service.engines.load import load_engine
from foldserve.service.errors import ArtifactInvalid
from foldserve.service.settings import Settings
from tests.support import picture_models, pictures
from tests.support.live import serve

RECIPE = ImageRecipe(height=12, width=10, rule="shorter", resize=(14,), crop=(12, 10), filter="bicubic")
RECIPES = {
    "CHW": RECIPE,
    "HWC": replace(RECIPE, layout="HWC"),
    "BGR": replace(RECIPE, layout="HWC", colour="BGR", rule="exact", resize=(12, 10), crop=None),
    "plain": ImageRecipe(height=12, width=10),
}
FILES = [pictures.drawn(np.random.default_rng(seed)) for seed in range(30, 36)]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """All recipes at once."""
    root = tmp_path_factory.mktemp("models")
    for name, recipe in RECIPES.items():
        examples = [(f"{index}", data) for index, data in enumerate(FILES)] if recipe.may_resize else [("0", plain())]
        picture_models.publish(root, name, recipe, pack(examples, recipe))
    app = create_app(Settings(models_dir=root, provider="cpu", buckets=(1, 8)))
    with serve(app) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield http


def plain() -> bytes:
    return pictures.encoded(Image.new("RGB", (10, 12), (10, 200, 30)))


def probabilities(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([one["probabilities"] for one in answer.json()["predictions"]], np.float32)


@pytest.mark.parametrize("name", ["CHW", "HWC", "BGR"])
def test_every_door_gives_the_answer_to_the_recipes_pixels(service, name):
    """Files alone, in a form and in JSON; pixels as raw bytes, as nested and as flat numbers, and by V2."""
    recipe, where = RECIPES[name], f"/predict?model={name}"
    rows = np.stack([decode(file, recipe) for file in FILES])
    expected = picture_models.classify(rows, recipe)["probabilities"]
    pixels = rows.tobytes()
    kinds = ["image/png" if file.startswith(b"\x89") else "image/jpeg" for file in FILES]
    alone = [
        service.post(where, content=file, headers={"Content-Type": kind})
        for file, kind in zip(FILES, kinds, strict=True)
    ]
    by_v2 = service.post(
        f"/v2/models/{name}/infer",
        json={"inputs": [{"name": "image", "datatype": "UINT8", "shape": rows.shape, "data": rows.ravel().tolist()}]},
    )
    answers = [
        np.concatenate([probabilities(answer) for answer in alone]),
        probabilities(service.post(where, files=[("file", ("a", file)) for file in FILES])),
        probabilities(service.post(where, json={"instances": [picture_models.b64(file) for file in FILES]})),
        probabilities(service.post(where, content=pixels, headers={"Content-Type": "application/octet-stream"})),
        probabilities(service.post(where, json={"instances": rows.tolist()})),
        probabilities(service.post(where, json={"instances": rows.reshape(len(rows), -1).tolist()})),
        np.reshape(by_v2.json()["outputs"][1]["data"], (len(rows), -1)).astype(np.float32),
    ]
    for answer in answers:
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "layout"), [("CHW", "CHW"), ("HWC", "HWC"), ("BGR", "HWC")])
def test_the_layout_is_said_wherever_raw_bytes_are_sent_or_described(service, name, layout):
    """A body of the right length in the wrong layout cannot be told apart: nobody should have to guess."""
    answer = service.post(f"/predict?model={name}", files={"file": plain()})
    assert answer.headers["X-Image-Layout"] == layout
    properties = service.get(f"/v2/models/{name}").json()["properties"]
    assert properties["layout"] == layout
    assert RECIPES[name].as_dict().items() <= json.loads(properties["image"]).items()
    (config,) = service.get(f"/v2/models/{name}/config").json()["input"]
    assert config["format"] == f"FORMAT_N{layout}"


def test_a_model_without_a_rule_refuses_to_resize(service):
    """It takes its own size and names it, where another one would be answered silently wrong."""
    assert service.post("/predict?model=plain", files={"file": plain()}).status_code == 200
    refused = service.post("/predict?model=plain", files={"file": FILES[0]})
    assert refused.status_code == 400
    assert "expected 10x12 (width x height)" in refused.json()["error"]


def test_what_grows_without_end_is_refused(service):
    """A line of one pixel whose shorter side becomes 14 would be 14 times as long and as high."""
    line = pictures.encoded(Image.new("L", (6_000_000, 1)))
    refused = service.post("/predict?model=CHW", files={"file": line})
    assert refused.status_code == 400
    assert "84000000x14 pixels after the model's resize" in refused.json()["error"]


def test_another_decoder_is_logged_and_served(tmp_path, caplog):
    """The graph is proved on the pixels of the manifest, and the log says how far decoding is off."""
    (file,) = pack([("a.jpg", jpeg(90))], RECIPE)
    published = replace(file, content=jpeg(89))
    folder = picture_models.publish(tmp_path, "flowers", RECIPE, (file,))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["golden"]["files"] = [published.as_dict()]
    picture_models.artifacts.rewrite_manifest(folder, golden=manifest["golden"])
    with caplog.at_level(logging.WARNING):
        load_engine(Repository(tmp_path).open("flowers"), provider="cpu", buckets=(1, 2))
    assert "model flowers: 1 golden pictures decode to other pixels" in caplog.text


def test_a_recipe_that_was_changed_after_the_proof_is_not_served(tmp_path):
    """Decoding and recipe are part of what is proved, not the graph alone."""
    files = pack([("a.jpg", jpeg(90))], RECIPE)
    folder = picture_models.publish(tmp_path, "flowers", RECIPE, files)
    changed = picture_models.model(replace(RECIPE, colour="BGR"))
    (folder / "model.onnx").write_bytes(changed.SerializeToString(deterministic=True))
    entry = picture_models.artifacts.file_entry(folder / "model.onnx")
    picture_models.artifacts.rewrite_manifest(folder, files={"model.onnx": entry})
    with pytest.raises(ArtifactInvalid, match=r"golden picture .a\.jpg.: its pixels"):
        load_engine(Repository(tmp_path).open("flowers"), provider="cpu", buckets=(1, 2))


def jpeg(quality: int) -> bytes:
    y, x = np.mgrid[:60, :80]
    pixels = np.stack([x * 3, y * 4, x + y], axis=-1).astype(np.uint8)
    return pictures.encoded(Image.fromarray(pixels), "JPEG", quality=quality)
