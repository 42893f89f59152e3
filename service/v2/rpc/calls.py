"""What surrounds every call of gRPC: its key, its message, its count, and the error that ends it.

The order is that of HTTP: the key is checked on the metadata alone, before a message is taken from the connection; a
message has a time and a share of the bytes that all requests may hold; only then is it read. Messages reach this module
as bytes, so that nothing is made of them before that.
"""

import asyncio
import functools
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from ...access import Access
from ...access_log import AccessLog
from ...bodies.budget import BodyBudget, Share
from ...error_answers import ErrorLog, error_answer
from ...errors import InvalidInput, RequestTimeout, ServiceError
from ...keys import ADMIN, INFER, OPEN, READ
from ...metrics import Metrics
from ...request_context import Caller, RequestContext
from ...settings import Settings
from ...tracing import Tracing
from ...transport.proxies import FORWARDED_FOR, TrustedProxies
from .descriptors import Method, Proto
from .known_blocks import KnownBlocks
from .wire import read_small, split_request

Rpc: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Metadata: TypeAlias = Mapping[str, str]

DETAIL_CHARACTERS = 1_024  # of a status message, as in HTTP's error answers; clients refuse long trailers

_FORWARDED_FOR = FORWARDED_FOR.decode()
# What is not named here reads.
_SCOPES = {
    "ServerLive": OPEN, "ServerReady": OPEN, "Check": OPEN, "Watch": OPEN, "ModelInfer": INFER,
    "ModelStreamInfer": INFER, "RepositoryModelLoad": ADMIN, "RepositoryModelUnload": ADMIN,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a service.

    Attributes:
        route: as it stands in the path of a request and in the metrics.
        scope: what a key needs for it.
        read: makes the request of a message's bytes.
        run: answers it.
    """

    route: str
    scope: str
    read: Callable[[bytes], Any]
    run: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class StreamedMessage:
    """One message of a stream: its bytes and the share that holds them, or why it is refused."""

    call: Call
    data: bytes
    share: Share
    refusal: ServiceError | None = None

    def read(self) -> Any:
        """Return the request.

        Raises:
            ServiceError: the message is refused, or is none.
        """
        if self.refusal is not None:
            raise self.refusal
        return self.call.read(self.data)

    def release(self, _: object = None) -> None:
        """Give the share back; its signature is that of a task's callback."""
        self.share.release()


class CallHandler:
    """Makes handlers for the library of gRPC, and runs each call within them.

    Args:
        access: who may call.
        settings: the limits.
        metrics: where calls are counted.
        error_log: told of every error that ends a call.
        budget: of the bytes of all requests, those of HTTP included.
        address: gives the address of a connection by the name that the library has for it.
        proxies: whose word on a client's address is taken.
        access_log: told of every call, if it is on.
        tracing: the same.
        blocks: told of the metadata of every call.
    """

    def __init__(
        self,
        access: Access,
        settings: Settings,
        metrics: Metrics,
        error_log: ErrorLog,
        budget: BodyBudget,
        address: Callable[[str], str],
        proxies: TrustedProxies,
        access_log: AccessLog,
        tracing: Tracing,
        blocks: KnownBlocks,
    ) -> None:
        self._access = access
        self._blocks = blocks
        self._settings = settings
        self._metrics = metrics
        self._access_log = access_log
        self._tracing = tracing
        self._error_log = error_log
        self._budget = budget
        self._address = address
        self._proxies = proxies

    def handlers(self, proto: Proto, service: Any) -> grpc.GenericRpcHandler:
        """Return the handlers of those methods of `proto` that `service` has."""
        methods = [method for method in proto.methods if hasattr(service, method.name)]
        handlers = {method.name: self._handler(proto.service, method, service) for method in methods}
        return grpc.method_handlers_generic_handler(proto.service, handlers)

    def _handler(self, service_name: str, method: Method, service: Any) -> grpc.RpcMethodHandler:
        """Return a handler whose requests are a stream, also where there is one: it is not received unasked then."""
        call = Call(
            f"/{service_name}/{method.name}",
            _SCOPES.get(method.name, READ),
            split_request if _SCOPES.get(method.name) == INFER else functools.partial(read_small, method.request),
            getattr(service, method.name),
        )
        serializer = method.response.SerializeToString
        if not method.is_server_streaming:
            answer = functools.partial(self._answer_one, call)
            return grpc.stream_unary_rpc_method_handler(answer, response_serializer=serializer)
        answers = self._answer_stream if method.is_client_streaming else self._answer_watch
        return grpc.stream_stream_rpc_method_handler(functools.partial(answers, call), response_serializer=serializer)

    async def _answer_one(self, call: Call, _: object, rpc: Rpc) -> Any:
        metadata = _read_metadata(rpc)
        async with self._answering(call, rpc, metadata) as context:
            with self._budget.hold() as share:
                response = await call.run(call.read(await self._receive(rpc, share)), context)
        return response

    async def _answer_watch(self, call: Call, _: object, rpc: Rpc) -> None:
        metadata = _read_metadata(rpc)
        async with self._answering(call, rpc, metadata) as context:
            with self._budget.hold() as share:
                request = call.read(await self._receive(rpc, share))
            async for response in call.run(request, context):
                await rpc.write(response)

    async def _answer_stream(self, call: Call, _: object, rpc: Rpc) -> None:
        metadata = _read_metadata(rpc)
        async with self._answering(call, rpc, metadata) as context:
            async for response in call.run(self._messages(call, rpc, metadata), context):
                await rpc.write(response)

    async def _receive(self, rpc: Rpc, share: Share) -> bytes:
        """Return the only message of a call.

        Raises:
            RequestTimeout: it did not arrive in time.
            InvalidInput: the client sent none.
            Overloaded: the messages of all calls together are over the budget.
        """
        seconds = self._settings.body_seconds
        try:
            async with asyncio.timeout(seconds):
                data: Any = await rpc.read()
        except TimeoutError as err:
            raise RequestTimeout(f"message: not here after {seconds:g} s, expected all of it within that time") from err
        if data is grpc.aio.EOF:
            raise InvalidInput("message: the call has none, expected one")
        share.add(len(data))
        return bytes(data)

    async def _messages(self, call: Call, rpc: Rpc, metadata: Metadata) -> AsyncIterator[StreamedMessage]:
        """Yield the messages of a stream; each spends of the key's rate, the first has done so with the call.

        Raises:
            Unauthorized: the key is not known any more.
            Forbidden: it has lost the scope.
        """
        is_first = True
        while (data := await rpc.read()) is not grpc.aio.EOF:
            share = Share(self._budget)
            try:
                if not is_first:
                    self._check_access(call, rpc, metadata)
                share.add(len(data))
            except ServiceError as err:
                if err.status in (401, 403):
                    raise
                yield StreamedMessage(call, b"", share, err)
            else:
                yield StreamedMessage(call, data, share)
            is_first = False

    @asynccontextmanager
    async def _answering(self, call: Call, rpc: Rpc, metadata: Metadata) -> AsyncIterator[RequestContext]:
        """Give one call its context; check its key before, count it afterwards, and end it with the error it raises.

        Metadata has the names that HTTP's headers have.
        """
        self._blocks.tell(call.route, rpc.invocation_metadata() or (), rpc.time_remaining())
        headers = [(name.encode(), value.encode()) for name, value in metadata.items()]
        context = RequestContext.read(headers, self._settings.default_timeout_seconds, rpc.time_remaining())
        try:
            context.caller = self._check_access(call, rpc, metadata)
            yield context
        except Exception as err:
            await self._abort(call, err, rpc, context)
        rpc.set_trailing_metadata(_metadata(context.headers()))
        self._count(call, 200, context)

    def _check_access(self, call: Call, rpc: Rpc, metadata: Metadata) -> Caller:
        authorization, api_key = metadata.get("authorization"), metadata.get("x-api-key")
        forwarded = (value.encode() for name, value in rpc.invocation_metadata() or () if name == _FORWARDED_FOR)
        address = self._proxies.client(self._address(rpc.peer()), forwarded)
        return Caller(self._access.check(call.scope, authorization, api_key, call.route, address), address)

    async def _abort(self, call: Call, err: Exception, rpc: Rpc, context: RequestContext) -> None:
        """End a call with the status, the sentence and the headers of an error."""
        self._error_log.note(err, context.request_id, call.route)
        refused = error_answer(err, context.request_id)
        self._count(call, refused.status, context)
        trailers = _metadata([*context.headers(), *refused.headers])
        code, details = grpc.StatusCode[refused.grpc_status], refused.message[:DETAIL_CHARACTERS]
        _forget_frames(err)
        await rpc.abort(code, details, trailing_metadata=trailers)

    def _count(self, call: Call, status: int, context: RequestContext) -> None:
        seconds = time.perf_counter() - context.started
        self._metrics.observe_request(call.route, "POST", status, seconds)
        if self._access_log.is_on:
            self._access_log.note(call.route, status, seconds, **context.known())
        if self._tracing.is_on:
            self._tracing.note_context(call.route, status, context)


def _forget_frames(err: BaseException | None) -> None:
    """Let go of what the calls held that an error has left, which is the message.

    The library keeps what ends a call, with its context, in a cycle that only a full collection frees: sixty refused
    messages of 20 MB held a gigabyte.
    """
    while err is not None:
        traceback.clear_frames(err.__traceback__)
        err = err.__cause__ or err.__context__


def _read_metadata(rpc: Rpc) -> Metadata:
    """Return the texts among a call's metadata; binary entries mean nothing here."""
    return {name: value for name, value in rpc.invocation_metadata() or () if isinstance(value, str)}


def _metadata(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    """Return as metadata what HTTP says in headers."""
    return tuple((name.decode(), value.decode()) for name, value in headers)
