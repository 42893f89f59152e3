"""Weights beside the graph, as PyTorch's exporter and onnx write them by default: served, proved and listed."""

import hashlib
import json
import os
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest

from foldserve.service.app import create_app
from foldserve.service.artifacts import onnx_file, weights_beside
from foldserve.service.artifacts.protobuf import Message
from foldserve.service.artifacts.repository import Artifact, Repository
from foldserve.service.engines.load import load_engine
from foldserve.service.errors import ArtifactInvalid
from foldserve.service.settings import Settings
from tests.support import artifacts
from tests.support.live import serve

DATA = "model.onnx.data"


def split(folder: Path, **options: object) -> Path:
    """Take the weights of a version's model out of it; returns the file that they are in."""
    path = folder / "model.onnx"
    model = onnx.load(path)
    path.unlink()
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, **{"location": DATA} | options)
    entries = {name: artifacts.file_entry(folder / name) for name in os.listdir(folder) if name != "manifest.json"}
    artifacts.rewrite_manifest(folder, files=entries)
    return folder / DATA


@pytest.fixture
def folder(tmp_path):
    folder = artifacts.publish_classifier(tmp_path / "models", "flowers")
    split(folder)
    return folder


def opened(folder: Path, *, allow_unverified: bool = False) -> Artifact:
    return Repository(folder.parents[1], allow_unverified=allow_unverified).open("flowers")


def test_a_published_model_is_proved_and_answers(folder):
    """The same golden answers as the file in one piece gives, and the digest of the weights among its properties."""
    app = create_app(Settings(models_dir=folder.parents[1], provider="cpu", buckets=(1, 8)))
    images = artifacts.images(3)
    with serve(app) as url, httpx.Client(base_url=url, timeout=60) as http:
        answer = http.post("/predict", json={"instances": images.reshape(3, -1).tolist()})
        properties = http.get("/v2/models/flowers").json()["properties"]
    given = [one["probabilities"] for one in answer.json()["predictions"]]
    np.testing.assert_allclose(given, artifacts.classify(images)["probabilities"], atol=1e-5)
    digest = hashlib.sha256((folder / DATA).read_bytes()).hexdigest()
    assert json.loads(properties["side_files"]) == {DATA: digest}


@pytest.mark.parametrize("options", [{}, {"all_tensors_to_one_file": False, "location": None}])
def test_an_unverified_model_is_served_from_one_file_or_many(tmp_path, options):
    """With a file for each tensor too, as older exporters write them."""
    folder = artifacts.publish_classifier(tmp_path / "models", "flowers")
    expected = load_engine(opened(folder), provider="cpu", buckets=(1, 4), is_autotuned=False).run(
        {"image": artifacts.images(4)}
    )
    split(folder, **options)
    (folder / "manifest.json").unlink()
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    del model.metadata_props[:]  # of our own export, which is never served without its manifest
    onnx.save(model, folder / "model.onnx")
    artifact = opened(folder, allow_unverified=True)
    assert set(artifact.side_files) == set(os.listdir(folder)) - {"model.onnx"}
    given = load_engine(artifact, provider="cpu", buckets=(1, 4), is_autotuned=False).run(
        {"image": artifacts.images(4)}
    )
    assert all(given[name].tobytes() == expected[name].tobytes() for name in expected)


def test_weights_that_change_are_noticed(folder):
    """What was read goes on answering; the folder is said to differ."""
    artifact = opened(folder)
    repository = Repository(folder.parents[1])
    assert repository.change_of(artifact) is None
    data = bytearray((folder / DATA).read_bytes())
    data[100] ^= 1
    (folder / DATA).write_bytes(data)
    assert f"{folder / DATA} has SHA-256" in str(repository.change_of(artifact))
    with pytest.raises(ArtifactInvalid, match=r"has SHA-256 .*manifest says"):
        opened(folder)


def relocated(folder: Path, **stated: str) -> None:
    """Let the last tensor say something else of where its weights are."""
    path = folder / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    entries = {entry.key: entry for entry in model.graph.initializer[-1].external_data}
    for key, value in stated.items():
        entries[key].value = value
    path.write_bytes(model.SerializeToString())
    listed = {name: artifacts.file_entry(folder / name) for name in ("model.onnx", DATA)}
    artifacts.rewrite_manifest(folder, files=listed)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"location": "../1/model.onnx.data"}, "expected one in the version folder"),
        ({"location": "/etc/passwd"}, "expected one in the version folder"),
        ({"location": "sub/weights"}, "expected one in the version folder"),
        ({"location": "manifest.json"}, "expected one in the version folder"),
        ({"location": ""}, "expected one in the version folder"),
        ({"location": "other.data"}, r"in another file, .other.data., which cannot be read"),
        ({"offset": "99999999"}, "the file is cut off, or another one"),
        ({"offset": "-4096"}, "the file is cut off, or another one"),
        ({"length": "9" * 30}, "the file is cut off, or another one"),
        ({"offset": "x"}, "the file is cut off, or another one"),
    ],
)
def test_weights_in_any_other_place_are_refused(folder, stated, message):
    """Before anything there is opened, and with the name of the tensor."""
    relocated(folder, **stated)
    with pytest.raises(ArtifactInvalid, match=message):
        opened(folder)


def test_a_link_is_not_followed_out_of_the_models(folder, tmp_path):
    """A link to a file elsewhere is refused like a path to it."""
    secret = tmp_path / "secret"
    (folder / DATA).rename(secret)
    (folder / DATA).symlink_to(secret)
    with pytest.raises(ArtifactInvalid, match="link"):
        opened(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactInvalid, match="link out of"):
        opened(folder, allow_unverified=True)


def test_a_file_that_is_cut_off_is_refused(folder):
    """Half a download says so, and no graph runs on zeros."""
    content = (folder / DATA).read_bytes()
    (folder / DATA).write_bytes(content[: len(content) // 2])
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactInvalid, match="the file is cut off"):
        opened(folder, allow_unverified=True)


@pytest.mark.parametrize("options", [{}, {"all_tensors_to_one_file": False, "location": None}])
@pytest.mark.parametrize("is_verified", [True, False])
@pytest.mark.parametrize("large", [1, 1 << 20])
def test_weights_of_more_than_one_message_are_handed_over_apart(tmp_path, monkeypatch, options, is_verified, large):
    """As for a model over 2 GiB, here from a smaller limit on: the answers are those of the file in one piece."""
    monkeypatch.setattr(weights_beside, "_LARGE_TENSOR", large)
    monkeypatch.setattr(weights_beside, "_LARGEST_MODEL", 1000)
    folder = artifacts.publish_classifier(tmp_path / "models", "flowers")
    if not is_verified:
        exported = artifacts.classifier_model(metadata={})
        (folder / "model.onnx").write_bytes(exported.SerializeToString())
    split(folder, **options)
    if not is_verified:
        (folder / "manifest.json").unlink()
    artifact = opened(folder, allow_unverified=True)
    with onnx_file.opened(artifact.source) as data:
        assert weights_beside.split(data) is not None
    engine = load_engine(artifact, provider="cpu", buckets=(1, 4))
    images = artifacts.images(4)
    expected = artifacts.classify(images)["probabilities"]
    np.testing.assert_allclose(engine.run({"image": images})["probabilities"], expected, atol=1e-5)


def test_a_large_model_is_proved_in_a_process_of_its_own(tmp_path, monkeypatch):
    """One descriptor holds graph and weights."""
    monkeypatch.setattr(weights_beside, "_LARGEST_MODEL", 1000)
    folder = artifacts.publish_classifier(tmp_path / "models", "flowers")
    split(folder)
    settings = Settings(models_dir=tmp_path / "models", provider="cpu", buckets=(1, 4), prove_above_bytes=1)
    with serve(create_app(settings)) as url:
        answer = httpx.post(f"{url}/predict", json={"instances": artifacts.images(1).reshape(1, -1).tolist()})
    assert answer.status_code == 200


def test_damaged_weights_are_found_apart_too(tmp_path, monkeypatch):
    """NaN in the weights of a model without a manifest, wherever they are."""
    monkeypatch.setattr(weights_beside, "_LARGEST_MODEL", 1000)
    folder = artifacts.publish_classifier(tmp_path / "models", "flowers")
    (folder / "model.onnx").write_bytes(artifacts.classifier_model(metadata={}).SerializeToString())
    data = split(folder)
    (folder / "manifest.json").unlink()
    content = bytearray(data.read_bytes())
    content[-4:] = np.float32(np.nan).tobytes()
    data.write_bytes(content)
    with pytest.raises(ArtifactInvalid, match="holds NaN; the weights are damaged"):
        opened(folder, allow_unverified=True)


def test_a_strangers_file_cannot_say_that_its_weights_lie_apart(folder):
    """The form is for sealed files alone."""
    field = Message.of({weights_beside._WEIGHTS: [b"1234"]}).encode()
    with (folder / "model.onnx").open("ab") as file:
        file.write(field)
    artifacts.rewrite_manifest(
        folder, files={name: artifacts.file_entry(folder / name) for name in ("model.onnx", DATA)}
    )
    with pytest.raises(ArtifactInvalid, match="which is no part of ONNX"):
        opened(folder)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LARGE_TESTS"), reason="needs 12 GB of memory: make large-test")
def test_a_model_over_two_gibibytes_is_served(tmp_path):
    """A table of 2.2 GB, most of it a hole in its file: rows at both ends are found, and its end is checked."""
    rows, width = 550_000, 1024
    folder = tmp_path / "models/table/1"
    folder.mkdir(parents=True)
    tensor = onnx.TensorProto(name="table", data_type=onnx.TensorProto.FLOAT, dims=[rows, width])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=DATA)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", ["table", "row"], ["y"])],
        "table",
        [info("row", onnx.TensorProto.INT64, ["N"])],
        [info("y", onnx.TensorProto.FLOAT, ["N", width])],
        [tensor],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    last = np.arange(width, dtype=np.float32)
    with (folder / DATA).open("wb") as file:
        file.truncate(rows * width * 4)
        file.seek((rows - 1) * width * 4)
        file.write(last.tobytes())
    artifact = Repository(tmp_path / "models", allow_unverified=True).open("table")
    engine = load_engine(artifact, provider="cpu", threads=1, buckets=(1, 4))
    answer = engine.run({"row": np.array([0, rows - 1])})["y"]
    assert answer[:, -1].tolist() == [0, width - 1]
