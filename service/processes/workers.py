"""What the worker processes of one service share: a folder that the supervisor makes and removes.

Each worker takes a numbered place in it for as long as it lives and counts in that place's files, so that a worker
that was killed leaves its counts to the one that replaces it. Holds no requests and no tensors: every worker has
sessions of its own.
"""

import contextlib
import fcntl
import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from .room import say_once

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)

_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - the folder within it is made by mkdtemp, for this user alone
_LEAST_BYTES = 4 * 1024 * 1024  # for the metrics of some workers
_LEAST_FILES = 100
GRACE_SECONDS = 5.0  # over the time to drain, until a process is ended by force
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Workers:
    """The folder; a plain value, so that it can be given to a process that is spawned.

    Args:
        folder: exists until `remove`.
    """

    folder: Path

    @classmethod
    def create(cls) -> "Workers":
        """Make an empty folder, in memory where that has room.

        Raises:
            OSError: it cannot be made anywhere.
        """
        return cls(private_folder(_place_with_room()))

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def join(self, drain_seconds: float) -> int:
        """Make this process one of the workers: it counts in its place's files, and ends when its parent has ended.

        Call it before the first metric is made. Counters go on from where the place's last worker left them; gauges,
        which were that worker's own, start again.

        Args:
            drain_seconds: how long running requests may take once the parent has ended.

        Returns:
            The place, from 0; it is free again when the process ends, however it does.
        """
        from .metric_files import count_in

        place, _ = self._take_place()
        self._forget_gauges(place)
        count_in(self.folder, place)
        parent = multiprocessing.parent_process()
        if parent is not None:
            ending = threading.Thread(
                target=self._end_with, args=(parent, drain_seconds), name="end-with-parent", daemon=True
            )
            ending.start()
        return place

    def totals(self) -> "CollectorRegistry":
        """Return a registry that gives the counts of all workers, and each worker's gauges under its place."""
        from .metric_files import totals

        return totals(self.folder)

    def forget_gone(self) -> None:
        """Take the gauges of free places out of the metrics; counts stay."""
        for lock in self.folder.glob("place-*"):
            with lock.open("r+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                self._forget_gauges(int(lock.name.removeprefix("place-")))

    def decide(self, question: str, answer: Callable[[], str]) -> str:
        """Return what the first worker answered; the others wait for it.

        What is measured can come out differently each time, and all workers have to give the same bytes. Where the
        answer cannot be kept it is an empty text, in every worker.
        """
        try:
            return self._decided(question, answer)
        except OSError as err:
            say_once(self.folder / question, err)
            return ""

    def _decided(self, question: str, answer: Callable[[], str]) -> str:
        with (self.folder / f"decided-{question}").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            decided = file.read()
            if not decided.endswith("\n"):  # there is no answer, or only half of one
                file.truncate(0)
                decided = answer() + "\n"
                file.write(decided)
                file.flush()
        return decided.removesuffix("\n")

    def is_first(self, event: str) -> bool:
        """Whether no worker has had this event before: what goes wrong in all of them is logged once."""
        try:
            (self.folder / f"event-{event}").touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError as err:
            say_once(self.folder / event, err)
        return True

    def leave(self) -> None:
        """Let every worker know that none of them is to stay: the whole service ends."""
        try:
            self._leaving.touch()
        except OSError as err:
            say_once(self._leaving, err)

    def are_leaving(self) -> bool:
        """Whether the whole service ends, rather than one worker of it."""
        return self._leaving.exists()

    @property
    def _leaving(self) -> Path:
        return self.folder / "leaving"

    def _take_place(self) -> tuple[int, int]:
        """Hold the first free place; returns it and the descriptor that holds it."""
        place = 0
        while True:
            descriptor = os.open(self.folder / f"place-{place}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                place += 1
            else:
                with contextlib.suppress(OSError):  # a full disk: the metrics lack this process, and nothing else
                    os.truncate(descriptor, 0)
                    os.write(descriptor, str(os.getpid()).encode())
                return place, descriptor

    def _forget_gauges(self, place: int) -> None:
        for gauges in self.folder.glob(f"gauge_*_{place}.db"):
            gauges.unlink(missing_ok=True)

    def _end_with(self, parent: BaseProcess, drain_seconds: float) -> None:
        """Wait for the parent's end, then drain; nothing else could end this process or replace it."""
        while os.getppid() == parent.pid:  # its pipes do not tell: other workers may hold copies of their ends
            time.sleep(_POLL_SECONDS)
        logger.error("the supervisor has ended, this worker ends")
        os.kill(os.getpid(), signal.SIGTERM)
        self.remove()
        time.sleep(drain_seconds + GRACE_SECONDS)
        os._exit(1)


def _place_with_room() -> Path:
    """Return where workers share files: memory, else the place for temporary files, else whichever has more room."""
    places = [place for place in (_IN_MEMORY, Path(tempfile.gettempdir())) if os.access(place, os.W_OK)]
    free = {place: _free_bytes(place) for place in places}
    enough = [place for place in places if free[place] >= _LEAST_BYTES]
    if not enough:
        least = _LEAST_BYTES >> 20
        logger.error("no place has %d MiB of room for what workers share: %s", least, _listed(free))
        return max(places, key=free.__getitem__, default=Path(tempfile.gettempdir()))
    if enough[0] != places[0]:
        logger.warning("workers share files in %s, since there is no room: %s", enough[0], _listed(free))
    return enough[0]


def _free_bytes(place: Path) -> int:
    """Return the room of a place; none where it can hold no more files, whatever their size."""
    status = os.statvfs(place)
    if status.f_files and status.f_favail < _LEAST_FILES:
        return 0
    return status.f_bavail * status.f_frsize


def _listed(free: dict[Path, int]) -> str:
    return ", ".join(f"{place} has {room >> 10} KiB" for place, room in free.items())


def private_folder(parent: Path | None = None) -> Path:
    """Make an empty folder that only this user can enter.

    Args:
        parent: where; None takes memory where the system has such a place, else the place for temporary files.
    """
    if parent is None and os.access(_IN_MEMORY, os.W_OK):
        parent = _IN_MEMORY
    return Path(tempfile.mkdtemp(prefix="foldserve-", dir=parent))
