"""ONNX files at the border: what cannot be read or written is said in one sentence, and nothing is half-written."""

from pathlib import Path

import onnx
import pytest
from onnx import external_data_helper

from foldserve.training.errors import ConfigError, FoldError
from foldserve.training.fold.onnx.api import explain_onnx, fold_onnx, verify_onnx
from foldserve.training.fold.onnx.files import load_onnx, write_onnx
from tests.support.onnx_cases import cases


def model() -> onnx.ModelProto:
    return cases()[0].build()


def with_external_data(folder: Path, location: str) -> Path:
    """Write a model whose first weight lies in `folder / location`, and return the model's path."""
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    if location != "weights.bin":
        raw = onnx.load(path, load_external_data=False)
        for tensor in raw.graph.initializer:
            if external_data_helper.uses_external_data(tensor):
                next(entry for entry in tensor.external_data if entry.key == "location").value = location
        path.write_bytes(raw.SerializeToString())
    return path


def test_what_was_written_is_read_back(tmp_path):
    """A model goes to a file and back unchanged, and no temporary file stays beside it."""
    write_onnx(model(), tmp_path / "out.onnx")
    assert load_onnx(tmp_path / "out.onnx") == model()
    assert [file.name for file in tmp_path.iterdir()] == ["out.onnx"]


def test_existing_output_is_never_overwritten(tmp_path):
    """What stands at the output path keeps its bytes."""
    path = tmp_path / "out.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists already"):
        write_onnx(model(), path)
    assert path.read_bytes() == b"precious"


def test_output_in_a_missing_folder_is_refused(tmp_path):
    """The folder of the output has to be there."""
    with pytest.raises(ConfigError, match="is not a folder"):
        write_onnx(model(), tmp_path / "nowhere" / "out.onnx")


def test_folder_for_a_file(tmp_path):
    """A folder is no ONNX file."""
    with pytest.raises(ConfigError, match="is a folder; expected an ONNX file"):
        load_onnx(tmp_path)


def test_missing_file(tmp_path):
    """A path that is not there is named."""
    with pytest.raises(ConfigError, match=r"gone\.onnx does not exist"):
        load_onnx(tmp_path / "gone.onnx")


@pytest.mark.parametrize("content", [b"", b"not a protobuf at all", b"\x08\x0a" * 40], ids=["empty", "text", "bytes"])
def test_corrupt_file(tmp_path, content):
    """What is no ONNX is an error of one sentence, not a stack trace of the parser."""
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(FoldError, match=r"broken\.onnx"):
        load_onnx(path)


@pytest.mark.parametrize("name", ["note.txt", "weights.bin", "network"])
def test_a_file_of_another_kind_is_a_mistake_of_the_caller(tmp_path, name):
    """Exit code 2, with what a network may be: the name is to be mended, not the file."""
    (tmp_path / name).write_text("not a protobuf at all")
    with pytest.raises(ConfigError, match=r"network is package.module:factory") as caught:
        load_onnx(tmp_path / name)
    assert caught.value.exit_code == 2


def test_truncated_file(tmp_path):
    """A download that was cut off is no model."""
    path = tmp_path / "cut.onnx"
    data = model().SerializeToString()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(FoldError, match="cut off"):
        load_onnx(path)


def test_external_data_beside_the_model_is_loaded(tmp_path):
    """Weights in a side file inside the model's folder come along."""
    path = with_external_data(tmp_path / "good", "weights.bin")
    assert [t.raw_data for t in load_onnx(path).graph.initializer] == [t.raw_data for t in model().graph.initializer]


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "a/../../secret.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    """A model cannot make us read files that do not belong to it."""
    (tmp_path / "secret.bin").write_bytes(b"0" * 4096)
    with pytest.raises(FoldError, match="outside the model's folder"):
        load_onnx(with_external_data(tmp_path / "model", location))


def test_external_data_behind_a_link_out_of_the_folder_is_refused(tmp_path):
    """A symbolic link does not make a file part of the folder."""
    (tmp_path / "secret.bin").write_bytes(b"0" * 4096)
    path = with_external_data(tmp_path / "model", "link.bin")
    (tmp_path / "model" / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(FoldError, match="outside the model's folder"):
        load_onnx(path)


def test_missing_external_data(tmp_path):
    """The side file that is missing is named."""
    path = with_external_data(tmp_path / "model", "weights.bin")
    (tmp_path / "model" / "weights.bin").unlink()
    with pytest.raises(FoldError, match=r"is missing: expected the file 'weights\.bin'"):
        load_onnx(path)


def test_short_external_data(tmp_path):
    """A side file that was cut off is an error, not zeros."""
    path = with_external_data(tmp_path / "model", "weights.bin")
    (tmp_path / "model" / "weights.bin").write_bytes(b"12")
    with pytest.raises(FoldError, match="external data"):
        load_onnx(path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("in.onnx", "is a str; expected an onnx.ModelProto, such as onnx.load(path) returns"),
        (Path("in.onnx"), "Path; expected an onnx.ModelProto, such as onnx.load(path) returns"),
        (b"", "is a bytes; expected an onnx.ModelProto, such as onnx.load_from_string(data) returns"),
        (
            None,
            "such as onnx.load(path) returns; fold takes PyTorch's modules",
        ),
    ],
)
def test_a_path_in_the_place_of_a_model(given, said):
    """Each function on models says what it got, and the call that makes a model of it."""
    for name, call in (
        ("model", lambda: fold_onnx(given)),
        ("model", lambda: explain_onnx(given)),
        ("original", lambda: verify_onnx(given, model())),
        ("folded", lambda: verify_onnx(model(), given)),
    ):
        with pytest.raises(FoldError) as caught:
            call()
        assert str(caught.value).startswith(f"{name} is a ")
        assert said in str(caught.value)
