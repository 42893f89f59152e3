"""A Triton folder without manifests: the model's file, its class names, and what is refused."""

import pytest

from foldserve.service.artifacts.repository import Artifact, Repository
from foldserve.service.artifacts.triton_config import read_config
from foldserve.service.engines.load import load_engine
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
    engine = load_engine(artifact, provider="cpu", buckets=(1, 4))
    assert engine.class_names == tuple(f"kind {index}" for index in range(10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input [ { name: 'x' reshape: { shape: [ 1, 784 ] } } ]", "reshapes a tensor"),
        ("input [ { reshape { shape: [ ] } } ]", "reshapes a tensor"),
        ("ensemble_scheduling { step [ ] }", "is an ensemble of other models"),
        ("sequence_batching { max_sequence_idle_microseconds: 5 }", "keeps state from one request"),
        ("batch_input [ { kind: BATCH_ELEMENT_COUNT } ]", "about the whole batch"),
        ('input [ { name: "x" allow_ragged_batch: true } ]', "ragged batches"),
        ("model_transaction_policy { decoupled: true }", "several times or not at all"),
        ('platform: "tensorflow_savedmodel"', r"platform is 'tensorflow_savedmodel', expected 'onnxruntime_onnx'"),
        ('backend: "python"', r"backend is 'python', expected 'onnxruntime'"),
        ("max_batch_size: -1", r"max_batch_size is -1, expected a whole number from 0 up"),
        ("version_policy { newest { } }", r"expected latest \{ num_versions: 2 \}"),
        ("version_policy: { specific: { } }", "version_policy is not understood"),
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


def test_class_names_in_another_encoding_are_refused_with_the_byte(folder):
    """Names that look right but for a letter would be served for ever."""
    names = folder / "classes#1.txt"
    names.write_bytes(names.read_bytes().replace(b"kind 3", "f\xfcnf".encode("cp1252")))
    with pytest.raises(ArtifactInvalid, match=r"classes#1\.txt is no UTF-8 text: byte 0xfc at 22, in line 4, .*iconv"):
        opened(folder)
    names.write_bytes(b"\xef\xbb\xbf" + names.read_bytes().replace(b"\xfc", "ü".encode()).replace(b"\n", b"\r\n"))
    engine = load_engine(opened(folder), provider="cpu", buckets=(1,))
    assert engine.class_names == ("kind 0", "kind 1", "kind 2", "fünf", *(f"kind {index}" for index in range(4, 10)))


@pytest.mark.parametrize(
    ("rows", "buckets"), [(0, (1,)), (1, (1,)), (3, (1, 3)), (4, (1, 4)), (6, (1, 4, 6)), (900, (1, 4, 8))]
)
def test_no_run_has_more_rows_than_the_configuration_allows(folder, rows, buckets):
    """More of them in one request are split; 0 is one by one."""
    (folder / "config.pbtxt").write_text(f'max_batch_size: {rows} default_model_filename: "net.onnx"')
    artifact = opened(folder)
    engine = load_engine(artifact, provider="cpu", buckets=(1, 4, 8))
    assert set(engine.buckets) <= set(buckets)
    assert engine.buckets[-1] == buckets[-1]


@pytest.mark.parametrize(
    ("text", "served", "written"),
    [
        ("version_policy: { all { } }", {1, 2, 5}, {"all": {}}),
        ("version_policy { latest { num_versions: 2 } }", {2, 5}, {"latest": {"num_versions": 2}}),
        ("version_policy: { latest: { } }", {5}, {"latest": {"num_versions": 1}}),
        ("version_policy: { specific: { versions: [1, 2, 9] } }", {1, 2}, {"specific": {"versions": [1, 2, 9]}}),
        ("version_policy { specific { versions: 1 versions: 5 } }", {1, 5}, {"specific": {"versions": [1, 5]}}),
        ('parameters { key: "version_policy { all { } }" } # version_policy { all { } }', None, None),
    ],
)
def test_the_version_policy_is_read_in_each_of_its_forms(folder, text, served, written):
    """As Triton's text format may write it; words in strings and comments say nothing."""
    (folder / "config.pbtxt").write_text(text)
    policy = read_config(folder, folder.parent).version_policy
    assert (policy and policy.served([1, 2, 5])) == served
    assert (policy and policy.as_dict()) == written
