"""A run's `last.pt`: everything that the next epoch depends on, so a killed run continues as if nothing happened.

Written whole after each epoch and read with `weights_only=True`: a checkpoint is data and never runs code. Which rows
and images an epoch sees follows from seed and epoch alone, so no random state is kept. It does not train.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .config import Recipe
from .disk import write_file
from .errors import CheckpointError
from .fit import EpochRecord, Snapshot
from .user_model.weights_file import holds_objects

CHECKPOINT_NAME = "last.pt"
FORMAT = 1


def write_checkpoint(path: Path, snapshot: Snapshot, recipe: Recipe, digests: Mapping[str, str]) -> None:
    """Write `snapshot` to `path`, which is the old checkpoint or the new one at every moment.

    Args:
        path: of the file, by habit a run's `last.pt`.
        snapshot: where the training stands.
        recipe: what it follows.
        digests: file name -> SHA-256 of the data.

    Raises:
        ArtifactError: the disk refuses.
    """
    content = io.BytesIO()
    torch.save(
        {
            "format": FORMAT,
            "recipe": recipe.as_dict(),
            "data": dict(digests),
            "epochs": [record.as_dict() for record in snapshot.epochs],
            "seconds": snapshot.seconds,
            "model": dict(snapshot.model),
            "optimizer": dict(snapshot.optimizer),
            "best": None if snapshot.best is None else dict(snapshot.best),
        },
        content,
    )
    write_file(path, content.getvalue(), f"free the disk and go on with --resume {path.parent}")


def read_checkpoint(path: Path, recipe: Recipe, digests: Mapping[str, str]) -> Snapshot:
    """Return what `write_checkpoint` wrote to `path` for the same recipe and data; tensors on the CPU.

    The number of epochs may differ.

    Raises:
        CheckpointError: the file cannot be read, was cut off or is none of ours; or another recipe or other data made
            it.
    """
    stored = _load(path)
    try:
        if stored["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {stored['format']}, expected {FORMAT}; start a new run")
        # A run may be given more epochs than it was started for.
        _check_same(path, "recipe", {**Recipe(**stored["recipe"]).as_dict(), "epochs": recipe.epochs}, recipe.as_dict())
        _check_same(path, "data", stored["data"], dict(digests))
        return Snapshot(
            epochs=tuple(EpochRecord(**record) for record in stored["epochs"]),
            seconds=float(stored["seconds"]),
            model=dict(stored["model"]),
            optimizer=dict(stored["optimizer"]),
            best=stored.get("best"),
        )
    except (KeyError, TypeError, ValueError) as err:
        raise CheckpointError(f"{path} is no checkpoint of ours ({err!r}); start a new run") from err


def _load(path: Path) -> dict[str, Any]:
    try:
        _check_sums(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # pickle's and zipfile's errors, and torch's own, share no base
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        if holds_objects(err):
            reason = "it holds objects beside tensors, and code in a file is never run"
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({reason}); start a new run") from err
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path} holds a {type(stored).__name__}, expected a run's checkpoint; start a new run")
    return stored


def _check_sums(path: Path) -> None:
    """Compare the checksums that `torch.save` wrote and `torch.load` passes over.

    Raises:
        ValueError: a part of the file is not as it was written.
    """
    with zipfile.ZipFile(path) as parts:
        damaged = parts.testzip()
    if damaged is not None:
        raise ValueError(f"its part {damaged} is damaged")


def _check_same(path: Path, what: str, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise CheckpointError that names the entries which differ."""
    other = sorted(key for key in {*stored, *expected} if stored.get(key) != expected.get(key))
    if other:
        differing = ", ".join(f"{key} {stored.get(key)!r} instead of {expected.get(key)!r}" for key in other)
        raise CheckpointError(f"{path} belongs to another training: its {what} has {differing}; start a new run")
