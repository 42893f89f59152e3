"""Around every request: its context, the headers of every answer, its line in the log, its place in the metrics.

A plain ASGI callable rather than Starlette's `BaseHTTPMiddleware`, which costs a task and two queues a request. Every
error of the application ends here, expected or not, and gets its answer from `error_answers`.
"""

import asyncio
import logging
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access_log import AccessLog
from .error_answers import ErrorAnswer, ErrorLog, error_answer
from .errors import ended_before
from .metrics import Metrics
from .request_context import RequestContext
from .tracing import Tracing

logger = logging.getLogger(__name__)

UNKNOWN_ROUTE = "unknown"  # one label for every path that is not ours: a client must not be able to make series


class RequestMiddleware:
    """ASGI wrapper of the whole application.

    Args:
        app: the application within.
        metrics: where requests are counted.
        error_log: told of every error that is answered here.
        default_timeout_seconds: within which a request is answered or refused, unless it says so itself.
        access_log: told of every request, if it is on.
        tracing: the same.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        error_log: ErrorLog,
        default_timeout_seconds: float,
        access_log: AccessLog,
        tracing: Tracing,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.error_log = error_log
        self.default_timeout_seconds = default_timeout_seconds
        self.access_log = access_log
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, _one_line_failures(scope, send))
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = RequestContext.read(scope["headers"], self.default_timeout_seconds)
        method = scope["method"]
        if method == "HEAD":  # routes know GET; the server leaves the body out
            scope = {**scope, "method": "GET"}
        scope.setdefault("state", {})["context"] = context
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *context.headers()]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            logger.debug("client went away", extra={"request_id": context.request_id})
        except asyncio.CancelledError:  # the time to drain is over
            if not status:
                await _send_error(error_answer(ended_before(), context.request_id), send_with_headers)
        except Exception as err:
            self.error_log.note(err, context.request_id, scope["path"])
            if not status:
                await _send_error(error_answer(err, context.request_id), send_with_headers)
        finally:
            self._record(scope, method, status, context)

    def _record(self, scope: Scope, method: str, status: int, context: RequestContext) -> None:
        """Count the request and write its line."""
        seconds = time.perf_counter() - context.started
        found = scope.get("route")
        route: str = getattr(found, "path_format", getattr(found, "path", UNKNOWN_ROUTE))
        self.metrics.observe_request(route, method, status, seconds)
        if self.access_log.is_on:
            self.access_log.note(route, status, seconds, method=method, **context.known())
        if self.tracing.is_on:
            self.tracing.note_context(route, status, context)
        if logger.isEnabledFor(logging.DEBUG):
            fields = {"request_id": context.request_id, "method": method, "path": scope["path"], "status": status}
            logger.debug("request", extra={**fields, "ms": round(seconds * 1000, 3)})


async def _send_error(answer: ErrorAnswer, send: Send) -> None:
    body = answer.body
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _one_line_failures(scope: Scope, send: Send) -> Send:
    """Return a `send` that keeps uvicorn from writing the traceback of a start whose reason is in the log already."""

    async def send_plain(message: Message) -> None:
        reason = getattr(scope["app"].state, "start_failure", None) if "app" in scope else None
        if message["type"] == "lifespan.startup.failed" and reason is not None:
            message = {**message, "message": ""}
        await send(message)

    return send_plain
