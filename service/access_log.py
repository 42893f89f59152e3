"""A line for each request, where an operator asks for that: JSON as every line of the log, and rationed.

Off by default: the metrics count everything, and a line costs more than an answer of a small model. What goes beyond
the rate is left out, and the next line says how many were.
"""

import logging
from typing import Any

from .rates import TokenBucket

_log = logging.getLogger("foldserve.access")


class AccessLog:
    """The lines of one process.

    Args:
        rate: lines a second; 0 writes none.

    Attributes:
        is_on: whether any line is written.
    """

    def __init__(self, rate: float = 0.0) -> None:
        self.is_on = rate > 0
        self._bucket = TokenBucket(rate)
        self._left_out = 0

    def note(self, route: str, status: int, seconds: float, **known: Any) -> None:
        """Write one line, if it is its turn.

        Args:
            route: the route's own pattern, never the path of the request.
            status: of the answer in HTTP; 0 when the client had gone.
            seconds: from the request's arrival to its answer.
            known: what else is: request_id, trace_id, model, version, rows, key, address; None is left out.
        """
        if not self.is_on:
            return
        if self._bucket.take():
            self._left_out += 1
            return
        fields = {"route": route, "status": status, "ms": round(seconds * 1000, 3)}
        fields |= {name: value for name, value in known.items() if value is not None}
        if self._left_out:
            fields["left_out"], self._left_out = self._left_out, 0
        _log.info("access", extra=fields)
