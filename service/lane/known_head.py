"""Heads that are known by their bytes, and those that are known but for ids that are new with every request.

Proxies and tracing libraries put such an id into each request (traceparent, X-Request-ID). Nothing else of a head
may differ: what is compared is every byte outside the ids, and an id only by the characters that may stand in one, none
of which can end a line. So a head that is known in this way means what it meant when the parser read it.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..bounded_dict import BoundedDict
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

_MAX_HEADS = 4_096  # that are remembered, of either kind; each is small, and few clients write more than one
_MAX_HEAD_BYTES = 2_048
_MAX_PLACES = 4  # in which heads of one length have their ids


class IdPlaces:
    """Where the ids stand in heads of one length.

    Args:
        spans: beginning and end of each, in order.
    """

    __slots__ = ("_first", "_rest", "spans")

    def __init__(self, spans: Sequence[tuple[int, int]]) -> None:
        self.spans = tuple(spans)
        stops = [start for start, _ in spans[1:]]
        self._first = slice(spans[0][0])
        self._rest = [
            (b"\0" * (stop - start), slice(stop, end)) for (start, stop), end in zip(spans, [*stops, None], strict=True)
        ]

    def without_ids(self, raw: bytes) -> bytes:
        """Return a head with zero bytes in these places."""
        parts = [raw[self._first]]
        for zeros, piece in self._rest:
            parts += zeros, raw[piece]
        return b"".join(parts)


class KnownHead:
    """One head and the bytes by which it is known again.

    Args:
        raw: all of its bytes, of which the parser made one head.
        head: what they say.

    Attributes:
        prefix: the bytes up to the first id; all of them where there is none.
        length: bytes of it.
        places: of its ids; None where no byte may differ.
    """

    __slots__ = ("_id", "_literals", "_others", "_trace", "head", "length", "places", "prefix")

    def __init__(self, raw: bytes, head: "RequestHead") -> None:
        found = list(_ID_LINE.finditer(raw))
        spans = [match.span(2) for match in found]
        stops = [start for start, _ in spans] + [len(raw)]
        self.head = head
        self.length = len(raw)
        self.prefix = raw[: stops[0]]
        self.places = IdPlaces(spans) if spans else None
        self._literals = [(start, raw[start:stop]) for (_, start), stop in zip(spans, stops[1:], strict=True)]
        places = [(match[1].lower(), slice(*match.span(2))) for match in found]
        read = dict(places)
        self._id, self._trace = read.get(_REQUEST_ID), read.get(_TRACEPARENT)
        self._others = [place for name, place in places if name not in (_REQUEST_ID, _TRACEPARENT)]

    def read(self, data: bytes) -> Ids | None:
        """Return the client's own ids in bytes that begin with the prefix; None where another head follows it."""
        for start, literal in self._literals:
            if not data.startswith(literal, start):
                return None
        return self.ids(data)

    def ids(self, data: bytes) -> Ids | None:
        """Return the client's own ids in bytes that begin with this head but for what is in their places.

        None where that is no id, so that it is another head.
        """
        request_id, traceparent = self.head.ids
        if self._trace is not None:
            value = data[self._trace]
            traceparent = read_traceparent(value)
            if traceparent is None and not _is_id(value):
                return None
        if self._id is not None:
            value = data[self._id]
            request_id = safe_request_id(value)
            if request_id is None and not _is_id(value):
                return None
        for place in self._others:
            if not _is_id(data[place]):
                return None
        return request_id, traceparent


class KnownHeads:
    """All heads that are known, whichever connection has sent them."""

    def __init__(self) -> None:
        self._exact: BoundedDict[bytes, KnownHead] = BoundedDict(_MAX_HEADS)
        self._with_ids: BoundedDict[bytes, KnownHead] = BoundedDict(_MAX_HEADS)
        self._places: dict[int, tuple[IdPlaces, ...]] = {}  # by the length of a head, most of which are short

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._exact) + len(self._with_ids)

    def forget(self) -> None:
        """Forget all of them: what they mean has changed."""
        self._exact.clear()
        self._with_ids.clear()
        self._places.clear()

    def add(self, raw: bytes, head: "RequestHead") -> None:
        """Know these very bytes again, whatever the ids in them are; a zero byte of the client's stands for no id."""
        if len(raw) > _MAX_HEAD_BYTES or b"\0" in raw:
            return
        known = KnownHead(raw, head)
        places = known.places
        if places is None:
            self._exact[raw] = known
            return
        self._with_ids[places.without_ids(raw)] = known
        others = [other for other in self._places.get(len(raw), ()) if other.spans != places.spans]
        self._places[len(raw)] = (places, *others[: _MAX_PLACES - 1])

    def find(self, raw: bytes) -> tuple[KnownHead, Ids] | None:
        """Return the head that is made of these bytes and the ids in it, if it is known."""
        known = self._exact.get(raw)
        if known is not None:
            return known, known.head.ids
        for places in self._places.get(len(raw), ()):
            known = self._with_ids.get(places.without_ids(raw))
            if known is not None and (ids := known.ids(raw)) is not None:
                return known, ids
        return None


def _is_id(value: bytes) -> bool:
    return not value.translate(None, _ID_BYTES)
