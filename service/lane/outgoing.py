"""What all answers of the fast lane share: the server's own header lines, request ids, counts, the log of refusals.

Knows neither models nor connections.
"""

import itertools
import secrets
from collections.abc import Sequence

from ..metrics import Metrics
from ..observe import RefusalLog

_MOST_NOTED = 4_096  # answers that are noted before they are counted
_MOST_WRITTEN = 20_000  # microseconds whose text is remembered


class Outgoing:
    """Shared by the answers of one server.

    Args:
        metrics: told of answers in bulk.
        refusals: told of every request that is refused for our own reasons.
    """

    def __init__(self, metrics: Metrics, refusals: RefusalLog) -> None:
        self.refusals = refusals
        self._metrics = metrics
        self._answered: dict[tuple[str, int], list[float]] = {}  # by route and status: seconds, not counted yet
        self._id_start = secrets.token_hex(4).encode()
        self._ids = itertools.count(secrets.randbelow(1 << 31))
        self._default_headers: list[tuple[bytes, bytes]] | None = None
        self._default_lines = b""
        self._written: dict[int, bytes] = {}
        metrics.before_reading.append(self.count)

    def new_id(self) -> bytes:
        """Return a request id that this process has not given before; a system call for each would cost more."""
        return b"%b%08x" % (self._id_start, next(self._ids) & 0xFFFFFFFF)

    def default_lines(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return the server's own headers as they are written; the server makes a new list each second."""
        if headers is not self._default_headers:
            self._default_headers = headers
            self._default_lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return self._default_lines

    def milliseconds(self, seconds: float) -> bytes:
        """Return a duration in milliseconds, as `Server-Timing` wants it, with three places."""
        microseconds = int(seconds * 1e6)
        text = self._written.get(microseconds)
        if text is None:
            text = b"%.3f" % (microseconds / 1e3)
            if microseconds < _MOST_WRITTEN:
                self._written[microseconds] = text
        return text

    def note(self, route: str, seconds: Sequence[float], status: int = 200) -> None:
        """Remember to count some answers.

        Args:
            route: the route's own pattern.
            seconds: from each request's arrival to its answer.
            status: of all of them.
        """
        answered = self._answered.get((route, status))
        if answered is None:
            answered = self._answered[route, status] = []
        answered.extend(seconds)
        self._metrics.has_news()
        if len(answered) >= _MOST_NOTED:
            self.count()

    def count(self) -> None:
        """Bring the metrics up to date."""
        noted, self._answered = self._answered, {}
        for (route, status), answered in noted.items():
            self._metrics.observe_requests(route, "POST", status, answered)
