"""A request on the fast lane: its head, the target that answers it, and its way there and back.

Between the connections, which send in order, and the batcher, which gives the answers of a whole batch to their target
in one call. What a body means and how outputs are written is the route's business.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from uvicorn.server import ServerState

from ..batching.request import Answer, BatchAnswer, Request, RowLayout
from ..error_answers import error_answer
from ..errors import EngineError, ServiceError
from ..live.shadow import Shadows
from ..request_context import answer_timing, new_request_id, server_timing, shortest_timeout
from ..transport.wire import answer
from .infer import Infer
from .outgoing import Outgoing
from .predict import Predict

logger = logging.getLogger(__name__)

Route = Predict | Infer


class Target:
    """What answers the requests to one path, and writes the answers of a batch.

    Args:
        route: reads bodies and writes outputs, for one version of a model.
        outgoing: what all answers share.
        shadows: candidates that may want a copy of what the model is asked.

    Attributes:
        is_current: whether no model has come, gone or moved since.
    """

    def __init__(self, route: Route, outgoing: Outgoing, shadows: Shadows) -> None:
        self.is_current = True
        self.route = route
        self.batcher = route.model.batcher
        self.most_rows = route.most_rows
        inputs = route.model.engine.inputs
        self.layout = RowLayout(inputs[0]) if len(inputs) == 1 else None
        self._outgoing = outgoing
        self._shadows = shadows

    def receive(self, requests: Sequence["Exchange"], starts: Sequence[int], batch: BatchAnswer) -> None:
        """Write the answers of some members of a batch, each to its own connection."""
        written = self._write(requests, starts, batch)
        if self._shadows.watches(self.route.model.name):
            self._show_candidate(requests, starts, batch)
        now = time.perf_counter()
        answers = self._with_heads(requests, written, batch, now)
        for exchange, data in answers:  # in one go: whoever is woken by the first of them finds the others too
            try:
                exchange.protocol.settle(exchange, data)
            except Exception:
                logger.exception("an answer could not be sent")
        if answers:
            self._count([exchange for exchange, _ in answers], batch, now)

    def _write(
        self, requests: Sequence["Exchange"], starts: Sequence[int], batch: BatchAnswer
    ) -> Sequence[tuple[bytes, bytes] | ServiceError]:
        """Return header lines and body of each answer, or why there is none; nobody is left to wait for ever."""
        try:
            return self.route.write(batch, requests, starts)
        except Exception as err:
            failure = EngineError(f"the answer could not be written: {type(err).__name__}")
            failure.__cause__ = err
            return [failure] * len(requests)

    def _with_heads(
        self,
        requests: Sequence["Exchange"],
        written: Sequence[tuple[bytes, bytes] | ServiceError],
        batch: BatchAnswer,
        now: float,
    ) -> list[tuple["Exchange", bytes]]:
        """Return whole answers for those who still wait; whoever gets an error is told here."""
        outgoing = self._outgoing
        lines = outgoing.default_lines(requests[0].protocol.server_state.default_headers)
        first = b"HTTP/1.1 200 OK\r\n%b%bx-request-id: " % (lines, self.route.model.header_lines)
        answers: list[tuple[Exchange, bytes]] = []
        for exchange, content in zip(requests, written, strict=True):
            if exchange.is_over:
                continue
            if isinstance(content, ServiceError):
                exchange.failed(content)
                continue
            lines, body = content
            arrived, parsed = exchange.arrived, exchange.parsed
            parts = (
                first,
                exchange.head.request_id or new_request_id(),
                b"\r\ncontent-length: %d\r\n" % len(body),
                lines,
                b"server-timing: ",
                answer_timing(parsed - arrived, batch.started - parsed, batch.infer_seconds, now - arrived),
                b"\r\nconnection: close\r\n\r\n" if exchange.is_last else b"\r\n\r\n",
                body,
            )
            answers.append((exchange, b"".join(parts)))
        return answers

    def _count(self, answered: Sequence["Exchange"], batch: BatchAnswer, now: float) -> None:
        """Count answers that were sent at the same moment."""
        seconds = [now - exchange.arrived for exchange in answered]
        parsing = sum(exchange.parsed - exchange.arrived for exchange in answered)
        answered[0].protocol.server_state.total_requests += len(answered)
        self._outgoing.note(self.route.label, seconds)
        self.route.count(len(answered), sum(seconds), parsing, batch.infer_seconds, now - batch.started)

    def _show_candidate(self, requests: Sequence["Exchange"], starts: Sequence[int], batch: BatchAnswer) -> None:
        """Let the model's candidate answer the same rows."""
        for exchange, start in zip(requests, starts, strict=True):
            outputs = {name: array[start : start + exchange.rows] for name, array in batch.outputs.items()}
            live = Answer(outputs, batch.started - exchange.arrived, batch.infer_seconds, batch.rows)
            self._shadows.offer(self.route.model, exchange.inputs, live)


@dataclass(slots=True)
class Head:
    """What the headers of a request say, all of it; equal bytes mean an equal head.

    Attributes:
        path: the request target as it came.
        target: what answers it.
        media_type: of the body, in lower case and without parameters.
        length: bytes of the body.
        header_length: bytes of JSON before binary tensors; None where nothing was said.
        deadline_seconds: from arrival, as the client said; None leaves it to the service.
        patience: from arrival, whoever said it.
        request_id: the client's own; None has one made.
        keep_alive: whether the connection goes on afterwards.
        rows: of a body that holds nothing else, so that any bytes of this length will do; 0 for one to be read.
        asked: what such a request says of its answer.
        raw: the very bytes; empty where they are not remembered.
    """

    path: bytes
    target: Target
    media_type: str
    length: int
    header_length: int | None
    deadline_seconds: float | None
    patience: float
    request_id: bytes | None
    keep_alive: bool
    rows: int
    asked: Any
    raw: bytes = b""


class Connection(Protocol):
    """What an exchange needs of the connection that it came by."""

    server_state: ServerState
    outgoing: Outgoing

    def settle(self, exchange: "Exchange", data: bytes) -> None:
        """Send an answer when its turn comes."""


class Exchange(Request):
    """One request on the lane and, in the end, its answer."""

    __slots__ = ("answer", "asked", "head", "is_last", "parsed", "protocol")

    receiver: Target
    asked: Any  # what the body says of the answer

    def __init__(self, protocol: Connection, head: Head, arrived: float) -> None:
        super().__init__(head.target, deadline=arrived + head.patience, arrived=arrived)
        self.protocol = protocol
        self.head = head
        self.is_last = not head.keep_alive
        self.parsed = arrived
        self.answer: bytes | None = None  # waits for its turn

    def read(self, body: bytes) -> None:
        """Take the rows out of the body. Raises what the route's `read` raises."""
        head = self.head
        self._inputs, self.raw_rows, self.rows, self.asked = self.receiver.route.read(
            body, head.media_type, head.header_length
        )
        if self.asked is not None and self.asked.timeout_seconds is not None:
            timeout = shortest_timeout(head.patience, head.deadline_seconds, self.asked.timeout_seconds)
            self.deadline = self.arrived + timeout
        self.parsed = time.perf_counter()

    def failed(self, error: ServiceError) -> None:
        """Write an error."""
        outgoing, route = self.protocol.outgoing, self.receiver.route
        total = time.perf_counter() - self.arrived
        outgoing.note(route.label, (total,), error.status)
        if self.rows:
            route.count_failure(total)
        request_id = self.head.request_id or new_request_id()
        outgoing.error_log.note(error, request_id.decode(), route.label)
        refused = error_answer(error, request_id.decode())
        headers = [
            *self.protocol.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"x-request-id", request_id),
            (b"server-timing", server_timing(total=total)),
            *refused.headers,
        ]
        self.protocol.server_state.total_requests += 1
        self.protocol.settle(self, answer(refused.status, headers, refused.body, is_last=self.is_last))
