"""A version folder is what its manifest says, for both halves."""

import json
from pathlib import Path

import pytest

from foldserve.format.errors import FormatError
from foldserve.format.manifest import check_files, check_key, read_manifest, write_manifest

MODEL = b"not read here"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(MODEL)
    (tmp_path / "manifest.json").write_bytes(write_manifest("lenet", 3, MODEL, {"note": "n", "name": "ignored"}))
    return tmp_path


def test_what_is_written_is_read(folder: Path) -> None:
    """The head is ours, whatever the rest says."""
    manifest = read_manifest(folder)
    assert {key: manifest[key] for key in ("format", "name", "version", "note")} == {
        "format": 1, "name": "lenet", "version": 3, "note": "n",
    }  # fmt: skip
    assert list(check_files(folder, manifest)) == ["model.onnx"]


def test_a_flipped_bit_and_a_missing_byte_are_seen(folder: Path) -> None:
    """Size and digest are each compared."""
    manifest = read_manifest(folder)
    (folder / "model.onnx").write_bytes(MODEL[:-1])
    with pytest.raises(FormatError, match=r"has 12 bytes, its manifest says 13"):
        check_files(folder, manifest)
    (folder / "model.onnx").write_bytes(MODEL[:-1] + b"d")
    with pytest.raises(FormatError, match="has SHA-256"):
        check_files(folder, manifest)


def test_a_link_is_not_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The bytes at its end are right today and anybody's tomorrow."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("model.onnx", "manifest.json"):
        target = (folder / name).rename(elsewhere / name)
        (folder / name).symlink_to(target)
    with pytest.raises(FormatError, match=r"manifest\.json is not a regular file; links are not followed"):
        read_manifest(folder)
    with pytest.raises(FormatError, match=r"model\.onnx is not a regular file"):
        check_files(folder, json.loads((elsewhere / "manifest.json").read_text()))


def test_a_key_of_another_type_is_another_value(folder: Path) -> None:
    """`true` is not version 1, although Python says that they are equal."""
    check_key(folder, {"version": 1}, "version", 1)
    for value in (True, 1.0, "1", None):
        with pytest.raises(FormatError, match="version is"):
            check_key(folder, {"version": value}, "version", 1)
