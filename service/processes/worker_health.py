"""One worker process as its supervisor sees it: whether it answers, for how long it has served, when the next comes.

Never waits for an answer: who did would not see another worker's end meanwhile, nor this one's.
"""

import logging
import time

from uvicorn.supervisors.multiprocess import Process

from .starvation import CpuStarvation

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.5  # between two looks, and between two questions

_START_SECONDS = 120.0  # until a worker answers pings: reading its modules from a slow disk is no hang
_STEADY_SECONDS = 1.0  # a worker that served so long was not killed by its own start
_LONGEST_PAUSE_SECONDS = 30.0


class WorkerHealth:
    """From its start to its end.

    Args:
        process: has been started.
        short_runs: how many before it, one after the other, ended before they had served.
        starvation: what the process's first thread, which is its event loop's, waits for cores.
    """

    def __init__(self, process: Process, short_runs: int = 0, starvation: CpuStarvation | None = None) -> None:
        self.process = process
        self.short_runs = short_runs
        self.restart_at = 0.0
        self.is_reported = False
        self.awaits_answer = False  # an answer
        self._has_answered = False
        self._serves_since: float | None = None
        self._waited_seconds = 0.0
        self._looked_at = self._ask_at = time.monotonic()
        self._starvation = starvation or CpuStarvation(process.pid or 0, process.pid)

    @property
    def has_served(self) -> bool:
        """Whether it has said that its server is up."""
        return self._serves_since is not None

    def check(self, limit_seconds: float, now: float) -> bool:
        """Take a look: take an answer that came, ask when it is time; False when one was due for too long.

        Time counts only as far as the supervisor looked and the worker had a core: neither a service that was stopped
        as a whole nor a worker that is starved hangs.

        Args:
            limit_seconds: for an answer of a worker that has answered before.
            now: on the clock of `time.monotonic`.
        """
        elapsed, self._looked_at = min(now - self._looked_at, TICK_SECONDS), now
        waited = self._starvation.seconds()
        try:
            if self.awaits_answer and self.process.parent_conn.poll(0):
                self._take(self.process.parent_conn.recv(), now)
            elif self.awaits_answer:
                self._waited_seconds = max(0.0, self._waited_seconds + elapsed - waited)
            if not self.awaits_answer and now >= self._ask_at:
                self.process.parent_conn.send(b"ping")
                self.awaits_answer, self._ask_at = True, now + TICK_SECONDS
        except (OSError, EOFError):
            return False
        return self._waited_seconds < (limit_seconds if self._has_answered else _START_SECONDS)

    def restart_pause(self, now: float) -> float:
        """Seconds until the next one may be started: none after a life that served, more after each that did not."""
        served = now - self._serves_since if self._serves_since is not None else 0.0
        self.short_runs = 0 if served >= _STEADY_SECONDS else self.short_runs + 1
        pause = 0.0 if self.short_runs < 2 else min(2.0 ** (self.short_runs - 2), _LONGEST_PAUSE_SECONDS)
        self.restart_at = now + pause
        return pause

    def _take(self, is_up: bool, now: float) -> None:
        self.awaits_answer, self._waited_seconds = False, 0.0
        if not self._has_answered:
            self._has_answered = True
            logger.debug("worker answers", extra={"worker": self.process.pid})
        if is_up and self._serves_since is None:
            self._serves_since = now
