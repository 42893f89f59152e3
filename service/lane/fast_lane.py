"""The fast lane: `/predict` and the infer route from the socket to the batcher and back, with no ASGI cycle between.

What all connections share of it: which requests it takes, and what answers them. It takes only requests that hold
nothing unusual; all others, and every other route, go to the application, and both give the same answers. Nothing is
done for each request that can be done for each batch, and a head that was read before is not read again.
"""

import re
from dataclasses import replace

from ..access import Access
from ..access_log import AccessLog
from ..bodies.budget import BodyBudget
from ..bodies.limits import Limits
from ..bodies.work_queue import WorkQueue
from ..error_answers import ErrorLog
from ..errors import InvalidInput, NotReady, Unsupported
from ..keys import INFER
from ..live.registry import Registry
from ..metrics import Metrics
from ..request_context import read_timeout, read_traceparent, safe_request_id, shortest_timeout
from ..settings import Settings
from ..tracing import Tracing
from ..transport.proxies import FORWARDED_FOR
from ..v2.readers import Readers
from .counts import AnswerCounts
from .exchange import Endpoint, RequestHead, Route
from .failures import Failures
from .infer import Infer, can_take
from .known_head import KnownHeads
from .predict import Predict

INFER_ROUTE = "/v2/models/{model}/infer"
VERSION_ROUTE = "/v2/models/{model}/versions/{version}/infer"

LANE = "lane"  # the key of the lifespan's state

# Headers that change how a request is to be read or answered; such requests, and those in which a header stands twice,
# are left to the application.
_UNUSUAL = {b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"}
_REFUSES = re.compile(rb"[qQ]\s*=\s*0")
_LENGTH = re.compile(rb"[0-9]{1,18}")


class FastLane:
    """What all connections of one server share on the fast lane.

    Args:
        registry: where the models are, loaded.
        settings: limits and the default deadline.
        metrics: told of answers in bulk.
        budget: bytes of bodies that may be held while they arrive; those that wait are bounded by their rows.
        readers: read the requests of the infer route.
        error_log: told of every request that gets an error.
        access: knows the keys; a request whose key it would refuse is left to the application, which says why.
        access_log: told of every request, if it is on.
        tracing: told of every request, if it is on.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        metrics: Metrics,
        budget: BodyBudget,
        readers: Readers,
        error_log: ErrorLog,
        access: Access,
        access_log: AccessLog,
        tracing: Tracing,
    ) -> None:
        self.registry = registry
        self.budget = budget
        self.access = access
        self.heads = KnownHeads()
        self.endpoints: dict[bytes, Endpoint] = {}
        self._counts = AnswerCounts(metrics, access_log, tracing)
        self._error_log = error_log
        self._default_timeout = settings.default_timeout_seconds
        self._limits = Limits.of(settings)
        self.decoding: WorkQueue | None = None  # before pictures; None decodes them in any thread
        self._readers = readers
        self.failures = Failures()
        self.renew_endpoints()
        registry.changed.append(self.renew_endpoints)

    def renew_endpoints(self) -> None:
        """Look again at what answers: a pointer has moved, or a version was added or removed."""
        for endpoint in self.endpoints.values():
            endpoint.is_current = False
        self.heads.forget()
        self.endpoints = {
            path: Endpoint(route, self._counts, self._error_log, self.registry.shadows)
            for path, route in _routes(self.registry, self._limits, self._readers).items()
        }

    def read_head(self, path: bytes, headers: list[tuple[bytes, bytes]], *, keep_alive: bool) -> RequestHead | None:
        """Return what the head of a POST says, or None when the application has to see it.

        Args:
            path: the request target as it was sent.
            headers: names in lower case.
            keep_alive: whether the connection goes on afterwards.
        """
        endpoint = self.endpoints.get(path)
        by_name = dict(headers)
        if endpoint is None or len(by_name) != len(headers) or not _UNUSUAL.isdisjoint(by_name):
            return None
        if _REFUSES.search(by_name.get(b"accept-encoding", b"")):  # it may refuse answers that are not compressed
            return None
        passed = self.access.passed(INFER, by_name.get(b"authorization"), by_name.get(b"x-api-key"))
        if passed is None:
            return None
        try:
            stated_timeout = read_timeout(by_name.get(b"x-deadline-ms"))
        except InvalidInput:
            return None
        stated_length = by_name.get(b"inference-header-content-length")
        if stated_length is not None and not _LENGTH.fullmatch(stated_length):
            return None
        media_type = by_name.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
        length = int(by_name.get(b"content-length", b"0"))
        if not endpoint.route.takes(media_type, length):
            return None
        header_length = int(stated_length) if stated_length else None
        rows, options = endpoint.route.plain(media_type, length, header_length)
        return RequestHead(
            path=path,
            endpoint=endpoint,
            media_type=media_type,
            length=length,
            header_length=header_length,
            stated_timeout=stated_timeout,
            timeout=shortest_timeout(self._default_timeout, stated_timeout),
            ids=(safe_request_id(by_name.get(b"x-request-id")), read_traceparent(by_name.get(b"traceparent"))),
            keep_alive=keep_alive,
            rows=rows,
            options=options,
            forwarded=by_name.get(FORWARDED_FOR, b""),
            keys=passed.keys,
            payer=passed.payer,
        )

    def still_holds(self, head: RequestHead) -> bool:
        """Return whether neither models nor keys have changed since a head was read."""
        return head.endpoint.is_current and head.keys is self.access.keys

    def renew(self, head: RequestHead) -> RequestHead:
        """Return what a head means now that the models have changed since it was read.

        Raises:
            NotReady: nothing on the lane answers it any more.
        """
        endpoint = self.endpoints.get(head.path)
        if endpoint is None:
            raise NotReady("the models changed while the request arrived; send it again")
        rows, options = endpoint.route.plain(head.media_type, head.length, head.header_length)
        return replace(head, endpoint=endpoint, rows=rows, options=options)


def _routes(registry: Registry, limits: Limits, readers: Readers) -> dict[bytes, Route]:
    """Return the routes of all paths that the lane knows; a path written in any other way goes to the application."""
    routes: dict[bytes, Route] = {}
    is_only_one = len(registry.tables) == 1
    for model in registry.models():
        name = model.name.encode()
        if can_take(model):
            routes[b"/v2/models/%b/infer" % name] = Infer(model, readers.of(model), INFER_ROUTE)
        try:
            predict = Predict(model, limits)
        except Unsupported:
            continue
        routes[b"/predict?model=%b" % name] = predict
        if is_only_one:
            routes[b"/predict"] = predict
    for model in registry.all_versions():
        if can_take(model):
            path = b"/v2/models/%b/versions/%d/infer" % (model.name.encode(), model.version)
            routes[path] = Infer(model, readers.of(model), VERSION_ROUTE)
    return routes
