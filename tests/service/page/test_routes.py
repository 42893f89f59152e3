"""The routes behind the page: proof, samples and preview, compared with the version folder and with NumPy."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from foldserve.format.image import ImageRecipe
from foldserve.format.task import Task
from foldserve.pictures import decode
from foldserve.pictures.golden_files import pack
from foldserve.service.app import create_app
from foldserve.service.page.samples import MOST_BYTES
from foldserve.service.page.schemas import Samples, VersionProof
from foldserve.service.settings import Settings
from tests.support import artifacts, picture_models
from tests.support.live import serve

COLUMNS = ("length", "width", "height", "weight")
RECIPE = ImageRecipe(height=8, width=6, colour="BGR", rule="exact", resize=(8, 6), filter="box", polarity=None)


def photo(seed: int = 0) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 12, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG" if seed % 2 else "PNG")
    return file.getvalue()


FILES = pack([(f"photo-{seed}", photo(seed)) for seed in range(3)], RECIPE)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Pictures as tensors and as files, rows with and without names, several inputs, wide rows, and no manifest."""
    root = tmp_path_factory.mktemp("models")
    artifacts.publish_classifier(root)
    picture_models.publish(root, "flowers", RECIPE, FILES)
    artifacts.publish_rows(root, "values", ("values",), Task("regress", columns=COLUMNS).as_metadata())
    artifacts.publish_rows(root, "several", ("probabilities",), Task("multilabel", 0.6).as_metadata())
    artifacts.publish_rows(root, "wide", ("embedding",), Task("embed").as_metadata(), width=30_000)
    artifacts.publish_two_inputs(root)
    (artifacts.publish_echo(root, "unproved") / "manifest.json").unlink()
    settings = Settings(models_dir=root, provider="cpu", buckets=(1, 16), allow_unverified=True)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, trust_env=False) as http:
        yield http


def get(service: httpx.Client, model: str, what: str) -> dict:
    answer = service.get(f"/v2/models/{model}/versions/1/{what}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_proof_is_that_of_the_engine_and_of_the_manifest(service):
    """All golden rows, within the tolerance of the device; accuracy, recipe and task as they were published."""
    proof = get(service, "fashion", "proof")
    VersionProof.model_validate(proof, strict=True)
    assert (proof["name"], proof["version"], proof["task"], proof["provider"]) == ("fashion", 1, "classify", "cpu")
    golden = proof["golden"]
    assert (golden["rows"], golden["agreeing"], golden["tolerance"]) == (16, 16, 1e-5)
    assert set(golden["errors"]) == {"logits", "probabilities"}
    assert 0 < golden["largest_error"] == max(golden["errors"].values()) < 1e-5
    assert (proof["verified"], proof["accuracy"]) == (True, 0.9)
    assert proof["published"] == {
        "created": "2026-01-01T00:00:00Z", "accuracy": {"test": 0.9}, "parity": None, "proof": None, "fold": None,
    }  # fmt: skip
    assert ImageRecipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in proof["recipe"].items()}).shape == (
        1,
        28,
        28,
    )
    assert (proof["threshold"], proof["columns"]) == (None, None)


def test_the_proof_of_the_shipped_version_sums_its_fold_up(tmp_path):
    """Four norms folded, none stayed; parity as the manifest has it."""
    app = create_app(Settings(models_dir=Path("models"), provider="cpu", buckets=(1,), specialise=False))
    with serve(app) as url:
        published = httpx.get(f"{url}/v2/models/lenet-bn/versions/1/proof").json()["published"]
    stated = json.loads(Path("models/lenet-bn/1/manifest.json").read_text())
    assert published["fold"] == {"folded": 4, "refused": 0, "proof": stated["fold"]["proof"]}
    assert published["parity"] == stated["parity"]
    assert published["accuracy"]["correct"] == 8921


def test_what_is_not_known_is_null(service):
    """No recipe where rows are taken, and no proof without a manifest."""
    assert get(service, "several", "proof")["threshold"] == 0.6
    values = get(service, "values", "proof")
    assert (values["recipe"], values["columns"]) == (None, list(COLUMNS))
    unproved = get(service, "unproved", "proof")
    assert (unproved["verified"], unproved["golden"], unproved["published"]) == (False, None, None)
    assert get(service, "unproved", "samples") == {"model": "unproved", "version": 1, "rows": 0, "samples": []}


@pytest.mark.parametrize("model", ["fashion", "flowers", "values", "several", "wide", "sum"])
def test_every_sample_can_be_sent_as_it_is(service, model):
    """As an instance of the body of `/predict`; the answer is the one that is expected, within the tolerance."""
    samples = get(service, model, "samples")
    Samples.model_validate(samples, strict=True)
    body = {"instances": [sample["instance"] for sample in samples["samples"]]}
    task = get(service, model, "proof")["task"]
    top = "&top=5" if task in ("classify", "multilabel") else ""
    answer = service.post(f"/predict?model={model}{top}", json=body)
    assert answer.status_code == 200, answer.text
    expected = [sample["expected"] for sample in samples["samples"]]
    assert numbers(answer.json()["predictions"]) == pytest.approx(numbers(expected), rel=1e-4, abs=1e-6)


def numbers(value: object) -> list[float]:
    """Every number of a JSON value, in order."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in numbers(value[key])]
    if isinstance(value, list):
        return [number for inner in value for number in numbers(inner)]
    return [float(value)] if isinstance(value, int | float) else []


def test_pictures_come_as_files(service):
    """Golden pixels as PNG files that hold them; golden files byte for byte as they were published."""
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(sample["b64"]))))
              for sample in get(service, "fashion", "samples")["samples"]]  # fmt: skip
    assert np.array_equal(pixels, artifacts.images(16, seed=7)[:, 0])
    given = get(service, "flowers", "samples")["samples"]
    assert [(s["name"], s["media_type"], base64.b64decode(s["b64"])) for s in given] == [
        (file.name, "image/jpeg" if seed % 2 else "image/png", file.content) for seed, file in enumerate(FILES)
    ]


def test_long_rows_fill_a_mebibyte_and_no_more(service):
    """The samples of a version of long rows are fewer than it has."""
    samples = get(service, "wide", "samples")
    assert samples["rows"] == 16
    assert 1 <= len(samples["samples"]) < 16
    assert sum(len(json.dumps(sample["instance"])) for sample in samples["samples"]) < 1.1 * MOST_BYTES


@pytest.mark.parametrize("form", ["file", "json"])
def test_a_preview_is_the_row_that_the_model_gets(service, form):
    """Of a colour photo in BGR, in both forms of a body: the recipe's pixels, shown in RGB again."""
    data = photo(4)
    body = {"content": data, "headers": {"Content-Type": "image/png"}}
    if form == "json":
        body = {"json": {"instances": [{"b64": base64.b64encode(data).decode()}]}}
    answer = service.post("/v2/models/flowers/versions/1/preview", **body)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    shown = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert np.array_equal(shown[..., ::-1].transpose(2, 0, 1), decode(data, RECIPE))


@pytest.mark.parametrize(
    ("method", "path", "status", "sentence"),
    [
        ("POST", "/v2/models/values/versions/1/preview", 400, "model 'values' takes no pictures"),
        ("POST", "/v2/models/fashion/versions/1/preview", 400, "not a PNG or JPEG image"),
        ("GET", "/v2/models/fashion/versions/2/proof", 404, "version 1, not 2"),
        ("GET", "/v2/models/fashion/versions/x/samples", 404, "version"),
        ("GET", "/v2/models/none/versions/1/proof", 404, "none"),
    ],
)
def test_what_cannot_be_shown_is_said(service, method, path, status, sentence):
    """In one sentence, with the status that other routes give for the same."""
    content = b"\x89PNG, but no more" if method == "POST" else None
    answer = service.request(method, path, content=content, headers={"Content-Type": "image/png"})
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert sentence in answer.json()["error"]
