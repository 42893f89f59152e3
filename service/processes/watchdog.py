"""Ends a process that hangs: its event loop stands still, or a batch never returns.

Neither can be seen from outside: the port is open, connections are accepted, and a container that is merely unhealthy
is not restarted. So the process logs where each thread stands and ends, and a supervisor or the container's restart
policy starts another. C code that keeps the interpreter's lock stops this too; the supervisor's pings are for that.
"""

import asyncio
import logging
import os
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from foldserve.exit_codes import HUNG

from .starvation import CpuStarvation

logger = logging.getLogger(__name__)

_BEAT_SECONDS = 0.5


class Watchdog:
    """A beat on the event loop that notes which batches run, and a thread that checks the beat and the batches.

    Time is counted in checks rather than read from a clock: a process that was stopped has not checked meanwhile, and
    goes on. A check counts as far as the threads that should have moved had a core: on a starved machine the thread
    that checks gets its turn long before a loop that is busy does.

    Args:
        limit_seconds: how long loop and batches may stand still; 0 disables the watchdog.
        running: the number of the batch that runs outside the loop now, by the name of its model.
        end: called with the reason.
    """

    def __init__(
        self,
        limit_seconds: float,
        running: Callable[[], Mapping[str, int]],
        end: Callable[[str], None] | None = None,
    ) -> None:
        self._limit_seconds = limit_seconds
        self._running = running
        self._end = end or end_process
        self._beats = 0
        self._noted: Mapping[str, int] = {}  # what ran at the last beat
        self._still: dict[str, _Still] = {}
        self._is_over = threading.Event()
        self._batch_wait = CpuStarvation(os.getpid())

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """Watch the running loop until the block is left."""
        beat = asyncio.create_task(self._beat())
        if self._limit_seconds > 0:
            wait = CpuStarvation(os.getpid(), threading.get_native_id())  # of the loop's thread, which this is
            threading.Thread(target=self._check, args=(wait,), name="watchdog", daemon=True).start()
        try:
            yield
        finally:
            self._is_over.set()
            beat.cancel()

    async def _beat(self) -> None:
        while True:
            if self._limit_seconds > 0:
                self._noted = dict(self._running())
            self._beats += 1
            await asyncio.sleep(_BEAT_SECONDS)

    def _check(self, wait: CpuStarvation) -> None:
        """Check again and again. Not on the loop: a hundred models have as many threads, and a file for each."""
        still, checked = _Still(), 0
        while not self._is_over.wait(_BEAT_SECONDS):
            beats = self._beats
            if still.seconds(beats, wait.seconds()) >= self._limit_seconds:
                self._end(f"the event loop has not moved for {self._limit_seconds:g} s")
            if beats != checked:  # what an older beat has noted says nothing of now
                checked = beats
                self._check_batches(self._noted)

    def _check_batches(self, running: Mapping[str, int]) -> None:
        waited = self._batch_wait.seconds() if running else 0.0
        self._still = {name: self._still.get(name) or _Still() for name in running}
        for name, batch in running.items():
            if self._still[name].seconds(batch, waited) >= self._limit_seconds:
                self._end(f"a batch of {name!r} has run for {self._limit_seconds:g} s")


class _Still:
    """For how many checks a number has stayed the same."""

    def __init__(self) -> None:
        self._last = -1
        self._seconds = 0.0

    def seconds(self, number: int, waited: float) -> float:
        """Check once; returns the seconds since this number was first seen, less what was waited for a core."""
        self._seconds = max(0.0, self._seconds + _BEAT_SECONDS - waited) if number == self._last else 0.0
        self._last = number
        return self._seconds


def end_process(reason: str) -> None:
    """Log where every thread stands, and end at once: nothing can be drained any more."""
    logger.critical("%s; the process ends", reason, extra={"stacks": stacks()})
    os._exit(HUNG)


def stacks() -> dict[str, list[str]]:
    """Return the calls that each thread is in, innermost last, by the thread's name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        names.get(ident, str(ident)): [
            f"{call.filename}:{call.lineno} {call.name}" for call in traceback.extract_stack(frame)
        ]
        for ident, frame in sys._current_frames().items()
    }
