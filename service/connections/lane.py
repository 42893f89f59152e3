"""The fast lane: `/predict` and the infer route from the socket to the batcher and back, with no ASGI cycle between.

What all connections share of it: which requests it takes, what answers them, and what was counted. It takes only
requests that hold nothing unusual; whatever else comes, and every other route, goes to the application as before, and
both give the same answers. Nothing is done for each request that can be done for each batch, and a head that was read
before is not read again.
"""

import asyncio
import itertools
import re
import secrets
from dataclasses import dataclass

from service.batching.request import Request
from service.bodies.budget import BodyBudget
from service.bodies.limits import Limits
from service.connections.predict import Predict
from service.connections.wire import REQUEST_ID
from service.errors import NotReady, ServiceError, Unsupported
from service.live.registry import Registry
from service.metrics import Metrics
from service.observe import RefusalLog
from service.settings import Settings
from service.v2.fast import Infer, can_take
from service.v2.readers import Readers

INFER_ROUTE = "/v2/models/{model}/infer"
VERSION_ROUTE = "/v2/models/{model}/versions/{version}/infer"

LANE = "lane"  # the key of the lifespan's state

_MOST_HEADS = 4_096  # heads that are remembered; each is small, and few clients write more than one
_LONGEST_HEAD = 2_048
_MOST_NOTED = 4_096

# Headers that change how a request is to be read or answered, in ways that the lane leaves to the application.
_UNUSUAL = {b"content-encoding", b"transfer-encoding", b"expect", b"upgrade", b"authorization", b"x-api-key"}
_DEADLINE = re.compile(rb"[0-9]{1,9}")
_LENGTH = re.compile(rb"[0-9]{1,18}")

Route = Predict | Infer


@dataclass(slots=True)
class Head:
    """What the headers of a request say, all of it; equal bytes mean an equal head."""

    target: bytes
    media_type: str
    length: int
    header_length: int | None
    deadline_seconds: float | None
    request_id: bytes | None
    keep_alive: bool


class Lane:
    """What all connections of one server share on the fast lane.

    Args:
        registry: where the models are, loaded.
        settings: limits and the default deadline.
        metrics: told of answers in bulk.
        budget: bytes of bodies that may be held while they arrive; those that wait are bounded by their rows.
        readers: read the requests of the infer route.
        refusals: told of every request that is refused for our own reasons.
        is_open: whether a request may predict without a key; if not, all go by the application, which asks for it.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        metrics: Metrics,
        budget: BodyBudget,
        readers: Readers,
        refusals: RefusalLog,
        *,
        is_open: bool = True,
    ) -> None:
        self.registry = registry
        self.budget = budget
        self.heads: dict[bytes, Head] = {}
        self.default_deadline = settings.default_deadline_ms / 1000
        self._limits = Limits(settings.max_rows, settings.max_image_pixels)
        self._is_open = is_open
        self.targets: dict[bytes, Route] = {}
        self._readers = readers
        self.find_targets()
        registry.changed.append(self.find_targets)
        self._metrics = metrics
        self.refusals = refusals
        self._answered: dict[tuple[str, int], list[float]] = {}  # by route and status: seconds, not counted yet
        self._failed: list[tuple[Request, ServiceError]] = []
        self._id_start = secrets.token_hex(4).encode()
        self._ids = itertools.count(secrets.randbelow(1 << 31))
        self._default_headers: list[tuple[bytes, bytes]] | None = None
        self._default_lines = b""
        metrics.before_reading.append(self.count)

    def find_targets(self) -> None:
        """Look again at what answers: a pointer has moved, or a version has come or gone."""
        self.heads.clear()
        self.targets = _targets(self.registry, self._limits, self._readers) if self._is_open else {}

    def route_for(self, head: Head) -> Route:
        """Return what answers a request now; another version may, since its head was read.

        Raises:
            NotReady: nothing on the lane does any more.
        """
        route = self.targets.get(head.target)
        if route is None:
            raise NotReady("the models changed while the request arrived; send it again")
        return route

    def read_head(self, target: bytes, headers: list[tuple[bytes, bytes]], *, keep_alive: bool) -> Head | None:
        """Return what a POST asks for, or None when the application has to see it.

        Args:
            target: the request target as it came.
            headers: names in lower case.
            keep_alive: whether the connection goes on afterwards.
        """
        route = self.targets.get(target)
        if route is None:
            return None
        found = dict(headers)
        if len(found) != len(headers) or not _UNUSUAL.isdisjoint(found):  # a header came twice, or is not for us
            return None
        if b"q=0" in found.get(b"accept-encoding", b""):  # it may refuse answers that are not compressed
            return None
        deadline = found.get(b"x-deadline-ms")
        if deadline is not None and not (_DEADLINE.fullmatch(deadline) and int(deadline)):
            return None
        header_length = found.get(b"inference-header-content-length")
        if header_length is not None and not _LENGTH.fullmatch(header_length):
            return None
        media_type = found.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
        length = int(found.get(b"content-length", b"0"))
        if not route.takes(media_type, length):
            return None
        request_id = found.get(b"x-request-id")
        if request_id is not None and not REQUEST_ID.fullmatch(request_id):
            request_id = None
        return Head(
            target,
            media_type,
            length,
            int(header_length) if header_length else None,
            int(deadline) / 1000 if deadline else None,
            request_id,
            keep_alive,
        )

    def remember(self, raw: bytes, head: Head) -> None:
        """Know these very bytes again."""
        if len(raw) <= _LONGEST_HEAD:
            if len(self.heads) >= _MOST_HEADS:
                self.heads.clear()
            self.heads[raw] = head

    def new_id(self) -> bytes:
        """Return a request id that this process has not given before; a system call for each would cost more."""
        return b"%b%08x" % (self._id_start, next(self._ids) & 0xFFFFFFFF)

    def default_lines(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return the server's own headers as they are written; the server makes a new list each second."""
        if headers is not self._default_headers:
            self._default_headers = headers
            self._default_lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return self._default_lines

    def fail_soon(self, request: Request, error: ServiceError) -> None:
        """Tell a request at the end of this turn of the loop that it failed.

        Told at once, a client that asks again at once is read in the same turn, and a thousand of them keep the loop
        from ever turning: no batch is taken, no timer runs.
        """
        if not self._failed:
            asyncio.get_running_loop().call_soon(self._tell_failed)
        self._failed.append((request, error))

    def _tell_failed(self) -> None:
        failed, self._failed = self._failed, []
        for request, error in failed:
            if not request.is_over:
                request.failed(error)

    def count_answer(self, route: str, seconds: float, status: int = 200) -> None:
        """Remember to count an answer."""
        answered = self._answered.get((route, status))
        if answered is None:
            answered = self._answered[route, status] = []
        answered.append(seconds)
        self._metrics.has_news()
        if len(answered) >= _MOST_NOTED:
            self.count()

    def count(self) -> None:
        """Bring the metrics up to date."""
        noted, self._answered = self._answered, {}
        for (route, status), answered in noted.items():
            self._metrics.observe_requests(route, "POST", status, answered)


def _targets(registry: Registry, limits: Limits, readers: Readers) -> dict[bytes, Route]:
    """Return the request targets that the lane knows; a target written in any other way goes to the application."""
    targets: dict[bytes, Route] = {}
    models = registry.models()
    for model in models:
        name = model.name.encode()
        if can_take(model):
            targets[b"/v2/models/%b/infer" % name] = Infer(model, readers.of(model), INFER_ROUTE)
        try:
            predict = Predict(model, limits)
        except Unsupported:
            continue
        targets[b"/predict?model=%b" % name] = predict
        if len(models) == 1:
            targets[b"/predict"] = predict
    for model in registry.all_versions():
        if can_take(model):
            target = b"/v2/models/%b/versions/%d/infer" % (model.name.encode(), model.version)
            targets[target] = Infer(model, readers.of(model), VERSION_ROUTE)
    return targets
