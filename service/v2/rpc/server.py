"""The gRPC port: starts and ends with the application, answers every error and counts every call.

One server a worker; with several workers they share the port, and the kernel spreads the connections.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from urllib.parse import unquote

import grpc

from ...access import Access
from ...error_answers import ErrorLog, error_answer
from ...errors import NotFound
from ...keys import ADMIN, INFER, OPEN, READ
from ...live.control import ModelControl
from ...live.registry import Registry
from ...metrics import Metrics
from ...request_context import Caller, RequestContext
from ...settings import Settings
from .descriptors import HEALTH, INFERENCE, Method, Proto
from .service import InferenceService

_log = logging.getLogger(__name__)

_MESSAGE_OVERHEAD_BYTES = 65_536  # names, shapes and parameters around the tensors
_HEALTH_POLL_SECONDS = 1.0

Rpc: TypeAlias = grpc.aio.ServicerContext[Any, Any]

# What is not named here reads.
_SCOPES = {
    "ServerLive": OPEN, "ServerReady": OPEN, "Check": OPEN, "Watch": OPEN, "ModelInfer": INFER,
    "ModelStreamInfer": INFER, "RepositoryModelLoad": ADMIN, "RepositoryModelUnload": ADMIN,
}  # fmt: skip


class GrpcServer:
    """Serves one application's models.

    Args:
        registry: the models.
        control: what an operator may do with them.
        access: who may ask.
        settings: host, `grpc_port` and the limits.
        metrics: where calls are counted.
        error_log: told of every error that ends a call.
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
        error_log: ErrorLog,
        name: str,
        version: str,
    ) -> None:
        self.port = 0
        self._access = access
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._error_log = error_log
        self._calls = InferenceService(registry, control, settings, error_log, name, version)
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

    async def Check(self, request: Any, context: RequestContext) -> Any:  # noqa: N802
        """Answer the standard health call; an empty name means the whole server."""
        if request.service not in ("", INFERENCE.service):
            raise NotFound(f"service {request.service[:80]!r} is not one of this server")
        status = "SERVING" if self._registry.ready else "NOT_SERVING"
        return HEALTH.messages["HealthCheckResponse"](status=status)

    async def Watch(self, request: Any, context: RequestContext) -> AsyncIterator[Any]:  # noqa: N802
        """Say the status now and whenever it changes."""
        last = None
        while True:
            current = await self.Check(request, context)
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
        async def answer(request: Any, rpc: Rpc) -> Any:
            async with self._answering(route, rpc) as context:
                response = await call(request, context)
            rpc.set_trailing_metadata(_metadata(context.headers()))
            return response

        return answer

    def _stream(self, route: str, call: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        async def answer(request: Any, rpc: Rpc) -> AsyncIterator[Any]:
            async with self._answering(route, rpc) as context:
                async for response in call(request, context):
                    yield response

        return answer

    @asynccontextmanager
    async def _answering(self, route: str, rpc: Rpc) -> AsyncIterator[RequestContext]:
        """Give one call its context; check its key before, count it afterwards, and end it with the error it raises.

        Metadata has the names that HTTP's headers have.
        """
        metadata = {name: value for name, value in rpc.invocation_metadata() or () if isinstance(value, str)}
        headers = [(name.encode(), value.encode()) for name, value in metadata.items()]
        context = RequestContext.read(headers, self._settings.default_timeout_seconds, rpc.time_remaining())
        try:
            scope = _SCOPES.get(route.rpartition("/")[2], READ)
            authorization, api_key = metadata.get("authorization"), metadata.get("x-api-key")
            address = _address(rpc.peer())
            context.caller = Caller(self._access.check(scope, authorization, api_key, route, address), address)
            yield context
        except Exception as err:
            await self._abort(route, err, rpc, context)
        self._count(route, 200, context)

    async def _abort(self, route: str, err: Exception, rpc: Rpc, context: RequestContext) -> None:
        """End a call with the status, the sentence and the headers of an error."""
        self._error_log.note(err, context.request_id, route)
        refused = error_answer(err, context.request_id)
        self._count(route, refused.status, context)
        trailers = _metadata([*context.headers(), *refused.headers])
        await rpc.abort(grpc.StatusCode[refused.grpc_status], refused.message, trailing_metadata=trailers)

    def _count(self, route: str, status: int, context: RequestContext) -> None:
        self._metrics.observe_request(route, "POST", status, time.perf_counter() - context.started)


def _address(peer: str) -> str:
    """Return the address in the name of a peer: `ipv4:127.0.0.1:50000`, `ipv6:[::1]:50000`, with brackets quoted."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _metadata(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    """Return as metadata what HTTP says in headers."""
    return tuple((name.decode(), value.decode()) for name, value in headers)
