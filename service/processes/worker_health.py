"""One worker process as its supervisor sees it: whether it answers, for how long it has served, when to replace it.

Never waits for an answer: meanwhile the end of a worker would not be seen.
"""

import logging
import time

from uvicorn.supervisors.multiprocess import Process

from .starvation import CpuStarvation

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.5  # between two checks, and between two pings

_START_SECONDS = 120.0  # until a worker answers pings: reading its modules from a slow disk is no hang
_STEADY_SECONDS = 1.0  # a worker that served so long was not killed by its own start
_LONGEST_PAUSE_SECONDS = 30.0


class WorkerHealth:
    """The health of one worker, from its start to its end.

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
        self.awaits_answer = False
        self._has_answered = False
        self._serves_since: float | None = None
        self._waited_seconds = 0.0
        self._checked_at = self._ping_at = time.monotonic()
        self._starvation = starvation or CpuStarvation(process.pid or 0, process.pid)

    @property
    def has_served(self) -> bool:
        """Whether its server has been up."""
        return self._serves_since is not None

    def check(self, limit_seconds: float, now: float) -> bool:
        """Take an answer that is there, send a ping when it is time; returns False when an answer is overdue.

        Time counts only as far as the supervisor checked and the worker had a core: neither a service that was stopped
        as a whole nor a worker that is starved hangs.

        Args:
            limit_seconds: for an answer of a worker that has answered before.
            now: on the clock of `time.monotonic`.
        """
        elapsed, self._checked_at = min(now - self._checked_at, TICK_SECONDS), now
        waited = self._starvation.seconds()
        try:
            if self.awaits_answer and self.process.parent_conn.poll(0):
                self._take(self.process.parent_conn.recv(), now)
            elif self.awaits_answer:
                self._waited_seconds = max(0.0, self._waited_seconds + elapsed - waited)
            if not self.awaits_answer and now >= self._ping_at:
                self.process.parent_conn.send(b"ping")
                self.awaits_answer, self._ping_at = True, now + TICK_SECONDS
        except (OSError, EOFError):
            return False
        return self._waited_seconds < (limit_seconds if self._has_answered else _START_SECONDS)

    def restart_pause(self, now: float) -> float:
        """Seconds until the next one may be started: none after a worker that served, more after each that did not."""
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
            logger.debug("worker serves", extra={"worker": self.process.pid})
