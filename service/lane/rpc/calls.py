"""One usual call, its endpoint, and what all connections of the lane share.

The counterpart of `exchange` and `fast_lane`. What a block of headers means is known from a call that the library read;
the key, the limits and the sentences are those of every other call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from ...access import Access
from ...access_log import AccessLog
from ...batching.request import BatchAnswer, Request
from ...bodies.budget import BodyBudget
from ...error_answers import ErrorLog, error_answer
from ...errors import InvalidInput, ServiceError
from ...inference import served_model
from ...keys import INFER, Key
from ...live.model import Model
from ...live.registry import Registry
from ...metrics import Metrics
from ...request_context import (
    Ids,
    answer_timing,
    new_request_id,
    read_timeout,
    read_traceparent,
    safe_request_id,
    shortest_timeout,
)
from ...settings import Settings
from ...tracing import Tracing
from ...v2.readers import Readers
from ...v2.rpc.calls import DETAIL_CHARACTERS
from ...v2.rpc.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFIX_BYTES,
    STATUS_200,
    literal,
    refusal,
)
from ...v2.rpc.known_blocks import KnownBlocks, Metadata
from ..counts import AnswerCounts
from ..exchange import Endpoint
from ..failures import Failures
from ..infer import can_take
from .messages import LABEL, InferCall, KnownMessages

_FIRST = STATUS_200 + b"".join(
    literal(field)
    for field in (
        (b"content-type", b"application/grpc"),
        (b"grpc-accept-encoding", b"identity, deflate, gzip"),
    )
)
_FIRST_HEADER = len(_FIRST).to_bytes(3) + bytes((HEADERS, END_HEADERS))
_DATA_HEADER = bytes((DATA, 0))
_LAST_HEADER = bytes((HEADERS, END_STREAM | END_HEADERS))
_STATUS_OK = literal((b"grpc-status", b"0"))


class Sender(Protocol):
    """The connection of a call, as far as an answer needs it."""

    def answer(self, call: "Call", frames: bytes) -> None:
        """Send the frames of an answer with the next `flush`."""

    def flush(self) -> None:
        """Send."""


@dataclass(frozen=True, slots=True)
class CallHead:
    """What the metadata of a call say, all of it; equal blocks of headers mean an equal head.

    Attributes:
        timeout: seconds from arrival, from the client or the service.
        ids: the client's own.
        keys: all that were known when this call's was found among them; with others it is to be read again.
        payer: the key whose share of requests a second it takes from; None where there is no such limit.
    """

    timeout: float
    ids: Ids
    keys: tuple[Key, ...]
    payer: Key | None


class Call(Request):
    """One call on the lane.

    Args:
        connection: by which it was received.
        stream: its number there.
        endpoint: answers it.
        head: of it.
        arrived: when its first byte was read, on the clock of `time.perf_counter`.

    Attributes:
        options: what its message says of the answer.
        parsed: when its rows were read.
        first_stage: what happens until then.
        size: bytes of its answer that count against the client's window.
        promised: bytes that they are at most.
    """

    __slots__ = (
        "connection", "first_stage", "options", "parsed", "promised", "request_id", "size", "stream", "traceparent",
    )  # fmt: skip

    receiver: Endpoint

    def __init__(self, connection: Sender, stream: int, endpoint: Endpoint, head: CallHead, arrived: float) -> None:
        super().__init__(endpoint, deadline=arrived + head.timeout, arrived=arrived)
        self.connection = connection
        self.stream = stream
        self.request_id, self.traceparent = head.ids
        self.parsed = arrived
        self.first_stage = b"parse"
        self.options: Any = None
        self.size = self.promised = 0

    def failed(self, error: ServiceError) -> None:
        """Send an error instead."""
        self.receiver.fail(self, error)


class CallEndpoint(Endpoint):
    """What answers the calls for one version of a model: writes frames where HTTP's writes lines."""

    label_before_routes = LABEL

    def __init__(self, route: InferCall, counts: AnswerCounts, error_log: ErrorLog, registry: Registry) -> None:
        super().__init__(route, counts, error_log, registry.shadows)
        self._model_headers = b"".join(map(literal, route.model.headers))

    def _answers(
        self,
        requests: Sequence[Call],
        contents: Sequence[tuple[bytes, bytes] | ServiceError],
        batch: BatchAnswer,
        now: float,
    ) -> list[tuple[Any, bytes]]:
        """Return the frames of answers for the clients that still wait; those that get an error are told here."""
        answers: list[tuple[Any, bytes]] = []
        started, infer_seconds = batch.started, batch.infer_seconds
        for call, content in zip(requests, contents, strict=True):
            if call.is_over:
                continue
            if isinstance(content, ServiceError):
                call.failed(content)
                continue
            message = content[1]
            arrived, parsed = call.arrived, call.parsed
            stream = call.stream.to_bytes(4)
            identity = call.request_id or new_request_id()
            timing = answer_timing(parsed - arrived, started - parsed, infer_seconds, now - arrived)
            fields = (_STATUS_OK, literal((b"x-request-id", identity)), literal((b"server-timing", timing)))
            last = b"".join((*fields, self._model_headers))
            if call.traceparent is not None:
                last += literal((b"traceparent", call.traceparent))
            length = len(message)
            call.size = length + PREFIX_BYTES
            parts = (
                _FIRST_HEADER, stream, _FIRST,
                call.size.to_bytes(3), _DATA_HEADER, stream, b"\x00", length.to_bytes(4), message,
                len(last).to_bytes(3), _LAST_HEADER, stream, last,
            )  # fmt: skip
            answers.append((call, b"".join(parts)))
        return answers

    def _send(self, answers: Sequence[tuple[Any, bytes]]) -> None:
        """Send answers, those of one connection in one go."""
        connections: dict[Sender, None] = {}
        for call, frames in answers:
            connections[call.connection] = None
            call.connection.answer(call, frames)
        for connection in connections:
            connection.flush()

    def _send_error(self, call: Any, error: ServiceError, request_id: bytes, seconds: float) -> None:
        answer = error_answer(error, request_id.decode())
        code = grpc.StatusCode[answer.grpc_status].value[0]
        known = (b"x-request-id", request_id), (b"server-timing", b"total;dur=%.3f" % (seconds * 1000))
        trace = () if call.traceparent is None else ((b"traceparent", call.traceparent),)
        headers = (*known, *trace, *self.route.model.headers, *answer.headers)
        sentence = answer.message[:DETAIL_CHARACTERS]
        call.connection.answer(call, refusal(call.stream, code, sentence, headers, is_first=True))
        call.connection.flush()


class CallLane:
    """What all connections of one gRPC server share on the lane.

    Args:
        registry: where the models are, loaded.
        settings: limits and the default deadline.
        metrics: told of answers in bulk.
        readers: read the requests of the infer route.
        error_log: told of every call that gets an error.
        access: knows the keys; a call whose key it would refuse is left to the library's handler, which says why.
        access_log: told of every call; while it is on, all calls are left to the library's handler.
        tracing: the same.
        blocks: says what blocks of headers mean.
        budget: of the bytes of all requests; a call that does not fit is left to the library's handler too.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        metrics: Metrics,
        readers: Readers,
        error_log: ErrorLog,
        access: Access,
        access_log: AccessLog,
        tracing: Tracing,
        blocks: KnownBlocks,
        budget: BodyBudget,
    ) -> None:
        self.budget = budget
        self.registry = registry
        self.access = access
        self.blocks = blocks
        self.failures = Failures()
        self.messages = KnownMessages(self._endpoint, settings.max_rows)
        self.max_streams = settings.grpc_max_streams
        self.idle_seconds = settings.keep_alive_seconds / 2
        self._default_timeout = settings.default_timeout_seconds
        self._readers = readers
        self._error_log = error_log
        self._counts = AnswerCounts(metrics, access_log, tracing)
        self._is_watched = access_log.is_on or tracing.is_on
        self._endpoints: dict[Model, CallEndpoint] = {}
        registry.changed.append(self.renew_endpoints)

    @property
    def is_open(self) -> bool:
        """Whether calls may be taken at all."""
        return self.registry.ready and not self._is_watched

    def renew_endpoints(self) -> None:
        """Look again at what answers: a pointer has moved, or a version was added or removed."""
        self._endpoints = {}
        self.messages.forget()

    def read_head(self, route: str, metadata: Metadata, seconds_left: float | None) -> CallHead | None:
        """Return what the metadata of a call say, or None where the library's handler has to see each such call."""
        headers = {name: value.encode() for name, value in metadata if isinstance(value, str)}
        if route != LABEL or len({name for name, _ in metadata}) != len(metadata):
            return None
        passed = self.access.passed(INFER, headers.get("authorization"), headers.get("x-api-key"))
        if passed is None:
            return None
        try:
            stated = read_timeout(headers.get("x-deadline-ms"))
        except InvalidInput:
            return None
        timeout = shortest_timeout(self._default_timeout, stated, seconds_left)
        ids = safe_request_id(headers.get("x-request-id")), read_traceparent(headers.get("traceparent"))
        return CallHead(timeout, ids, passed.keys, passed.payer)

    def _endpoint(self, name: str, version: str) -> Endpoint | None:
        model = served_model(self.registry, name, version)
        if model not in self._endpoints:
            if not can_take(model):
                return None
            route = InferCall(model, self._readers.of(model), LABEL)
            self._endpoints[model] = CallEndpoint(route, self._counts, self._error_log, self.registry)
        return self._endpoints[model]
