"""`foldserve verify` of a folder that says anything: every check ends with a verdict, and no manifest lies unseen."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from foldserve.training.dataset import Dataset
from foldserve.training.errors import DatasetError
from foldserve.training.reverify import Check, Outcome, reverify

PUBLISHED = Path(__file__).parents[2] / "models" / "lenet-bn" / "1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(PUBLISHED, tmp_path / "1")
    return tmp_path / "1"


def no_data() -> Dataset:
    raise DatasetError("none here")


def state(folder: Path, key: str, value: str) -> None:
    """Change the graph's metadata, under a manifest that knows the file."""
    model = onnx.load(folder / "model.onnx")
    next(entry for entry in model.metadata_props if entry.key == key).value = value
    content = model.SerializeToString()
    (folder / "model.onnx").write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(folder, lambda manifest: manifest.update(files={"model.onnx": entry}))


def change(folder: Path, how: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    how(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def outcomes(checks: list[Check]) -> dict[str, str]:
    return {check.what: str(check.outcome) for check in checks}


@pytest.mark.parametrize("recipe", ["", "{", "null", "[]", "7", '"x"', "true", '{"network": 3}', "[" * 100_000])
def test_a_recipe_that_is_none_fails_the_chain(folder: Path, recipe: str) -> None:
    """The other checks are made; the weights that are given are not read."""
    state(folder, "foldserve.recipe", recipe)
    checks = reverify(folder, no_data, folder / "model.safetensors")
    assert outcomes(checks)["whole chain"] == "FAILED"
    assert outcomes(checks)["golden answers"] == "passed"
    assert "expected the recipe as JSON" in checks[-1].detail


@pytest.mark.parametrize("error", [AttributeError("x"), TypeError("x"), KeyError("x"), IndexError("x")])
def test_data_that_a_garbled_manifest_names_fail_what_needs_them(folder: Path, error: Exception) -> None:
    """The manifest says where the data are, and may say anything there."""

    def garbled() -> Dataset:
        raise error

    checks = reverify(folder, garbled)
    assert outcomes(checks)["test accuracy"] == "FAILED"
    assert "lacks or garbles an entry" in next(check.detail for check in checks if check.what == "test accuracy")


def test_golden_answers_of_some_outputs_prove_nothing(folder: Path) -> None:
    """A manifest that names only the class would let any scores pass."""
    change(folder, lambda manifest: manifest["golden"]["outputs"].pop("logits"))
    checks = reverify(folder, no_data)
    assert outcomes(checks)["golden answers"] == "FAILED"
    assert "no output 'logits'" in checks[3].detail


def test_what_is_missing_is_said_and_nothing_else_suffers(folder: Path) -> None:
    """Without data and weights two parts are not checked, and the rest passes."""
    assert list(outcomes(reverify(folder, no_data)).values()) == ["passed"] * 4 + ["not checked"] * 2


def place_of(path: Path) -> Check:
    return next(check for check in reverify(path, no_data) if check.what == "place")


def test_a_version_in_the_place_of_another_fails(folder: Path) -> None:
    """A rollback would serve it under a number that its manifest denies; the rest of it is as it was."""
    moved = folder.rename(folder.parent / "2")
    assert place_of(moved).outcome is Outcome.FAILED
    assert "version is 1, expected 2" in place_of(moved).detail
    assert [check.what for check in reverify(moved, no_data) if check.outcome is Outcome.FAILED] == ["place"]


@pytest.mark.parametrize("stated", [None, "1", True, 1.0, [1]])
def test_a_version_that_is_no_number_fails(folder: Path, stated: object) -> None:
    """Of the number that the folder has, nothing but that number is right."""
    change(folder, lambda manifest: manifest.update(version=stated))
    assert place_of(folder).outcome is Outcome.FAILED


def test_another_name_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may be copied under another name, which is said; also where the way to it names no folder."""
    assert place_of(PUBLISHED).detail == "version 1 of 'lenet-bn', as its folders say"
    for path in (folder, Path()):
        monkeypatch.chdir(folder)
        assert place_of(path).outcome is Outcome.PASSED
        assert f"the folder of the model is named {folder.parent.name!r}" in place_of(path).detail


def test_a_folder_that_is_no_version_is_not_judged_by(folder: Path) -> None:
    """It was copied out of the models; what it holds is said."""
    check = place_of(folder.rename(folder.parent / "copy"))
    assert check.outcome is Outcome.NOT_CHECKED
    assert "version 1 of 'lenet-bn'" in check.detail
