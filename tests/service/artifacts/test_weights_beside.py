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
from foldserve.service.artifacts.repository import Artifact, Repository
from foldserve.service.engines.engine import Engine
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
    expected = Engine.load(opened(folder), provider="cpu", buckets=(1, 4), is_autotuned=False).run(
        {"image": artifacts.images(4)}
    )
    split(folder, **options)
    (folder / "manifest.json").unlink()
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    del model.metadata_props[:]  # of our own export, which is never served without its manifest
    onnx.save(model, folder / "model.onnx")
    artifact = opened(folder, allow_unverified=True)
    assert set(artifact.side_files) == set(os.listdir(folder)) - {"model.onnx"}
    given = Engine.load(artifact, provider="cpu", buckets=(1, 4), is_autotuned=False).run(
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
