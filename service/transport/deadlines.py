"""How long a connection may take for what it does: where its receiving side stands, since when, what is overdue.

Numbers in, verdicts out; knows no socket and reads no clock. Times are seconds on the clock of the event loop.
"""

from enum import Enum, IntEnum, auto

from ..errors import NotReady, RequestTimeout, ServiceError
from .limits import ConnectionLimits

# Idle connections stay this long after the service began to end: a request that was on its way is still answered.
_IDLE_DRAIN_SECONDS = 0.3


class Phase(IntEnum):
    """Where the receiving side of a connection stands, as in h11; from `MUST_CLOSE` on nothing more is read."""

    NEW = 0  # not one byte was received
    HEAD = 1
    BODY = 2
    IDLE = 3  # between requests
    MUST_CLOSE = 4  # the last request was received; answers may still be due
    CLOSED = 5  # all answers are written


class Overdue(Enum):
    """What to do about a connection to which nothing can be said any more."""

    CLOSE = auto()
    ABORT = auto()


class Deadlines:
    """The deadlines of one connection.

    Args:
        limits: how long everything may take.
        keep_alive_seconds: how long a connection may rest between requests.
        now: when the connection was made.

    Attributes:
        phase: where the connection stands.
        since: when that began, or the last answer was sent.
        body_bytes: of the request that is being received, so far.
    """

    __slots__ = (
        "_body_due",
        "_counted_bytes",
        "_keep_alive_seconds",
        "_limits",
        "_unread_bytes",
        "_unread_since",
        "body_bytes",
        "phase",
        "since",
    )

    def __init__(self, limits: ConnectionLimits, keep_alive_seconds: float, now: float) -> None:
        self.phase = Phase.NEW
        self.since = now
        self.body_bytes = 0
        self._limits = limits
        self._keep_alive_seconds = keep_alive_seconds
        self._body_due = 0.0  # when the body is late, unless more of it is received before
        self._counted_bytes = 0  # of the body, which have moved that on
        self._unread_since: float | None = None
        self._unread_bytes = 0

    def enter(self, phase: Phase, now: float) -> None:
        """Begin a phase; the clock of a first request's headers has run since the connection was made."""
        if not (self.phase is Phase.NEW and phase is Phase.HEAD):
            self.since = now
        if phase is Phase.BODY:
            self.body_bytes = self._counted_bytes = 0
            self._body_due = now + self._limits.body_seconds
        self.phase = phase

    def excuse(self, seconds: float) -> None:
        """Give a body as much more time: it is we who did not read."""
        self.since += seconds
        self._body_due += seconds

    def is_body_late(self, now: float) -> bool:
        """Return whether a body stands still, or comes slower than its least rate; to be called every moment.

        Each byte moves the end of its time on, but never further than `body_seconds` from now: what was sent fast at
        first is no leave to stand still for long.
        """
        gained = (self.body_bytes - self._counted_bytes) / self._limits.body_bytes_per_second
        self._counted_bytes = self.body_bytes
        self._body_due = min(self._body_due + gained, now + self._limits.body_seconds)
        return now > self._body_due

    def overdue(
        self, now: float, *, is_answer_due: bool, draining_since: float | None
    ) -> ServiceError | Overdue | None:
        """Return how to refuse the request that takes too long, or what else to do; None when all is in time.

        Args:
            now: the time.
            is_answer_due: whether a request that was received waits for its answer.
            draining_since: when the service began to end.
        """
        phase, limits, elapsed = self.phase, self._limits, now - self.since
        if phase is Phase.CLOSED:
            return Overdue.ABORT if elapsed > limits.linger_seconds else None
        if phase is Phase.HEAD and elapsed > limits.header_seconds:
            return RequestTimeout(f"headers: not complete after {elapsed:.1f} s, send them at once")
        if phase is Phase.BODY and self.is_body_late(now):
            got = f"got {self.body_bytes} bytes in {elapsed:.1f} s"
            return RequestTimeout(f"body: {got}, expected all of it sooner: send it at once")
        if phase in (Phase.NEW, Phase.IDLE) and not is_answer_due:
            allowed = limits.header_seconds if phase is Phase.NEW else self._keep_alive_seconds
            if elapsed > allowed:
                return Overdue.CLOSE
        if draining_since is None or phase is Phase.MUST_CLOSE:
            return None
        return self._overdue_in_drain(now - draining_since, is_answer_due=is_answer_due)

    def _overdue_in_drain(self, elapsed: float, *, is_answer_due: bool) -> ServiceError | Overdue | None:
        if self.phase in (Phase.HEAD, Phase.BODY):
            is_late = elapsed > self._limits.drain_seconds
            return NotReady("the service is shutting down; ask again") if is_late else None
        return Overdue.CLOSE if elapsed > _IDLE_DRAIN_SECONDS and not is_answer_due else None

    def is_read_too_slowly(self, now: float, unread_bytes: int) -> bool:
        """Return whether answers have waited in our memory for longer than their reader's speed excuses.

        Args:
            now: the time.
            unread_bytes: how much waits now.
        """
        if not unread_bytes:
            self._unread_since = None
            return False
        if self._unread_since is None:
            self._unread_since, self._unread_bytes = now, unread_bytes
        self._unread_bytes = max(self._unread_bytes, unread_bytes)
        read = self._unread_bytes - unread_bytes
        allowed = self._limits.write_seconds + read / self._limits.write_bytes_per_second
        return now - self._unread_since > allowed
