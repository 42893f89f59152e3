"""Answers of the fast lane are noted one by one and counted in bulk, before somebody reads the metrics."""

from collections.abc import Sequence

from ..access_log import AccessLog
from ..metrics import Metrics
from ..tracing import Tracing

_MAX_NOTED = 4_096  # answers that are noted before they are counted


class AnswerCounts:
    """The answers of one server.

    Args:
        metrics: where they are counted.
        access_log: told of each, if it is on.
        tracing: the same.
    """

    def __init__(self, metrics: Metrics, access_log: AccessLog, tracing: Tracing) -> None:
        self._metrics = metrics
        self.access_log = access_log
        self.tracing = tracing
        self._noted: dict[tuple[str, int], list[float]] = {}  # by route and status: seconds
        metrics.before_reading.append(self.count)

    def note(self, route: str, seconds: Sequence[float], status: int = 200) -> None:
        """Remember to count some answers.

        Args:
            route: the route's own pattern.
            seconds: from each request's arrival to its answer.
            status: of all of them.
        """
        noted = self._noted.get((route, status))
        if noted is None:
            noted = self._noted[route, status] = []
        noted.extend(seconds)
        self._metrics.has_news()
        if len(noted) >= _MAX_NOTED:
            self.count()

    def count(self) -> None:
        """Bring the metrics up to date."""
        all_noted, self._noted = self._noted, {}
        for (route, status), seconds in all_noted.items():
            self._metrics.observe_requests(route, "POST", status, seconds)
