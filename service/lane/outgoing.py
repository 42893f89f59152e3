"""What all answers of the fast lane share: the server's own header lines, counts, the log of errors.

Knows neither models nor connections.
"""

from collections.abc import Sequence

from ..error_answers import ErrorLog
from ..metrics import Metrics

_MOST_NOTED = 4_096  # answers that are noted before they are counted


class Outgoing:
    """Shared by the answers of one server.

    Args:
        metrics: told of answers in bulk.
        error_log: told of every request that gets an error.
    """

    def __init__(self, metrics: Metrics, error_log: ErrorLog) -> None:
        self.error_log = error_log
        self._metrics = metrics
        self._answered: dict[tuple[str, int], list[float]] = {}  # by route and status: seconds, not counted yet
        self._default_headers: list[tuple[bytes, bytes]] | None = None
        self._default_lines = b""
        metrics.before_reading.append(self.count)

    def default_lines(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return the server's own headers as they are written; the server makes a new list each second."""
        if headers is not self._default_headers:
            self._default_headers = headers
            self._default_lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return self._default_lines

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
