"""The fast lane of one connection: usual requests from their bytes to the batcher.

What the lane may take is for `fast_lane` to say; everything else is left to the application. Order and deadlines are
the connection's.
"""

import asyncio
import time
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from ..batching.request import BatchAnswer
from ..bodies.budget import Share, gave_way
from ..bodies.predict_body import expected_pixels
from ..bodies.work_queue import WorkQueue
from ..errors import ServiceError, ended_before
from ..request_context import Ids
from ..transport.asgi import Server
from ..transport.connection import GUARD, Connection
from ..transport.deadlines import Phase
from ..transport.parser import ParsedHead
from ..transport.probe import abort_if_gone
from .exchange import Exchange, RequestHead
from .fast_lane import LANE, FastLane
from .known_head import KnownHead

IDLE = Phase.IDLE  # on each request's way, where looking a member up in its class would cost a tenth of a microsecond
_HEAD_END = b"\r\n\r\n"
_POST = b"POST "


def lane_connection(
    config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None
) -> Connection:
    """Return a connection whose usual requests take the lane; called by uvicorn for each socket."""
    lane: FastLane = app_state[LANE]
    server = Server(config, server_state, app_state)
    return Connection(server, app_state[GUARD], lambda connection: ConnectionLane(lane, connection))


class ConnectionLane:
    """Takes the usual requests of one connection.

    They are worked on side by side and answered in order. One for the application waits until they are answered; what
    follows it goes to the application too, until that has answered.

    Args:
        lane: what all connections share.
        connection: the one.
    """

    def __init__(self, lane: FastLane, connection: Connection) -> None:
        self.shared = lane
        self._connection = connection
        self._guard = connection.guard
        self._outbox = connection.outbox
        self._deadlines = connection.deadlines
        self._share = Share(lane.budget, connection.address)
        self._usual: KnownHead | None = None  # of the last request, if nothing was received since but such requests
        self._started = 0.0  # when the first byte of the newest request was read
        self._raw_head: bytes | None = None  # of the next request that the parser reads, where it is all there
        self._head: RequestHead | None = None  # of the request whose body is being received
        self._ids: Ids = None, None  # of the same
        self._pieces: list[bytes] = []
        self._missing = 0  # bytes of a body whose head was known

    def receive(self, data: bytes) -> bytes:
        """Take requests whose head is known by its bytes; returns what is left for the parser.

        Raises:
            Overloaded: the bodies of all connections together are over the budget.
        """
        usual, deadlines = self._usual, self._deadlines
        if usual is not None and not self._outbox.due and deadlines.phase is IDLE and data.startswith(usual.prefix):
            start, head = usual.length, usual.head
            if (
                len(data) == start + head.length
                and (ids := head.ids if usual.places is None else usual.read(data)) is not None
                and self.shared.still_holds(head)
                and self.shared.registry.ready
            ):
                self._started = time.perf_counter()
                self._take(head, data[start:], ids, usual)
                return b""
        self._usual = None
        while data and deadlines.phase < Phase.MUST_CLOSE:
            if self._missing:
                data = self._fill(data)
            elif (found := self._known_head(data)) is not None:
                data = self._begin(*found, data)
            else:
                break
        return data

    def _known_head(self, data: bytes) -> tuple[KnownHead, Ids] | None:
        """Return the head with which a request begins here and the ids in it, if its bytes are known."""
        self._raw_head = None
        if self._deadlines.phase is not Phase.IDLE and self._deadlines.phase is not Phase.NEW:
            return None
        self._started = time.perf_counter()
        raw = data[: data.find(_HEAD_END) + len(_HEAD_END)]
        found = self.shared.heads.find(raw)
        if found is not None and self._is_free() and self.shared.still_holds(found[0].head):
            return found
        if raw.startswith(_POST):  # then the parser ends the head at the first empty line too
            self._raw_head = raw
        return None

    def _is_free(self) -> bool:
        """Return whether models are ready, and the application answers no request before this one."""
        due = self._outbox.due
        return self.shared.registry.ready and (not due or isinstance(due[-1], Exchange))

    def _begin(self, known: KnownHead, ids: Ids, data: bytes) -> bytes:
        """Take what was received of a request whose head is known; returns what follows it."""
        head, start = known.head, known.length
        stop = start + head.length
        if len(data) >= stop:
            self._take(head, data[start:stop], ids, known if len(data) == stop else None)
            return data[stop:]
        self._await_body(head, ids)
        self._missing = head.length
        self._connection.start_body(self, is_last=not head.keep_alive)
        return self._fill(data[start:])

    def _fill(self, data: bytes) -> bytes:
        """Take more of such a body; returns what follows it."""
        part, rest = data[: self._missing], data[self._missing :]
        self._missing -= len(part)
        self._connection.body_received(part)
        if not self._missing:
            self._connection.request_received()
        return rest

    def accept(self, head: ParsedHead) -> "ConnectionLane | None":
        """Take a request that holds nothing unusual; None leaves it to the application."""
        raw, self._raw_head = self._raw_head, None  # it belongs to the first request of these bytes, and to no other
        if head.method == b"POST" and head.version == "1.1" and self._is_free():
            self._head = self.shared.read_head(head.target, head.headers, keep_alive=head.keep_alive)
        if self._head is None:
            return None
        if raw is not None:
            self.shared.heads.add(raw, self._head)
        self._await_body(self._head, self._head.ids)
        return self

    def _await_body(self, head: RequestHead, ids: Ids) -> None:
        """Begin to hold a body, as long as others do not need the room more."""
        self._head, self._ids = head, ids
        if head.forwarded:
            self._share.address = self._guard.limits.proxies.client(self._connection.address, (head.forwarded,))
        else:
            self._share.address = self._connection.address
        self._share.offer(self._give_way)

    def _give_way(self) -> None:
        self._connection.refuse(gave_way())

    def add_body(self, data: bytes) -> None:
        """Hold a piece of a body.

        Raises:
            Overloaded: the bodies of all connections together are over the budget.
        """
        self._pieces.append(data)
        self._share.add(len(data))

    def complete(self) -> None:
        """Take a request whose last piece was received."""
        assert self._head is not None
        head, body = self._head, b"".join(self._pieces)
        self.abandon()
        self._take(head, body, self._ids)

    def abandon(self) -> bool:
        """Drop what was received of a body."""
        self._head = None
        self._missing = 0
        self._pieces = []
        self._share.release()
        return True

    def half_closed(self) -> None:
        """Find out whether the client still waits."""
        if self._is_waiting():
            connection, seconds = self._connection, self._guard.limits.tick_seconds
            connection.server.run(abort_if_gone(connection.transport, self._is_waiting, seconds))

    def _is_waiting(self) -> bool:
        due = self._outbox.due
        return bool(due) and isinstance(due[0], Exchange)

    def _take(self, head: RequestHead, body: bytes, ids: Ids, usual: KnownHead | None = None) -> None:
        """Put a whole request before the batcher.

        Args:
            head: of it.
            body: all of it.
            ids: the client's own.
            usual: known head of a request that was received in one piece with nothing behind it; so may the next be.
        """
        exchange = Exchange(self._connection, head, self._started, ids)
        if self._guard.draining_since is not None:
            exchange.is_last = True
        if exchange.is_last:
            self._deadlines.phase = Phase.MUST_CLOSE
        else:
            self._deadlines.phase = IDLE
            if usual is not None:
                self._usual = usual
        self._outbox.add(exchange)
        try:
            self._submit(exchange, body, is_whole=usual is not None)
        except ServiceError as err:
            self.shared.failures.add(exchange, err)

    def _submit(self, exchange: Exchange, body: bytes, *, is_whole: bool) -> None:
        """Give a request to the batcher, now or by way of a task.

        Raises:
            ServiceError: it cannot be read, or nothing on the lane answers it any more, or it is refused.
        """
        head = exchange.head
        if head.payer is not None:
            self.shared.access.spend(head.payer)
        if not head.endpoint.is_current:
            head = exchange.head = self.shared.renew(head)
            exchange.receiver, exchange.options = head.endpoint, head.options
        route = head.endpoint.route
        if head.rows:
            exchange.raw_rows, exchange.rows = body, head.rows
        elif route.is_quick(body, head.media_type, head.header_length):
            exchange.read(body)
        if 0 < exchange.rows <= route.max_batch_size:
            is_alone = is_whole and len(self._guard.connections) == 1
            head.endpoint.batcher.submit(exchange, is_alone=is_alone)
        else:
            self._connection.server.run(_answer_slowly(exchange, body, self.shared.decoding))


async def _read_slowly(exchange: Exchange, body: bytes, decoding: WorkQueue | None) -> None:
    """Read a body in a thread; files in it have to be admitted."""
    head = exchange.head
    if decoding is None or not exchange.receiver.route.holds_files(body, head.media_type, head.header_length):
        await asyncio.to_thread(exchange.read, body)
        return
    exchange.first_stage = b"decode"
    await decoding.run(
        lambda job: exchange.read(body, job.beat),
        pixels=expected_pixels(body, head.media_type),
        size=len(body),
        deadline=exchange.deadline,
        is_gone=lambda: exchange.is_over,
    )


async def _answer_slowly(exchange: Exchange, body: bytes, decoding: WorkQueue | None) -> None:
    """Read a body that would hold up the event loop in a thread; split one that fills several batches."""
    model = exchange.receiver.route.model
    try:
        with model.in_use():
            if not exchange.rows:
                await _read_slowly(exchange, body, decoding)
            del body  # of a photograph it is much more than its rows, which may wait for long
            started = time.perf_counter()
            answer = await model.batcher.infer(exchange.inputs, deadline=exchange.deadline)
    except (ServiceError, asyncio.CancelledError) as err:
        if not exchange.is_over:
            exchange.failed(err if isinstance(err, ServiceError) else ended_before())
        return
    batch = BatchAnswer(answer.outputs, exchange.rows, started + answer.queue_seconds, answer.infer_seconds)
    exchange.receiver.receive((exchange,), (0,), batch)
