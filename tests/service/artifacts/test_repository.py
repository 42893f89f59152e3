"""Version folders: those that are what they claim, and every way of not being that."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import helper

from foldserve.service.artifacts.repository import Repository
from foldserve.service.errors import ArtifactInvalid, ModelNotFound
from foldserve.service.tensors import TensorSpec
from tests.support import artifacts


def test_names_and_versions_are_found_and_nothing_else(fashion_and_echo):
    """Half-written and other folders are not versions; numbers are sorted as numbers."""
    for version in (2, 10):
        artifacts.publish_classifier(fashion_and_echo, version=version)
    for stray in ("fashion/.tmp-3", "fashion/03", "fashion/latest", ".hidden/1", "empty"):
        (fashion_and_echo / stray).mkdir(parents=True)
    (fashion_and_echo / "fashion" / "labels.txt").write_text("x")
    assert Repository(fashion_and_echo).models() == {"echo": [1], "fashion": [1, 2, 10]}


def test_a_folder_that_breaks_the_rule_is_named_in_one_warning(fashion, caplog):
    """Each such folder once, however often the disk is looked at; neither files nor what is hidden or half-written."""
    for name in ("_lenet", "a" * 65, "fashion/03", "fashion/latest", ".hidden", "fashion/.tmp-3", "kept"):
        (fashion / name).mkdir(parents=True)
    (fashion / "READ ME").write_text("x")
    repository = Repository(fashion)
    assert [repository.models() for _ in range(3)] == [{"fashion": [1]}] * 3
    warnings = [record.getMessage() for record in caplog.records]
    named = {"_lenet", "a" * 65, "fashion/03", "fashion/latest"}
    assert {warning.split(" is left out")[0] for warning in warnings} == {f"folder {fashion / name}" for name in named}
    assert len(warnings) == len(named)
    assert any(warning.endswith("without leading zeros") for warning in warnings)


@pytest.mark.parametrize("place", ["broken", "fashion/7", "broken/1", "fashion/3/manifest.json"])
def test_what_cannot_be_looked_at_hides_no_other_model(fashion, place):
    """A link to itself, wherever it is, or a folder that is none: all else is listed and opens."""
    path = fashion / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path)
    repository = Repository(fashion, allow_unverified=True)
    places = repository.places()
    assert repository.held_back(places) == {}
    assert repository.version_policies(places) == {}
    assert places["fashion"][1] == fashion / "fashion/1"
    assert repository.open("fashion", 1).version == 1


@pytest.mark.parametrize("has_manifest", [True, False], ids=["verified", "unverified"])
@pytest.mark.parametrize("name", ["model.onnx", "weights.bin"])
def test_what_does_not_fit_into_memory_is_refused_before_it_is_copied(fashion, has_manifest, name):
    """A file of a tebibyte with nothing in it, which the process that serves would have been ended by."""
    folder = fashion / "fashion" / "1"
    if not has_manifest:
        (folder / "manifest.json").unlink()
    with (folder / name).open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(ArtifactInvalid, match="and there is room in memory for 1000000000"):
        Repository(fashion, allow_unverified=True, room=lambda: 10**9).open("fashion", 1)


def test_a_manifest_that_is_too_long_is_one_version_s_own_trouble(fashion):
    """It is not read, and every other model is listed and opens."""
    artifacts.publish_classifier(fashion, version=2)
    with (fashion / "fashion" / "2" / "manifest.json").open("ab") as file:
        file.truncate(1 << 40)
    repository = Repository(fashion)
    assert repository.held_back(repository.places()) == {}
    assert repository.open("fashion", 1).version == 1
    with pytest.raises(ArtifactInvalid, match="has 1099511627776 bytes, expected at most"):
        repository.open("fashion", 2)


def test_the_newest_version_opens_by_default(fashion):
    """Version 10 is newer than version 9, and an older one can be asked for."""
    for version in (9, 10):
        artifacts.publish_classifier(fashion, version=version)
    repository = Repository(fashion)
    assert repository.open("fashion").version == 10
    assert repository.open("fashion", 9).path == fashion / "fashion" / "9"


def test_an_artifact_carries_digest_manifest_and_golden_answers(fashion):
    """What training wrote is what the service reads."""
    artifact = Repository(fashion).open("fashion")
    assert artifact.sha256 == artifacts.file_entry(artifact.model_path)["sha256"]
    assert artifact.manifest["accuracy"] == {"test": 0.9}
    asked = artifacts.images(16, seed=7)
    assert (artifact.golden.inputs["image"] == asked).all()
    assert (artifact.golden.outputs["class_id"] == artifacts.classify(asked)["class_id"]).all()
    assert artifact.golden.tolerance == {"cpu": 1e-5, "cuda": 1e-4}


def test_what_is_not_there_is_said_with_what_is(fashion):
    """An unknown name or version is a 404 that lists the known ones."""
    repository = Repository(fashion)
    with pytest.raises(ModelNotFound, match=r"there are \['fashion'\]"):
        repository.open("other")
    with pytest.raises(ModelNotFound, match=r"no version 7; there are \[1\]"):
        repository.open("fashion", 7)
    with pytest.raises(ArtifactInvalid, match="cannot be read"):
        Repository(fashion / "nowhere").models()


def link_to_itself(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(folder / name)

    return change


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def link(folder: Path) -> None:
    path = folder / "model.onnx"
    elsewhere = folder.parents[2] / "elsewhere.onnx"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def golden_without(key: str):
    def change(folder: Path) -> None:
        golden = json.loads((folder / "manifest.json").read_text())["golden"]
        golden.pop(key)
        artifacts.rewrite_manifest(folder, golden=golden)

    return change


def golden_of_other_rows(folder: Path) -> None:
    golden = json.loads((folder / "manifest.json").read_text())["golden"]
    golden["inputs"] = artifacts.encode({"image": artifacts.images(3)})
    artifacts.rewrite_manifest(folder, golden=golden)


def golden_garbled(folder: Path) -> None:
    golden = json.loads((folder / "manifest.json").read_text())["golden"]
    golden["inputs"]["image"]["data"] = "not base64!"
    artifacts.rewrite_manifest(folder, golden=golden)


def entry(**changes):
    def change(folder: Path) -> None:
        artifacts.rewrite_manifest(folder, files={"model.onnx": artifacts.file_entry(folder / "model.onnx") | changes})

    return change


CORRUPTIONS = {
    "one flipped bit": (flip_a_bit, "SHA-256"),
    "one byte short": (cut, "bytes, its manifest says"),
    "empty model": (lambda folder: (folder / "model.onnx").write_bytes(b""), "bytes, its manifest says"),
    "no model": (lambda folder: (folder / "model.onnx").unlink(), r"holds \[\], its manifest lists"),
    "a link": (link, "links are not followed"),
    "a file too many": (lambda folder: (folder / "extra.bin").write_bytes(b"x"), "extra.bin"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "holds no manifest.json"),
    "manifest not JSON": (lambda folder: (folder / "manifest.json").write_text("<html>"), "cannot be read as JSON"),
    "manifest nested deep": (
        lambda folder: (folder / "manifest.json").write_text("[" * 1_000_000),
        "cannot be read as JSON",
    ),
    "manifest a link to itself": (link_to_itself("manifest.json"), "cannot be read as JSON.*symbolic links"),
    "model a link to itself": (link_to_itself("model.onnx"), "cannot be read.*symbolic links"),
    "manifest a list": (lambda folder: (folder / "manifest.json").write_text("[]"), "expected an object"),
    "future format": (lambda folder: artifacts.rewrite_manifest(folder, format=2), "format is 2, expected 1"),
    "format true": (lambda folder: artifacts.rewrite_manifest(folder, format=True), "format is True"),
    "another name": (lambda folder: artifacts.rewrite_manifest(folder, name="x"), "name is 'x', expected 'fashion'"),
    "another version": (lambda folder: artifacts.rewrite_manifest(folder, version=2), "version is 2, expected 1"),
    "no files": (lambda folder: artifacts.rewrite_manifest(folder, files=None), "lists no model.onnx"),
    "digest of another file": (entry(sha256="0" * 64), "SHA-256"),
    "no digest": (entry(sha256=None), "without its sha256"),
    "no golden": (lambda folder: artifacts.rewrite_manifest(folder, golden=None), "no golden section"),
    "no golden inputs": (golden_without("inputs"), "golden inputs"),
    "no tolerance": (golden_without("tolerance"), "golden tolerance"),
    "golden rows differ": (golden_of_other_rows, r"have \[3, 16\] rows"),
    "golden garbled": (golden_garbled, "cannot be decoded"),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_folder_that_is_not_what_it_claims_is_refused(fashion, corruption):
    """Each corruption is refused with a reason that names the check."""
    change, reason = CORRUPTIONS[corruption]
    change(fashion / "fashion" / "1")
    with pytest.raises(ArtifactInvalid, match=reason):
        Repository(fashion).open("fashion")


@pytest.mark.parametrize("location", ["weights.bin", "../../../etc/hostname", "/etc/hostname"])
def test_weights_in_another_file_are_refused(models, location):
    """External data is refused before onnxruntime could follow its path, wherever it leads."""
    model = artifacts.classifier_model()
    tensor = model.graph.initializer[2]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    tensor.external_data.add(key="location", value=location)
    asked = artifacts.images(16)
    folder = artifacts.publish(models, "fashion", artifacts.echo_model(), {"image": asked}, artifacts.classify(asked))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    artifacts.rewrite_manifest(folder, files={"model.onnx": artifacts.file_entry(folder / "model.onnx")})
    with pytest.raises(ArtifactInvalid, match="another file"):
        Repository(models).open("fashion")


def test_weights_in_another_file_are_found_inside_attributes_and_subgraphs(models):
    """A constant in a branch of an If is as dangerous as an initializer."""
    hidden = helper.make_tensor("hidden", 1, [1], [1.0])
    hidden.ClearField("float_data")
    hidden.data_location = 1
    hidden.external_data.add(key="location", value="weights.bin")
    branch = helper.make_graph([helper.make_node("Constant", [], ["y"], value=hidden)], "branch", [], [])
    model = artifacts.echo_model()
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))
    folder = artifacts.publish_echo(models)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    artifacts.rewrite_manifest(folder, files={"model.onnx": artifacts.file_entry(folder / "model.onnx")})
    with pytest.raises(ArtifactInvalid, match="another file"):
        Repository(models).open("echo")


@pytest.mark.parametrize(
    "content",
    [b"", b"<!doctype html>", b"\x3a\xff\xff\xff\xff\x0f", b"\x07", b"\x3a"],
    ids=["empty", "HTML", "a length beyond the end", "an unknown wire type", "cut in a length"],
)
def test_a_file_that_is_no_model_is_refused(models, content):
    """A digest that matches proves nothing about what was digested."""
    folder = artifacts.publish_echo(models)
    (folder / "model.onnx").write_bytes(content)
    artifacts.rewrite_manifest(folder, files={"model.onnx": artifacts.file_entry(folder / "model.onnx")})
    with pytest.raises(ArtifactInvalid, match="not an ONNX model"):
        Repository(models).open("echo")


def test_a_tensor_spec_speaks_the_protocol_and_numpy():
    """One row of the classifier's input is 784 bytes."""
    spec = TensorSpec("image", "UINT8", (None, 1, 28, 28))
    assert spec.dtype == "uint8"
    assert spec.row_shape == (1, 28, 28)
    assert spec.row_bytes == 784
