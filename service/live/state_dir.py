"""Where decisions about models are kept: one small JSON file in `FOLDSERVE_STATE_DIR`, which all workers share.

It is written under a lock to a temporary file and renamed, so that every worker reads a whole one and no change is
lost. Decisions that were read once hold until others are read: a folder that disappears undoes no rollback.
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ArtifactInvalid, NotReady
from ..metrics import Metrics
from ..regular_file import read_regular
from .state import ModelState, parse_states, write_states

_log = logging.getLogger(__name__)

STATE_FILE, LOCK_FILE = "state.json", "state.lock"
_MOST_BYTES = 64 * 1024 * 1024
_LOCK_POLL_SECONDS = 0.02


class StateDir:
    """The folder that holds the decisions; without one everything is as it was never decided.

    Args:
        folder: writable, shared by all workers; None where there is none.
        metrics: of refused changes, and of whether the file is lost.
        lock_seconds: how long a change waits for other processes.
        spare: a folder that lives as long as this service, where the last decisions are kept for workers that start
            while the file is lost; None where there is only this process.

    Attributes:
        loss: why decisions are those of an earlier moment, and none can be made; None while all is well.
    """

    def __init__(
        self, folder: Path | None, metrics: Metrics, lock_seconds: float = 5.0, spare: Path | None = None
    ) -> None:
        self.folder = folder
        self.loss: str | None = None
        self._metrics = metrics
        self._lock_seconds = lock_seconds
        self._spare = None if spare is None else spare / STATE_FILE
        self._states: dict[str, ModelState] = {}
        self._was_read = False
        self._stamp: tuple[int, ...] | None = None  # of the file when it was last looked into
        self._is_made = False

    def make(self) -> None:
        """Make the folder, so that it is noticed when it goes; where that is impossible, each change will say so."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._is_made = True
        except OSError as err:
            _log.warning("state folder %s cannot be made: %s", self.folder, err.strerror)

    def read(self) -> Mapping[str, ModelState]:
        """Return what was decided about each model, read again when the file is another one.

        Where that cannot be read, what was read last holds, and `loss` says why.

        Raises:
            ArtifactInvalid: it cannot be read, and never was: going on without it would undo a rollback.
        """
        if self.folder is None:
            return {}
        path = self.folder / STATE_FILE
        try:
            status = path.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
            if stamp != self._stamp:
                self._stamp = stamp
                self._keep(read_regular(path, _MOST_BYTES))
        except FileNotFoundError:
            self._stamp = None
            self._missing(path)
        except OSError as err:
            self._stamp = None
            self._lose(f"state file {path} cannot be read: {err.strerror or err}")
        except ValueError as err:
            self._lose(f"state file {path} cannot be read: {err}; correct it, or remove it to start without it")
        return self._states

    def of(self, name: str) -> ModelState:
        """Return what was decided about one model; raises what `read` raises."""
        return self.read().get(name, ModelState())

    def check(self) -> None:
        """Let a call pass that is about to make a decision.

        Raises:
            NotReady: there is no state folder, or it is lost; nothing that rests on earlier decisions is sure then.
        """
        self.read()
        if self.folder is None:
            reason = "set FOLDSERVE_STATE_DIR to a writable folder"
        elif self.loss is not None:
            reason = self.loss
        else:
            return
        self._metrics.refused_changes.inc()
        raise NotReady(f"decisions about models cannot be kept: {reason}")

    def change(self, name: str, decide: Callable[[ModelState], ModelState]) -> ModelState:
        """Replace what was decided about one model, and return it.

        Args:
            name: the model.
            decide: gives the new state for the one on disk; what it raises leaves everything as it was.

        Raises:
            NotReady: there is no state folder, it is lost or cannot be written, or others hold its lock for too long.
        """
        self.check()
        assert self.folder is not None
        try:
            if not self._is_made:
                self.make()
            with self._locked(self.folder):
                states = dict(self.read())
                states[name] = decide(states.get(name, ModelState()))
                _replace(self.folder / STATE_FILE, write_states(states).encode())
                _sync(self.folder)
                self.read()
        except OSError as err:
            self._metrics.refused_changes.inc()
            raise NotReady(f"state folder {self.folder} cannot be written: {err.strerror or err}") from err
        return states[name]

    def _keep(self, data: bytes) -> None:
        """Take what was read as the decisions that hold."""
        self._states, self._was_read = parse_states(data), True
        self._set_loss(None)
        if self._spare is not None:
            with suppress(OSError):
                _replace(self._spare, data)

    def _missing(self, path: Path) -> None:
        """Tell a file that is gone from one that was never written."""
        assert self.folder is not None
        if self._was_read or (self._spare is not None and self._spare.exists()):
            self._lose(f"state file {path} is gone; put it back, or start the service again to go on without it")
        elif self._is_made and not self.folder.is_dir():
            self._set_loss(f"state folder {self.folder} is gone")
        else:
            self._set_loss(None)

    def _lose(self, reason: str) -> None:
        """Go on with the decisions that were read last, by this process or by another worker.

        Raises:
            ArtifactInvalid: there are none.
        """
        if not self._was_read:
            if self._spare is None or not self._spare.exists():
                raise ArtifactInvalid(reason)
            self._states, self._was_read = parse_states(self._spare.read_bytes()), True
        self._set_loss(reason)

    def _set_loss(self, reason: str | None) -> None:
        if reason == self.loss:
            return
        if reason is None:
            _log.info("decisions about models are read again", extra={"state_dir": str(self.folder)})
        else:
            _log.error("the last decisions about models hold, and none can be made: %s", reason)
        self.loss = reason
        self._metrics.state_lost.set(int(reason is not None))

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Hold the folder's lock; the file is never removed, so that all hold the same one.

        Raises:
            NotReady: others hold it for too long.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(folder / LOCK_FILE, flags, 0o666)
        try:
            until = time.monotonic() + self._lock_seconds
            while not _lock(descriptor):
                if time.monotonic() > until:
                    self._metrics.refused_changes.inc()
                    raise NotReady(
                        f"state folder {folder}: another process has held {LOCK_FILE} for {self._lock_seconds:g} s; "
                        "end it, or try again later"
                    )
                time.sleep(_LOCK_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Try to take the lock; returns whether it is held now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _replace(path: Path, data: bytes) -> None:
    """Replace the file by a whole new one that is on the disk before it has the name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the names in a folder on the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
