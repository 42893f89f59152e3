"""A request on the fast lane: its head, its way to the batcher, and the endpoint that answers it.

Between connections, which send answers in order, and the batcher, which gives the answers of a whole batch to their
endpoint in one call. What a body means and how outputs are written is the business of `predict` and `infer`.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..batching.request import Answer, BatchAnswer, Request, RowLayout
from ..error_answers import ErrorLog
from ..errors import EngineError, ServiceError, TooManyRequests
from ..keys import Key
from ..live.shadow import Shadows
from ..request_context import Headers, Ids, answer_timing, new_request_id, shortest_timeout, trace_id
from ..request_middleware import UNKNOWN_ROUTE
from ..transport.connection import Connection
from ..transport.wire import error_bytes
from .counts import AnswerCounts
from .infer import Infer
from .predict import Predict

logger = logging.getLogger(__name__)

Route = Predict | Infer


class Endpoint:
    """What answers the requests to one path: gives them to the batcher of one version, and writes its answers.

    Args:
        route: reads bodies and writes outputs, for one version of a model.
        counts: told of every answer.
        error_log: told of every error.
        shadows: candidates that may want a copy of the requests.

    Attributes:
        is_current: whether no model has been added, removed or moved since.
        label_before_routes: what counts a request that has no share of its key's left.
    """

    label_before_routes = UNKNOWN_ROUTE  # the application asks for the key before it looks for a route

    def __init__(self, route: Route, counts: AnswerCounts, error_log: ErrorLog, shadows: Shadows) -> None:
        self.is_current = True
        self.route = route
        self.batcher = route.model.batcher
        inputs = route.model.engine.inputs
        self.layout = RowLayout(inputs[0]) if len(inputs) == 1 else None
        self._counts = counts
        self._error_log = error_log
        self._shadows = shadows
        self._default_headers: Headers = ()
        self._default_lines = b""

    def receive(self, requests: Sequence[Any], starts: Sequence[int], batch: BatchAnswer) -> None:
        """Write the answers of some members of a batch, each to its own connection."""
        contents = self._contents(requests, starts, batch)
        if self._shadows.watches(self.route.model.name):
            self._show_candidate(requests, starts, batch)
        now = time.perf_counter()
        answers = self._answers(requests, contents, batch, now)
        if answers:
            self._send(answers)
            self._count([exchange for exchange, _ in answers], batch, now)

    def fail(self, exchange: Any, error: ServiceError) -> None:
        """Write an error."""
        total = time.perf_counter() - exchange.arrived
        label = self.label_before_routes if isinstance(error, TooManyRequests) else self.route.label
        self._counts.note(label, (total,), error.status)
        if exchange.rows:
            self.route.model.statistics.failed(total)
        request_id = exchange.request_id or new_request_id()
        self._error_log.note(error, request_id.decode(), self.route.label)
        if self._counts.access_log.is_on:
            self._tell(exchange, label, error.status, total, request_id)
        if self._counts.tracing.is_on:
            self._trace(exchange, label, error.status, exchange.arrived + total, {})
        self._send_error(exchange, error, request_id, total)

    def _send_error(self, exchange: Any, error: ServiceError, request_id: bytes, seconds: float) -> None:
        server = exchange.connection.server.state
        server.total_requests += 1
        answer = error_bytes(
            error,
            request_id,
            server.default_headers,
            seconds,
            is_last=exchange.is_last,
            traceparent=exchange.traceparent,
        )
        exchange.connection.outbox.send(exchange, answer)

    def _send(self, answers: Sequence[tuple[Any, bytes]]) -> None:
        """Send answers in one go: a client that is woken by the first of them finds the others too."""
        answers[0][0].connection.server.state.total_requests += len(answers)
        for exchange, answer in answers:
            try:
                exchange.connection.outbox.send(exchange, answer)
            except Exception:
                logger.exception("an answer could not be sent")

    def _contents(
        self, requests: Sequence[Any], starts: Sequence[int], batch: BatchAnswer
    ) -> Sequence[tuple[bytes, bytes] | ServiceError]:
        """Return header lines and body of each answer, or why there is none; no client is left to wait for ever."""
        try:
            return self.route.write(batch, requests, starts)
        except Exception as err:
            failure = EngineError(f"the answer could not be written: {type(err).__name__}")
            failure.__cause__ = err
            return [failure] * len(requests)

    def _answers(
        self,
        requests: Sequence[Any],
        contents: Sequence[tuple[bytes, bytes] | ServiceError],
        batch: BatchAnswer,
        now: float,
    ) -> list[tuple[Any, bytes]]:
        """Return whole answers for the clients that still wait; those that get an error are told here."""
        lines = self._lines_of(requests[0].connection.server.state.default_headers)
        first = b"HTTP/1.1 200 OK\r\n%b%bx-request-id: " % (lines, self.route.model.header_lines)
        answers: list[tuple[Any, bytes]] = []
        for exchange, content in zip(requests, contents, strict=True):
            if exchange.is_over:
                continue
            if isinstance(content, ServiceError):
                exchange.failed(content)
                continue
            lines, body = content
            arrived, parsed = exchange.arrived, exchange.parsed
            identity = exchange.request_id or new_request_id()
            if exchange.traceparent is not None:
                identity = b"%b\r\ntraceparent: %b" % (identity, exchange.traceparent)
            parts = (
                first,
                identity,
                b"\r\ncontent-length: %d\r\n" % len(body),
                lines,
                b"server-timing: ",
                answer_timing(
                    parsed - arrived, batch.started - parsed, batch.infer_seconds, now - arrived, exchange.first_stage
                ),
                b"\r\nconnection: close\r\n\r\n" if exchange.is_last else b"\r\n\r\n",
                body,
            )
            answers.append((exchange, b"".join(parts)))
        return answers

    def _lines_of(self, headers: Headers) -> bytes:
        """Return the server's own headers as they are written; the server makes a new list each second."""
        if headers is not self._default_headers:
            self._default_headers = headers
            self._default_lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return self._default_lines

    def _count(self, answered: Sequence[Any], batch: BatchAnswer, now: float) -> None:
        """Count answers that were sent at the same moment."""
        requests = len(answered)
        seconds = [now - exchange.arrived for exchange in answered]
        total, parsing = sum(seconds), sum(exchange.parsed - exchange.arrived for exchange in answered)
        self._counts.note(self.route.label, seconds)
        if self._counts.access_log.is_on:
            for exchange, spent in zip(answered, seconds, strict=True):
                self._tell(exchange, self.route.label, 200, spent, exchange.request_id)
        if self._counts.tracing.is_on:
            for exchange in answered:
                stages = {
                    exchange.first_stage.decode(): exchange.parsed - exchange.arrived,
                    "queue": batch.started - exchange.parsed,
                    "infer": batch.infer_seconds,
                }
                self._trace(exchange, self.route.label, 200, now, stages)
        self.route.model.statistics.answered(
            total,
            total - parsing - requests * (now - batch.started),
            parsing + requests * batch.input_seconds,
            requests * (batch.infer_seconds - batch.input_seconds),
            requests * (now - batch.started - batch.infer_seconds),
            requests,
        )

    def _tell(self, exchange: Any, label: str, status: int, seconds: float, request_id: bytes | None) -> None:
        """Tell the access log of one request; an id that was made for its answer alone is not kept."""
        model = self.route.model
        known: dict[str, Any] = {"model": model.name, "version": model.version, "rows": exchange.rows or None}
        if exchange.traceparent is not None:
            known["trace_id"] = trace_id(exchange.traceparent)
        identity = None if request_id is None else request_id.decode()
        self._counts.access_log.note(label, status, seconds, request_id=identity, **known)

    def _trace(self, exchange: Any, label: str, status: int, ended: float, stages: Mapping[str, float]) -> None:
        """Tell a collector of one request."""
        model = self.route.model
        known: dict[str, Any] = {"model": model.name, "version": model.version, "rows": exchange.rows or None}
        known |= {"traceparent": exchange.traceparent}
        if exchange.request_id is not None:
            known["request_id"] = exchange.request_id.decode()
        self._counts.tracing.note(label, status, exchange.arrived, ended, stages, known)

    def _show_candidate(self, requests: Sequence[Any], starts: Sequence[int], batch: BatchAnswer) -> None:
        """Let the model's candidate answer the same rows."""
        for exchange, start in zip(requests, starts, strict=True):
            outputs = {name: array[start : start + exchange.rows] for name, array in batch.outputs.items()}
            live = Answer(outputs, batch.started - exchange.arrived, batch.infer_seconds, batch.rows)
            self._shadows.offer(self.route.model, exchange.inputs, live)


@dataclass(slots=True)
class RequestHead:
    """What the headers of a request say, all of it; equal bytes mean an equal head.

    Attributes:
        path: the request target as it was sent.
        endpoint: what answers it.
        media_type: of the body, in lower case and without parameters.
        length: bytes of the body.
        header_length: bytes of JSON before binary tensors; None where nothing is said of it.
        stated_timeout: seconds from arrival, as the client said; None leaves it to the service.
        timeout: seconds from arrival, from the client or the service.
        ids: the client's own.
        keep_alive: whether the connection goes on afterwards.
        rows: of a body that holds nothing else, so that any bytes of this length will do; 0 for one to be read.
        options: what such a request says of its answer.
        forwarded: what a proxy says of the client's address; empty where there is none.
        keys: all that were known when this head's was found among them; with others it is to be read again.
        payer: the key whose share of requests a second it takes from; None where there is no such limit.
    """

    path: bytes
    endpoint: Endpoint
    media_type: str
    length: int
    header_length: int | None
    stated_timeout: float | None
    timeout: float
    ids: Ids
    keep_alive: bool
    rows: int
    options: Any
    forwarded: bytes = b""
    keys: tuple[Key, ...] = ()
    payer: Key | None = None


class Exchange(Request):
    """One request on the lane and, in the end, its answer.

    Args:
        connection: by which it was received.
        head: of the request.
        arrived: when its first byte was read, on the clock of `time.perf_counter`.
        ids: the client's own.

    Attributes:
        answer: the whole answer, while it waits for its turn.
        is_last: whether the connection ends with it.
        options: what the body says of the answer.
        parsed: when its rows were read.
        first_stage: what happens until then, as Server-Timing names it.
    """

    __slots__ = (
        "answer", "connection", "first_stage", "head", "is_last", "options", "parsed", "request_id", "traceparent",
    )  # fmt: skip

    receiver: Endpoint

    def __init__(self, connection: Connection, head: RequestHead, arrived: float, ids: Ids) -> None:
        super().__init__(head.endpoint, deadline=arrived + head.timeout, arrived=arrived)
        self.connection = connection
        self.head = head
        self.request_id, self.traceparent = ids
        self.is_last = not head.keep_alive
        self.parsed = arrived
        self.first_stage = b"parse"
        self.options = head.options
        self.answer: bytes | None = None

    def read(self, body: bytes, beat: Callable[[], None] | None = None) -> None:
        """Take the rows out of the body; `beat` is called while files are decoded.

        Raises what the route's `read` raises.
        """
        head = self.head
        self._inputs, self.raw_rows, self.rows, self.options = self.receiver.route.read(
            body, head.media_type, head.header_length, beat
        )
        if self.options is not None and self.options.timeout_seconds is not None:
            timeout = shortest_timeout(head.timeout, head.stated_timeout, self.options.timeout_seconds)
            self.deadline = self.arrived + timeout
        self.parsed = time.perf_counter()

    def failed(self, error: ServiceError) -> None:
        """Send an error instead."""
        self.receiver.fail(self, error)

    def start(self) -> None:
        """Its turn has come: nothing to do, the batcher has it."""

    def end_connection(self) -> None:
        """Have the answer say that it is the connection's last."""
        self.is_last = True
