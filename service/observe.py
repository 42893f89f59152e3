"""Around every request: its id, the headers that every answer carries, its line in the log, its place in the metrics.

A plain ASGI callable rather than Starlette's `BaseHTTPMiddleware`, which costs a task and two queues a request. It is
also the last resort: what no handler expected is logged whole here and shown as a request id.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .bodies.answers import error_json
from .metrics import Metrics

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
UNKNOWN_ROUTE = "unknown"  # one label for every path that is not ours: a client must not be able to make series
_REFUSAL_SECONDS = 1.0  # between two lines


@dataclass
class Trace:
    """What is known of one request while it runs.

    Args:
        request_id: the client's own where it is safe to repeat, else a new one.
        started: `time.perf_counter()` at its first byte that reached the application.
        stages: seconds by stage, in order: parse, queue, infer.
        model_headers: what the version that answered says of itself, once one has.
    """

    request_id: str
    started: float
    stages: dict[str, float] = field(default_factory=dict)
    model_headers: tuple[tuple[bytes, bytes], ...] = ()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of the answer that starts now; durations in milliseconds."""
        stages = {**self.stages, "total": time.perf_counter() - self.started}
        timing = ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in stages.items())
        return [(b"x-request-id", self.request_id.encode()), (b"server-timing", timing.encode()), *self.model_headers]


class RefusalLog:
    """Lines for requests that are refused for the service's own reasons; at most one a second, or they become the load.

    The first is written at once; those that follow within a second share a line with their number. The metrics have
    them all.

    Args:
        later: calls something after so many seconds; None asks the running event loop.
    """

    def __init__(self, later: Callable[[float, Callable[[], None]], object] | None = None) -> None:
        self._later = later
        self._untold = 0
        self._last: dict[str, object] = {}
        self._is_waiting = False

    def note(self, request_id: str, status: int, reason: str) -> None:
        """Write a line, or remember the refusal for the next one."""
        if self._is_waiting:
            self._untold += 1
            self._last = {"status": status, "reason": reason}
            return
        logger.warning("request refused", extra={"request_id": request_id, "status": status, "reason": reason})
        self._wait()

    def _wait(self) -> None:
        self._is_waiting = True
        (self._later or asyncio.get_running_loop().call_later)(_REFUSAL_SECONDS, self._tell)

    def _tell(self) -> None:
        self._is_waiting = False
        if self._untold:
            logger.warning("more requests refused, the last of them so", extra={"count": self._untold, **self._last})
            self._untold = 0
            self._wait()


class Observe:
    """ASGI wrapper of the whole application.

    Args:
        app: the application within.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, _one_line_failures(scope, send))
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = Trace(_request_id(scope), time.perf_counter())
        method = scope["method"]
        if method == "HEAD":  # routes know GET; the server leaves the body out
            scope = {**scope, "method": "GET"}
        scope.setdefault("state", {})["trace"] = trace
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *trace.headers()]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            logger.debug("client went away", extra={"request_id": trace.request_id})
        except Exception:
            logger.exception("request failed", extra={"request_id": trace.request_id, "path": scope["path"]})
            if not status:
                await _send_failure(trace, send_with_headers)
        finally:
            self._record(scope, method, status, trace)

    def _record(self, scope: Scope, method: str, status: int, trace: Trace) -> None:
        """Count the request and write its line."""
        seconds = time.perf_counter() - trace.started
        route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
        self.metrics.observe_request(route, method, status, seconds)
        if logger.isEnabledFor(logging.DEBUG):
            fields = {"request_id": trace.request_id, "method": method, "path": scope["path"], "status": status}
            logger.debug("request", extra={**fields, "ms": round(seconds * 1000, 3)})


def _request_id(scope: Scope) -> str:
    """Return the client's X-Request-ID where it is at most 64 safe characters, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return secrets.token_hex(8)


def failure_sentence(trace: Trace) -> str:
    """Return all that a client learns of a failure of ours."""
    return f"the service failed on request {trace.request_id}; its log has the reason under this id"


async def _send_failure(trace: Trace, send: Send) -> None:
    """Answer 500 with nothing in it but the id under which the log has the rest."""
    body = error_json(failure_sentence(trace))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _one_line_failures(scope: Scope, send: Send) -> Send:
    """Return a `send` that reports a start we refused ourselves as its sentence rather than as a traceback."""

    async def send_plain(message: Message) -> None:
        reason = getattr(scope["app"].state, "start_failure", None) if "app" in scope else None
        if message["type"] == "lifespan.startup.failed" and reason is not None:
            message = {**message, "message": reason}
        await send(message)

    return send_plain
