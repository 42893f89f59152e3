"""A Triton folder without manifests: the model's file, its class names, and what is refused."""

import pytest

from foldserve.service.artifacts.repository import Artifact, Repository
from foldserve.service.engines.engine import Engine
from foldserve.service.errors import ArtifactInvalid
from tests.support import artifacts, exported

CONFIG = """
name: "flowers"  # default_model_filename: "not this"
platform: "onnxruntime_onnx"
max_batch_size: 8
default_model_filename: "net.onnx"
output [ { name: "logits" data_type: TYPE_FP32 dims: [ 10 ] label_filename: "classes#1.txt" } ]
"""


@pytest.fixture
def folder(tmp_path):
    version = exported.save(tmp_path, "flowers", artifacts.classifier_model(metadata={}))
    (version / "model.onnx").rename(version / "net.onnx")
    (version.parent / "config.pbtxt").write_text(CONFIG)
    (version.parent / "classes#1.txt").write_text("\n".join(f"kind {index}" for index in range(10)) + "\n")
    return version.parent


def opened(folder) -> Artifact:
    return Repository(folder.parent, allow_unverified=True).open("flowers")


def test_the_file_and_the_class_names_are_those_of_the_configuration(folder):
    """The folder serves as it did."""
    artifact = opened(folder)
    assert artifact.model_path.name == "net.onnx"
    engine = Engine.load(artifact, provider="cpu", buckets=(1, 4))
    assert engine.class_names == tuple(f"kind {index}" for index in range(10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input [ { name: 'x' reshape: { shape: [ 1, 784 ] } } ]", "reshapes a tensor"),
        ("input [ { reshape { shape: [ ] } } ]", "reshapes a tensor"),
        ('default_model_filename: "../../secret.onnx"', "expected the name of a file in its folder"),
        ('default_model_filename: "gone.onnx"', r"gone\.onnx cannot be read"),
        ('default_model_filename: "net.onnx" label_filename: "gone.txt"', r"gone\.txt cannot be read"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(folder, text, message):
    """A reshape that is left out would give other answers."""
    (folder / "config.pbtxt").write_text(text)
    with pytest.raises(ArtifactInvalid, match=message):
        opened(folder)
