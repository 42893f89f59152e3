"""A connection whose usual requests take the fast lane: from its bytes to the batcher, and the answers back in order.

The protocol class that uvicorn is given. What it may take is for `lane` to say; everything else goes to the application
as `protocol` and uvicorn do it.
"""

import asyncio
import socket
import time
from collections import deque
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from ..batching.request import BatchAnswer
from ..bodies.budget import Share
from ..errors import Overloaded, ServiceError
from ..transport.protocol import GuardedProtocol, Phase
from .exchange import Exchange, Head, Target
from .lane import LANE, Lane

_HEAD_END = b"\r\n\r\n"
_POST = b"POST "

# The end of what a client sends looks the same whether it still listens or not.
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_PROBE_SECONDS = 0.005


class LaneProtocol(GuardedProtocol):
    """A guarded connection whose usual requests take the lane.

    Requests on the lane are worked on side by side and answered in order. One for the application waits until they
    are answered; while it runs, whatever follows goes to the application too, so that order needs no other rule.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.lane: Lane = app_state[LANE]
        self.outgoing = self.lane.outgoing
        self.exchanges: deque[Exchange] = deque()
        self.head: Head | None = None  # of the request on the lane that is being received
        self._usual: Head | None = None  # what came last, if nothing has happened since that could forbid it
        self._parts: list[bytes] = []
        self._missing = 0  # bytes of a body whose head was known
        self._share = Share(self.lane.budget)
        self._started = 0.0
        self._raw_head: bytes | None = None
        self._deferred: tuple[RequestResponseCycle, ASGI3Application] | None = None

    def data_received(self, data: bytes) -> None:
        """Take requests whose head is known by its bytes; leave the others to the parser."""
        usual = self._usual
        if usual is not None and not self.exchanges and self.phase is Phase.QUIET and data.startswith(usual.raw):
            start = len(usual.raw)
            if len(data) == start + usual.length and usual.target.is_current and self.lane.registry.ready:
                self._started = time.perf_counter()
                self._take(usual, data[start:], is_whole=True)
                return
        self._usual = None
        try:
            while data and self.phase < Phase.DEAF:
                data = self._fill(data) if self._missing else self._receive(data)
        except Overloaded as err:
            self.refuse(err)

    def _receive(self, data: bytes) -> bytes:
        """Take one request, or give the parser everything; returns what came behind the request."""
        raw = None
        if self.phase is Phase.QUIET or self.phase is Phase.OPEN:
            self._started = time.perf_counter()
            end = data.find(_HEAD_END) + 4
            raw = data[:end]
            head = self.lane.heads.get(raw)
            if head is not None and self.lane.registry.ready and not self.is_application_due():
                return self._begin(head, data, end)
        # The parser ends a head at the first empty line too, if the data start with a request at all.
        self._raw_head = raw if raw is not None and raw.startswith(_POST) else None
        super().data_received(data)
        self._raw_head = None
        return b""

    def _begin(self, head: Head, data: bytes, end: int) -> bytes:
        """Take what came of a request whose head was known; returns what came behind it."""
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        stop = end + head.length
        if len(data) >= stop:
            self._take(head, data[end:stop], is_whole=len(data) == stop)
            return data[stop:]
        self.head = head
        self.phase = Phase.BODY
        self.since = self.loop.time()
        self.headers = []
        self._body_bytes = 0
        self._missing = stop - len(data)
        self._keep(data[end:])
        return b""

    def _fill(self, data: bytes) -> bytes:
        """Take more of such a body; returns what came behind it."""
        part, rest = data[: self._missing], data[self._missing :]
        self._missing -= len(part)
        self._keep(part)
        if not self._missing:
            self._take_parts()
        return rest

    def _keep(self, part: bytes) -> None:
        """Hold a piece of a body that is still arriving.

        Raises:
            Overloaded: the bodies of all connections together are over the budget.
        """
        self._parts.append(part)
        self._body_bytes += len(part)
        self._share.add(len(part))

    def _take_parts(self) -> None:
        """Take a request whose last piece has come."""
        assert self.head is not None
        head, body = self.head, b"".join(self._parts)
        self._drop_parts()
        self._take(head, body)

    def _drop_parts(self) -> None:
        self.head = None
        self._missing = 0
        self._parts = []
        self._share.release()

    def accept(self, *, expects_body: bool) -> None:
        """Keep a request on the lane if it holds nothing unusual, else hand it to the application."""
        raw, self._raw_head = self._raw_head, None  # it belongs to the first request of these data, and to no other
        parser = self.parser
        is_usual = parser.get_method() == b"POST" and parser.get_http_version() == "1.1"
        if is_usual and self.lane.registry.ready and not self.is_application_due():
            self.head = self.lane.read_head(self.url, self.headers, keep_alive=parser.should_keep_alive())
        if self.head is None:
            super().accept(expects_body=expects_body)
        elif raw is not None:
            self.lane.remember(raw, self.head)

    def on_body(self, body: bytes) -> None:
        """Keep a piece of a body on the lane."""
        if self.head is None:
            super().on_body(body)
            return
        try:
            self._keep(body)
        except Overloaded as err:
            self.refuse_in_parser(err)

    def on_message_complete(self) -> None:
        """A request on the lane is whole."""
        if self.head is None:
            super().on_message_complete()
            return
        self.since = self.loop.time()
        self._take_parts()

    def _take(self, head: Head, body: bytes, *, is_whole: bool = False) -> None:
        """Put a whole request before the batcher.

        Args:
            head: of it.
            body: all of it.
            is_whole: it came in one piece with nothing behind it, and so may the next.
        """
        exchange = Exchange(self, head, self._started)
        if self.guard.draining_since is not None:
            exchange.is_last = True
        self.exchanges.append(exchange)
        if exchange.is_last:
            self.phase = Phase.DEAF
        else:
            self.phase = Phase.QUIET
            if is_whole and head.raw:
                self._usual = head
        try:
            self._submit(exchange, body, is_whole=is_whole)
        except ServiceError as err:
            self.lane.fail_soon(exchange, err)
        if len(self.exchanges) > self.limits.pipelined:
            self.flow.hold()

    def _submit(self, exchange: Exchange, body: bytes, *, is_whole: bool) -> None:
        """Give a request to the batcher, now or by way of a task.

        Raises:
            ServiceError: it cannot be read, or nothing on the lane answers it any more, or it is refused.
        """
        head = exchange.head
        if not head.target.is_current:
            head = self.lane.renew(head)
            exchange.head, exchange.receiver = head, head.target
        target = head.target
        if head.rows:
            exchange.raw_rows, exchange.rows, exchange.asked = body, head.rows, head.asked
        elif target.route.is_quick(body, head.media_type, head.header_length):
            exchange.read(body)
        if 0 < exchange.rows <= target.most_rows:
            target.batcher.submit(exchange, is_alone=is_whole and self.guard.connections == 1)
        else:
            task = self.loop.create_task(self._take_slowly(exchange, target, body))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _take_slowly(self, exchange: Exchange, target: Target, body: bytes) -> None:
        """Read a body that would hold up the event loop in a thread; split one that fills several batches."""
        model = target.route.model
        try:
            with model.in_use():
                if not exchange.rows:
                    await asyncio.to_thread(exchange.read, body)
                asked = time.perf_counter()
                answer = await model.batcher.infer(exchange.inputs, deadline=exchange.deadline)
        except ServiceError as err:
            if not exchange.is_over:
                exchange.failed(err)
            return
        started = asked + answer.queue_seconds
        batch = BatchAnswer(answer.outputs, exchange.rows, started, answer.infer_seconds)
        target.receive((exchange,), (0,), batch)

    def settle(self, exchange: Exchange, data: bytes) -> None:
        """Write an answer when all before it are written, and those that waited for it."""
        exchanges = self.exchanges
        if exchanges[0] is not exchange:
            exchange.answer = data
            return
        self.transport.write(data)
        exchanges.popleft()
        while exchanges and exchanges[0].answer is not None:
            self.transport.write(exchanges.popleft().answer)  # type: ignore[arg-type]
        if not exchanges:
            self.since = self.loop.time()
            if self._deferred is not None or self.flow.is_held or self.phase is Phase.DEAF:
                self._after_lane()

    def _after_lane(self) -> None:
        """The lane is empty: start what waited for that."""
        if self.flow.is_held and not self.flow.write_paused:
            self.flow.release()
        if self._deferred is not None:
            (cycle, app), self._deferred = self._deferred, None
            super()._start_asgi_task(cycle, app)
        elif self.phase is Phase.DEAF:
            self.after_answer()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if self.exchanges:
            self.running = cycle
            self._deferred = (cycle, app)
        else:
            super()._start_asgi_task(cycle, app)

    def is_answer_due(self) -> bool:
        """Whether a request waits for its answer, on the lane or off it."""
        return bool(self.exchanges) or super().is_answer_due()

    def disown(self) -> bool:
        """Drop the request that is being received."""
        if self.head is not None:
            self._drop_parts()
            return True
        if self._deferred is not None and self._deferred[0] is self.cycle:
            self._deferred = None
        return super().disown()

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that has finished sending may wait for its answers, or be gone; soon we ask."""
        keeps = super().eof_received()
        if self.exchanges:
            self.loop.call_later(_PROBE_SECONDS, self._probe)
        return keeps

    def _probe(self) -> None:
        """Send an interim answer: one who waits ignores it, the system of one who has gone sends a reset."""
        if self.exchanges and not self.transport.is_closing():
            self.transport.write(_CONTINUE)
            self.loop.call_later(_PROBE_SECONDS, self._drop_if_gone)

    def _drop_if_gone(self) -> None:
        sock = self.transport.get_extra_info("socket")
        if not self.exchanges or self.transport.is_closing():
            return
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(self.limits.tick_seconds, self._drop_if_gone)

    def shutdown(self) -> None:
        """The service ends: the newest request on the lane becomes the connection's last."""
        super().shutdown()
        self._usual = None
        if self.phase is Phase.QUIET and self.exchanges and not self.is_application_due():
            self.exchanges[-1].is_last = True
            self.phase = Phase.DEAF

    def connection_lost(self, exc: Exception | None) -> None:
        """Spare the engine what nobody waits for any more."""
        for exchange in self.exchanges:
            exchange.cancel()
        self.exchanges.clear()
        self._drop_parts()
        self._deferred = None
        super().connection_lost(exc)
