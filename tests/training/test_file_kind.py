"""What people have in the place of an ONNX file or of weights: each real file is named, with what helps."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from foldserve.training.errors import ConfigError, FoldError
from foldserve.training.file_kind import kind_of
from foldserve.training.fold.onnx.files import load_onnx
from foldserve.training.user_model.weights_file import load_weights


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, "x")
    return buffer.getvalue()


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


FILES = {
    "version https://git-lfs.github.com/spec/v1\nsize 1\n": "a pointer of Git LFS; get the file itself",
    b"\x89HDF\r\n\x1a\n" + bytes(100): "an HDF5 file, such as Keras writes; export the network to ONNX",
    archive("config.json", "model.weights.h5"): "an archive of Keras; export the network to ONNX",
    archive("a.txt"): "a zip archive; unpack it first",
    archive("a.txt")[:40]: "the beginning of a zip archive, cut off",
    saved({"a": torch.ones(1)}): "a file of torch.save or TorchScript; a network is package.module:factory",
    b"\x1c\0\0\0TFL3" + bytes(100): "a TensorFlow Lite file",
    b"\n <!DOCTYPE html><html>": "a page of HTML or XML",
    b"\x1f\x8b" + bytes(100): "compressed by gzip",
    pickle.dumps([1, 2]): "a pickle",
    save({"a": torch.ones(1)}): "a safetensors file: weights, without a network",
    b"": "empty",
}


@pytest.mark.parametrize("content", FILES, ids=lambda content: FILES[content][:25])
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: str | bytes) -> None:
    """Fold and publish read it by one function, whose sentence says what the file is and what to do."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(FoldError) as caught:
        load_onnx(path)
    assert str(caught.value).startswith(f"{path} is not a readable ONNX file: it is {FILES[content]}")


@pytest.mark.parametrize("content", [b"\x89HDF\r\n\x1a\n" + bytes(100), b"<html>", b"", b"version https://git-lfs"])
def test_weights_of_another_kind_are_named(tmp_path: Path, content: bytes) -> None:
    """Likewise where weights were expected."""
    path = tmp_path / "weights.h5"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_weights(nn.Linear(1, 1), path)
    kind = kind_of(path)
    assert kind is not None
    assert f"it is {kind}; expected safetensors, .pt or .pth" in str(caught.value)


def test_a_folder_is_named(tmp_path: Path) -> None:
    """A SavedModel by what exports it, a version folder by the file in it."""
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"is a SavedModel of TensorFlow; export it with .python -m tf2onnx"):
        load_onnx(tmp_path / "saved")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"is a folder; the file in it is .*/1/model\.onnx; expected an ONNX file"):
        load_onnx(tmp_path / "1")


def test_nothing_is_said_of_what_is_not_known(tmp_path: Path) -> None:
    """A file that is none of these, such as an ONNX file that was cut off, gets no guess."""
    (tmp_path / "other").write_bytes(b"\x08\x09\x12\x07pytorch")
    assert kind_of(tmp_path / "other") is None
    assert kind_of(tmp_path) is None
