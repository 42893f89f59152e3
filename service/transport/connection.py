"""One connection: a parser, deadlines, flow control and an outbox, and what they are called for.

Between the socket and the application. Refuses what is too slow, too large or not HTTP before any application sees it,
in the service's one error shape; what gets through goes on untouched. A function that uvicorn is given as `http=` makes
one for each socket.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from ..errors import EngineError, InvalidInput, Overloaded, ServiceError
from ..request_context import read_request_id, read_traceparent
from .asgi import Application, AsgiRequest, Server, address
from .deadlines import Deadlines, Overdue, Phase
from .flow import Flow
from .guard import Guard
from .outbox import Outbox
from .parser import ParsedHead, RequestParser
from .proxy_protocol import ProxyHeader
from .wire import error_bytes

IDLE = Phase.IDLE  # on each request's way, where looking a member up in its class would cost a tenth of a microsecond
_log = logging.getLogger(__name__)

GUARD = "guard"  # the key of the lifespan's state


class Receiver(Protocol):
    """Takes what follows the head of one request."""

    def add_body(self, data: bytes) -> None:
        """Take a piece of the body. Raises `ServiceError` to refuse the request."""

    def complete(self) -> None:
        """The request is whole."""

    def abandon(self) -> bool:
        """Give up a request that will not be whole; False when a part of its answer is written already."""


class Lane(Protocol):
    """Takes some requests of a connection past the application."""

    def receive(self, data: bytes) -> bytes:
        """Take requests by their bytes; returns what is left for the parser. Raises `ServiceError` to refuse one."""

    def accept(self, head: ParsedHead) -> Receiver | None:
        """Take a request by its head; None leaves it to the application."""

    def half_closed(self) -> None:
        """The client has finished sending."""


class Connection(asyncio.Protocol):
    """One connection. The guard's clock looks at its deadlines, so that a request costs no timer of its own.

    Args:
        server: what uvicorn gives to all connections.
        guard: limits, and what all connections together may do.
        open_lane: makes this connection's way past the application.

    Attributes:
        receiving: takes the body that is being received.
        address: of the other end, or of the client that a trusted proxy names there.
    """

    transport: asyncio.Transport
    flow: Flow
    outbox: Outbox
    lane: Lane

    def __init__(self, server: Server, guard: Guard, open_lane: "Callable[[Connection], Lane]") -> None:
        self.server = server
        self.guard = guard
        self.loop = asyncio.get_running_loop()
        self.deadlines = Deadlines(guard.limits, server.config.timeout_keep_alive, self.loop.time())
        self.parser = RequestParser(guard.limits, self)
        self.receiving: Receiver | None = None
        self._open_lane = open_lane
        self.address = ""
        self._proxy_header: ProxyHeader | None = None  # where a trusted proxy may still write one
        self._is_last = False  # no request may follow the one that is being received
        self._is_half_closed = False
        self._refusal: bytes | None = None  # of the last request, behind the answers to those before it

    # -- the event loop calls ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is no other kind
        """Count the connection; one too many is told so and closed."""
        self.transport = transport
        self.flow = Flow(transport)
        self.outbox = Outbox(transport, self.flow, self.guard.limits.pipelined, self._answer_sent)
        peer = address(transport, "peername")
        self.address = peer[0] if peer else ""
        proxies = self.guard.limits.proxies
        if proxies.trusts(self.address):
            self._proxy_header = ProxyHeader()
        self._application = Application(
            self.server, transport, self.flow, self.outbox, self._close_behind_answer, proxies
        )
        self.lane = self._open_lane(self)
        self.server.state.connections.add(self)  # type: ignore[arg-type]  # uvicorn lists its own classes
        if not self.guard.enter(self, self.address):
            self.refuse(_no_place())

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whatever still works for this client that it has gone."""
        self.guard.leave(self, self.address)
        self.server.state.connections.discard(self)
        self.deadlines.enter(Phase.CLOSED, self.loop.time())
        if self.receiving is not None:
            self.receiving.abandon()
        self.outbox.close()
        self.flow.resume_writing()
        # What refers back to the connection goes, so that its memory is freed at once and not by the collector.
        self.parser.close()
        self.receiving = None
        del self.lane, self._application

    def data_received(self, data: bytes) -> None:
        """Show the bytes to the lane, then to the parser; refuse what one of them objects to."""
        try:
            if self._proxy_header is not None and self.deadlines.phase is Phase.NEW:
                data = self._read_proxy_header(self._proxy_header, data)
                if not data:
                    return
            rest = self.lane.receive(data)
            if rest and self.deadlines.phase < Phase.MUST_CLOSE:
                self.parser.feed(rest)
        except ServiceError as err:
            self.refuse(err)
        except Exception as err:  # a mistake of ours: its request is answered like any other that fails
            _log.exception("a connection failed and is closed")
            self.refuse(EngineError(str(err)))

    def _read_proxy_header(self, header: ProxyHeader, data: bytes) -> bytes:
        """Take what a trusted proxy says of its client; returns what is behind it.

        Raises:
            InvalidInput: it is no such header.
            Overloaded: there is no place for that client.
        """
        rest = header.feed(data)
        if rest is None:
            return b""
        self._proxy_header = None
        if header.address is not None:
            before, self.address = self.address, header.address
            self._application = replace(self._application, announced=header.address)
            if not self.guard.move(self, before, self.address):
                raise _no_place()
        return rest

    def eof_received(self) -> bool:
        """Keep the connection while a client that has finished sending waits for its answers."""
        self._is_half_closed = True
        if self.deadlines.phase in (Phase.HEAD, Phase.BODY):
            self.refuse(InvalidInput("the request ended before it was complete: send all of it"))
        elif self.deadlines.phase is Phase.IDLE:
            self.deadlines.enter(Phase.MUST_CLOSE, self.loop.time())
        self.lane.half_closed()
        return bool(self.outbox.due) and not self.transport.is_closing()

    def pause_writing(self) -> None:
        """Take no more requests from a client that does not read its answers."""
        self.flow.pause_writing()

    def resume_writing(self) -> None:
        """Take requests again."""
        self.flow.resume_writing()

    # -- the parser calls ----------------------------------------------------------------------------------------

    def request_started(self) -> None:
        """Start the clock of the headers."""
        self.deadlines.enter(Phase.HEAD, self.loop.time())

    def head_received(self, head: ParsedHead) -> None:
        """Give a request to the lane or, if that leaves it, to the application."""
        is_last = self.guard.draining_since is not None or not head.keep_alive
        receiver = self.lane.accept(head) or self._open_request(head, is_last=is_last)
        self.start_body(receiver, is_last=is_last)

    def body_received(self, data: bytes) -> None:
        """Hand on a piece of the body."""
        assert self.receiving is not None
        self.deadlines.body_bytes += len(data)
        self.receiving.add_body(data)

    def request_received(self) -> None:
        """The request is whole; another may follow unless this was the last."""
        receiving, self.receiving = self.receiving, None
        self.deadlines.enter(Phase.MUST_CLOSE if self._is_last else Phase.IDLE, self.loop.time())
        assert receiving is not None
        receiving.complete()

    def start_body(self, receiver: Receiver, *, is_last: bool) -> None:
        """Receive a body; with `is_last` no request may follow it."""
        self.receiving = receiver
        self._is_last = is_last
        self.deadlines.enter(Phase.BODY, self.loop.time())

    def _open_request(self, head: ParsedHead, *, is_last: bool) -> AsgiRequest:
        """Line up a request for the application."""
        request = AsgiRequest(self._application, head, is_last=is_last)
        if self.outbox.add(request):
            request.start()
        else:
            self.flow.pause_reading()
        return request

    # -- answers -------------------------------------------------------------------------------------------------

    def refuse(self, error: ServiceError) -> None:
        """Answer the request that is being received with an error, after all earlier ones, and close."""
        if self.deadlines.phase >= Phase.MUST_CLOSE:
            return
        if self.receiving is not None and not self.receiving.abandon():
            self.transport.close()  # half an answer is out: all that can be said is that there is no more
            return
        self.receiving = None
        now = self.loop.time()
        seconds = now - self.deadlines.since
        self.guard.refused(error.status, seconds)
        headers, default_headers = dict(self.parser.headers), self.server.state.default_headers
        request_id = read_request_id(headers.get(b"x-request-id"))
        traceparent = read_traceparent(headers.get(b"traceparent"))
        self._refusal = error_bytes(error, request_id, default_headers, seconds, is_last=True, traceparent=traceparent)
        self.deadlines.enter(Phase.MUST_CLOSE, now)
        self._close_if_answered()

    def finish(self, *, linger: bool = False) -> None:
        """Close; with `linger` a client may go on sending for a moment, since a reset would eat its answer."""
        self.deadlines.enter(Phase.CLOSED, self.loop.time())
        self.outbox.close()
        if linger and not self._is_half_closed and self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.discard_rest()
        else:
            self.transport.close()

    def _answer_sent(self) -> None:
        """Start the clock of an idle connection, or close behind the last answer."""
        if self.deadlines.phase is IDLE:
            self.deadlines.since = self.loop.time()
        elif self.deadlines.phase is Phase.MUST_CLOSE:
            self._close_if_answered()

    def _close_if_answered(self) -> None:
        """Write the refusal, if there is one, and close, unless answers are due before."""
        if self.outbox.due:
            return
        if self._refusal is not None:
            self.transport.write(self._refusal)
        self.finish(linger=self._refusal is not None and self.guard.may_linger)

    def _close_behind_answer(self) -> None:
        """Close because the application's answer was the last; the rest of its request may still be on its way."""
        self.finish(linger=self.deadlines.phase is Phase.BODY)

    # -- the guard and the server call ---------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Act on a deadline that has passed."""
        unread_bytes = self.transport.get_write_buffer_size()
        if self.deadlines.is_read_too_slowly(now, unread_bytes):
            self.abort()
        if unread_bytes or self.transport.is_closing():
            return
        if self.flow.read_paused and self.deadlines.phase is Phase.BODY:  # it is we who do not read
            self.deadlines.excuse(self.guard.limits.tick_seconds)
        overdue = self.deadlines.overdue(
            now, is_answer_due=bool(self.outbox.due), draining_since=self.guard.draining_since
        )
        if isinstance(overdue, ServiceError):
            self.refuse(overdue)
        elif overdue is Overdue.CLOSE:
            self.finish()
        elif overdue is Overdue.ABORT:
            self.abort()

    def abort(self) -> None:
        """Close at once, whatever is due."""
        self.transport.abort()

    def shutdown(self) -> None:
        """The service ends: answer what was received, the last answer with `Connection: close`; take nothing new."""
        now = self.loop.time()
        self.guard.drain(now)
        if self.deadlines.phase is Phase.IDLE and self.outbox.due:
            self.outbox.due[-1].end_connection()
            self.deadlines.enter(Phase.MUST_CLOSE, now)


def _no_place() -> Overloaded:
    return Overloaded("this server, or this address, holds all the connections it may: close some")
