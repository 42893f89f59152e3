"""What operators decided about models, on disk: labels, what is loaded by hand, shadows, and the history of it all.

One small JSON file in `FOLDSERVE_STATE_DIR`, written under a lock to a temporary file and renamed, so that every worker
reads a whole one and no change is lost. Versions are numbers here; whether they exist or answer is not known.
"""

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import ArtifactInvalid, InvalidInput, NotReady

LATEST = "latest"
PROMOTE, ROLLBACK = "promote", "rollback"
STATE_FILE = "state.json"
_FORMAT = 1
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_HISTORY = 100  # moves that are remembered of one model


@dataclass(frozen=True, slots=True)
class Move:
    """A label that was moved: when (seconds since 1970), which, by what call, from where to where (None: to follow)."""

    at: float
    label: str
    action: str
    source: int | None
    target: int | None


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that gets a copy of live inputs until a moment in seconds since 1970."""

    version: int
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class ModelState:
    """What was decided about one model.

    Attributes:
        labels: label -> version. `latest` stands here only while it is pinned; else it follows the newest version.
        loaded: versions that are to be loaded whether or not a label points at them.
        is_unloaded: the model is to answer nothing at all.
        shadow: the candidate that is being compared, if any.
        history: moves of labels, oldest first.
    """

    labels: Mapping[str, int] = field(default_factory=dict)
    loaded: tuple[int, ...] = ()
    is_unloaded: bool = False
    shadow: Shadow | None = None
    history: tuple[Move, ...] = ()

    def moved(self, label: str, target: int | None, action: str, source: int | None) -> "ModelState":
        """Return the state after a label was moved; a target of None lets `latest` follow the newest version again."""
        labels = {name: version for name, version in self.labels.items() if name != label}
        if target is not None:
            labels[label] = target
        history = (*self.history, Move(time.time(), label, action, source, target))[-_HISTORY:]
        return replace(self, labels=labels, history=history)

    def left_behind(self, label: str) -> set[int]:
        """Return the versions that a label was rolled back from since it was last promoted."""
        left: set[int] = set()
        for move in reversed([move for move in self.history if move.label == label]):
            if move.action != ROLLBACK:
                break
            if move.source is not None:
                left.add(move.source)
        return left

    def before(self, label: str) -> int | None:
        """Return what a label pointed at before its last promote that was not taken back; None where nothing was."""
        undone = 0
        for move in reversed([move for move in self.history if move.label == label]):
            if move.action == ROLLBACK:
                undone += 1
            elif undone:
                undone -= 1
            else:
                return move.source
        return None


class StateDir:
    """The folder that holds the decisions; without one everything is as it was never decided.

    Args:
        folder: writable, shared by all workers; None where there is none.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._read: dict[str, ModelState] = {}
        self._stamp: tuple[int, int] | None = None

    def read(self) -> Mapping[str, ModelState]:
        """Return what was decided about each model; read again only when the file is another one.

        Raises:
            ArtifactInvalid: the file is there and cannot be read: going on without it would undo a rollback.
        """
        if self.folder is None:
            return {}
        path = self.folder / STATE_FILE
        try:
            status = path.stat()
            stamp = (status.st_ino, status.st_mtime_ns)
            if stamp != self._stamp:
                self._read = _parse(path)
                self._stamp = stamp
        except FileNotFoundError:
            return {}
        except OSError as err:
            raise ArtifactInvalid(f"state file {path} cannot be read: {err.strerror or err}") from err
        return self._read

    def of(self, name: str) -> ModelState:
        """Return what was decided about one model; raises what `read` raises."""
        return self.read().get(name, ModelState())

    def change(self, name: str, decide: Callable[[ModelState], ModelState]) -> ModelState:
        """Replace what was decided about one model, and return it.

        Args:
            name: the model.
            decide: gives the new state for the one on disk; what it raises leaves everything as it was.

        Raises:
            NotReady: there is no state folder, or it cannot be written.
        """
        if self.folder is None:
            raise NotReady("decisions about models cannot be kept: set FOLDSERVE_STATE_DIR to a writable folder")
        try:
            with _locked(self.folder):
                states = dict(self.read())
                states[name] = decide(states.get(name, ModelState()))
                _write(self.folder / STATE_FILE, states)
        except OSError as err:
            raise NotReady(f"state folder {self.folder} cannot be written: {err.strerror or err}") from err
        return states[name]


def check_label(label: object) -> str:
    """Return a label that may be moved.

    Raises:
        InvalidInput: it is not a letter followed by at most 63 letters, digits and _ . -
    """
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise InvalidInput(f"label {str(label)[:80]!r}, expected a letter and at most 63 letters, digits, _ . or -")
    return label


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the file is never removed, so that all hold the same one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "state.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, states: Mapping[str, ModelState]) -> None:
    """Replace the file by a whole new one that is on the disk before it has the name."""
    document = {"format": _FORMAT, "models": {name: asdict(state) for name, state in sorted(states.items())}}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _parse(path: Path) -> dict[str, ModelState]:
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != _FORMAT:
            raise ValueError(f"format {document['format']!r}, expected {_FORMAT}")
        return {str(name): _state(entry) for name, entry in document["models"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ArtifactInvalid(
            f"state file {path} cannot be read: {err!r}; correct it, or remove it to start without it"
        ) from err


def _state(entry: Mapping[str, Any]) -> ModelState:
    shadow = entry["shadow"]
    return ModelState(
        labels={check_label(label): int(version) for label, version in entry["labels"].items()},
        loaded=tuple(map(int, entry["loaded"])),
        is_unloaded=bool(entry["is_unloaded"]),
        shadow=None if shadow is None else Shadow(**shadow),
        history=tuple(Move(**move) for move in entry["history"]),
    )
