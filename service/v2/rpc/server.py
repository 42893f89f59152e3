"""The gRPC port: starts and ends with the application, gives every error its status and counts every call.

One server a worker; with several workers they share the port, and the kernel spreads the connections.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from ...access import ADMIN, INFER, OPEN, READ, Access
from ...errors import (
    DeadlineExceeded,
    Forbidden,
    NotFound,
    RequestError,
    ServiceError,
    TooManyRequests,
    Unauthorized,
    Unsupported,
)
from ...live.control import ModelControl
from ...live.registry import Registry
from ...metrics import Metrics
from ...observe import Trace, failure_sentence
from ...settings import Settings
from .messages import HEALTH, INFERENCE
from .proto import Method, Proto
from .service import InferenceService

_log = logging.getLogger(__name__)

_MESSAGE_OVERHEAD_BYTES = 65_536  # names, shapes and parameters around the tensors
_HEALTH_POLL_SECONDS = 1.0

# The first class that an error belongs to decides.
_STATUSES: tuple[tuple[type[ServiceError], grpc.StatusCode], ...] = (
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Unauthorized, grpc.StatusCode.UNAUTHENTICATED),
    (Forbidden, grpc.StatusCode.PERMISSION_DENIED),
    (TooManyRequests, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (RequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (Unsupported, grpc.StatusCode.UNIMPLEMENTED),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
)

# What is not named here reads.
_SCOPES = {
    "ServerLive": OPEN, "ServerReady": OPEN, "Check": OPEN, "Watch": OPEN, "ModelInfer": INFER,
    "ModelStreamInfer": INFER, "RepositoryModelLoad": ADMIN, "RepositoryModelUnload": ADMIN,
}  # fmt: skip


def status_of(err: ServiceError) -> grpc.StatusCode:
    """Return the status that an error has in gRPC; what may pass (503) is UNAVAILABLE, which clients retry."""
    for kind, code in _STATUSES:
        if isinstance(err, kind):
            return code
    return grpc.StatusCode.UNAVAILABLE if err.status == 503 else grpc.StatusCode.INTERNAL


class GrpcServer:
    """Serves one application's models.

    Args:
        registry: the models.
        control: what an operator may ask of them.
        access: who may ask.
        settings: host, `grpc_port` and the limits.
        metrics: where calls are counted.
        name: of the service, for its metadata.
        version: of the service.

    Attributes:
        port: where it listens once it has started; that of the settings, or a free one where they say 0.
    """

    def __init__(
        self,
        registry: Registry,
        control: ModelControl,
        access: Access,
        settings: Settings,
        metrics: Metrics,
        name: str,
        version: str,
    ) -> None:
        self.port = 0
        self._access = access
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._calls = InferenceService(registry, control, settings, name, version)
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Take the port and answer.

        Raises:
            OSError: the port cannot be had.
        """
        settings = self._settings
        limit = settings.max_body_bytes + _MESSAGE_OVERHEAD_BYTES
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", int(settings.workers > 1)),
            ]
        )
        server.add_generic_rpc_handlers((self._handlers(INFERENCE, self._calls), self._handlers(HEALTH, self)))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            self.port = server.add_insecure_port(f"{host}:{settings.grpc_port}")
        except RuntimeError as err:
            raise OSError(f"cannot listen on {host}:{settings.grpc_port} for gRPC; choose another --grpc-port") from err
        await server.start()
        self._server = server
        _log.info("gRPC listens", extra={"port": self.port})

    async def stop(self) -> None:
        """Refuse new calls, let those that run end, and give the port back."""
        if self._server is not None:
            await self._server.stop(self._settings.drain_seconds)

    async def Check(self, request: Any, trace: Trace, remaining: float | None) -> Any:  # noqa: N802
        """Answer the standard health call; an empty name asks for the whole server."""
        if request.service not in ("", INFERENCE.service):
            raise NotFound(f"service {request.service[:80]!r} is not one of this server")
        status = "SERVING" if self._registry.ready else "NOT_SERVING"
        return HEALTH.messages["HealthCheckResponse"](status=status)

    async def Watch(self, request: Any, trace: Trace, remaining: float | None) -> AsyncIterator[Any]:  # noqa: N802
        """Say the status now and whenever it changes."""
        last = None
        while True:
            current = await self.Check(request, trace, remaining)
            if current != last:
                yield current
                last = current
            await asyncio.sleep(_HEALTH_POLL_SECONDS)

    def _handlers(self, proto: Proto, calls: Any) -> grpc.GenericRpcHandler:
        handlers = {
            method.name: self._handler(proto.service, method, getattr(calls, method.name))
            for method in proto.methods
            if hasattr(calls, method.name)
        }
        return grpc.method_handlers_generic_handler(proto.service, handlers)

    def _handler(self, service: str, method: Method, call: Any) -> grpc.RpcMethodHandler:
        """Return how one call is read, made and written."""
        route = f"/{service}/{method.name}"
        codec = {
            "request_deserializer": method.request.FromString,
            "response_serializer": method.response.SerializeToString,
        }
        if not method.is_server_streaming:
            return grpc.unary_unary_rpc_method_handler(self._unary(route, call), **codec)
        stream = self._stream(route, call)
        if method.is_client_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, **codec)
        return grpc.unary_stream_rpc_method_handler(stream, **codec)

    def _unary(self, route: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            trace = Trace(secrets.token_hex(8), time.perf_counter())
            try:
                self._check(route, context)
                response = await call(request, trace, context.time_remaining())
            except Exception as err:
                await self._abort(route, err, context, trace)
            self._count(route, 200, trace)
            _set_trailers(context, trace)
            return response

        return answer

    def _stream(self, route: str, call: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            trace = Trace(secrets.token_hex(8), time.perf_counter())
            try:
                self._check(route, context)
                async for response in call(request, trace, context.time_remaining()):
                    yield response
            except Exception as err:
                await self._abort(route, err, context, trace)
            self._count(route, 200, trace)

        return answer

    def _check(self, route: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Ask for the key, which comes in the metadata under the names that HTTP's headers have."""
        given = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
        scope = _SCOPES.get(route.rpartition("/")[2], READ)
        self._access.check(scope, given.get("authorization"), given.get("x-api-key"), route)

    async def _abort(
        self, route: str, err: Exception, context: grpc.aio.ServicerContext[Any, Any], trace: Trace
    ) -> None:
        """End a call with the status and the sentence of an error; what nobody expected shows only its id."""
        status = err.status if isinstance(err, ServiceError) else 500
        self._count(route, status, trace)
        if isinstance(err, ServiceError) and status != 500:
            retry = tuple((name.lower(), value) for name, value in err.headers.items() if name == "Retry-After")
            await context.abort(status_of(err), str(err), trailing_metadata=(*_trailers(trace), *retry))
        _log.error("call failed", exc_info=err, extra={"request_id": trace.request_id, "path": route})
        await context.abort(grpc.StatusCode.INTERNAL, failure_sentence(trace), trailing_metadata=_trailers(trace))

    def _count(self, route: str, status: int, trace: Trace) -> None:
        self._metrics.observe_request(route, "POST", status, time.perf_counter() - trace.started)


def _trailers(trace: Trace) -> tuple[tuple[str, str], ...]:
    """Return what HTTP says in headers."""
    return tuple((name.decode(), value.decode()) for name, value in trace.headers())


def _set_trailers(context: grpc.aio.ServicerContext[Any, Any], trace: Trace) -> None:
    context.set_trailing_metadata(_trailers(trace))
