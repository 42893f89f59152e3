"""Heads that are known by their bytes, and those that are known but for ids that are new with every request.

Proxies and tracing libraries put such an id into each request (traceparent, X-Request-ID). Nothing else of a head
may differ: what is compared is every byte outside the ids, and an id only by the characters that may stand in one, none
of which can end a line. So a head that is known in this way means what it meant when the parser read it.
"""

import re
from typing import TYPE_CHECKING

from ..request_context import Ids, read_traceparent, safe_request_id

if TYPE_CHECKING:
    from .exchange import RequestHead

_REQUEST_ID, _TRACEPARENT = b"x-request-id", b"traceparent"
# The lane reads the first two of them; neither it nor the application reads the others.
_NAMES = (
    _REQUEST_ID, _TRACEPARENT, b"tracestate", b"b3", b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid",
    b"x-amzn-trace-id", b"x-cloud-trace-context", b"x-correlation-id", b"x-datadog-trace-id", b"x-datadog-parent-id",
    b"sentry-trace", b"uber-trace-id",
)  # fmt: skip
_ID_BYTES = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._:-=;,/@*+"
_ID_LINE = re.compile(rb"\r\n(%b): ([%b]+)(?=\r\n)" % (b"|".join(_NAMES), re.escape(_ID_BYTES)), re.IGNORECASE)


def without_ids(raw: bytes) -> bytes | None:
    """Return the bytes of a head with a zero byte for each id; None where there is no id, or such a byte already."""
    masked, count = _ID_LINE.subn(rb"\r\n\1: \0", raw)
    return masked if count and b"\0" not in raw else None


class KnownHead:
    """One head and the bytes by which it is known again.

    Args:
        raw: all of its bytes, of which the parser made one head.
        head: what they say.

    Attributes:
        prefix: the bytes up to the first id; all of them where there is none.
        is_exact: whether no byte may differ.
        length: bytes of it.
    """

    __slots__ = ("_id", "_ids", "_rest", "_trace", "head", "is_exact", "length", "prefix")

    def __init__(self, raw: bytes, head: "RequestHead") -> None:
        found = list(_ID_LINE.finditer(raw))
        stops = [match.start(2) for match in found] + [len(raw)]
        starts = [match.end(2) for match in found]
        self.head = head
        self.length = len(raw)
        self.prefix = raw[: stops[0]]
        self.is_exact = not found
        self._ids = [slice(*match.span(2)) for match in found]
        self._rest = [(start, raw[start:stop]) for start, stop in zip(starts, stops[1:], strict=True)]
        places = {match[1].lower(): slice(*match.span(2)) for match in found}
        self._id, self._trace = places.get(_REQUEST_ID), places.get(_TRACEPARENT)

    def begins(self, data: bytes) -> bool:
        """Return whether some bytes begin with this head, whatever its ids are."""
        return data.startswith(self.prefix) and (self.is_exact or self.fits(data))

    def fits(self, data: bytes) -> bool:
        """Return whether what follows the prefix is that of this head, whatever its ids are."""
        for start, literal in self._rest:
            if not data.startswith(literal, start):
                return False
        return not any(data[place].translate(None, _ID_BYTES) for place in self._ids)

    def ids(self, data: bytes) -> Ids:
        """Return the client's own ids in bytes that begin with this head."""
        request_id, traceparent = self.head.ids
        if self._id is not None:
            request_id = safe_request_id(data[self._id])
        if self._trace is not None:
            traceparent = read_traceparent(data[self._trace])
        return request_id, traceparent
