"""The HTTP protocol of one connection: uvicorn's own on httptools, with every limit that it leaves to others.

Between the socket and the application. Refuses what is too slow, too large or not HTTP before any application sees it,
in the service's one error shape; what gets through goes on untouched. Given to uvicorn as `http=`; its `Guard` comes
in the lifespan's state under `GUARD`, and without one the defaults hold.
"""

import asyncio
from enum import IntEnum
from typing import Any, NoReturn

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from ..errors import (
    BodyTooLarge,
    HeadersTooLarge,
    InvalidInput,
    NotReady,
    Overloaded,
    RequestTimeout,
    ServiceError,
    Unsupported,
)
from .guard import Guard
from .wire import refusal

GUARD = "guard"  # the key of the lifespan's state

# Idle connections stay this long after the service began to end: a request that was on its way is still answered.
_IDLE_DRAIN_SECONDS = 0.3


class Phase(IntEnum):
    """Where a connection stands with what it receives; in the last two, nothing more is read."""

    OPEN = 0  # not one byte has come
    HEAD = 1
    BODY = 2
    QUIET = 3  # between requests
    DEAF = 4  # the last request has come; answers may still be due
    CLOSING = 5  # all answers are written


class HeldFlow(FlowControl):
    """Flow control whose pause cannot be undone by an application that asks for more body."""

    is_held = False

    def hold(self) -> None:
        """Stop reading until `release`."""
        self.is_held = True
        self.pause_reading()

    def release(self) -> None:
        """Read again."""
        self.is_held = False
        self.resume_reading()

    def resume_reading(self) -> None:
        """Read again unless held."""
        if not self.is_held:
            super().resume_reading()


class _LastWord:
    """The transport as an answer sees it that may end before its request does: `close` lets the client finish."""

    def __init__(self, protocol: "GuardedProtocol") -> None:
        self._protocol = protocol
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing

    def close(self) -> None:
        self._protocol.finish(hear_out=self._protocol.phase is Phase.BODY)


class GuardedProtocol(HttpToolsProtocol):
    """One connection. Deadlines are looked at by the guard's clock, so that a request costs no timer of its own."""

    transport: asyncio.Transport
    flow: HeldFlow

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        if GUARD not in app_state:
            app_state[GUARD] = Guard()
        self.guard: Guard = app_state[GUARD]
        self.limits = self.guard.limits
        self.address = ""
        self.phase = Phase.OPEN
        self.since = self.loop.time()  # of this phase
        self.running: RequestResponseCycle | None = None  # whose answer is due next
        self.is_half_closed = False
        self.is_last = False  # no request may follow the one that is being received
        self._refused: ServiceError | None = None  # raised in one of the parser's callbacks
        self._last_answer: bytes | None = None  # a refusal that waits until earlier requests are answered
        self._head_bytes = self._head_count = self._body_bytes = self._partial_bytes = 0
        self._unread_since: float | None = None
        self._unread_bytes = 0

    # -- the transport calls -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection; one too many is told so and closed."""
        super().connection_made(transport)
        self.flow = HeldFlow(transport)
        self.address = self.client[0] if self.client else ""
        self.guard.enter(self, self.address)
        if self.guard.is_full_for(self.address):
            self.refuse(Overloaded("this server, or this address, holds all the connections it may: close some"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever still works for this client that nobody waits."""
        self.guard.leave(self, self.address)
        if self.running is not None and not self.running.response_complete:
            self.running.disconnected = True
            self.running.message_event.set()
        self.pipeline.clear()
        self.phase = Phase.CLOSING
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and refuse what it or a limit objects to."""
        if self.phase >= Phase.DEAF:
            return
        self._unset_keepalive_if_required()
        was_head = self.phase is Phase.HEAD
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # the request itself is answered as if it had not asked; see on_headers_complete
        except httptools.HttpParserError as err:
            # After the last request the parser takes whatever follows for an error; there it is of no interest.
            if self.phase < Phase.DEAF:
                self.refuse(self._refused or InvalidInput(f"not an HTTP/1.1 request: {err}"))
            return
        if was_head and self.phase is Phase.HEAD:  # headers are seen only when whole: count what they are made of
            self._partial_bytes += len(data)
            if self._partial_bytes > self.limits.header_bytes:
                self.refuse(self._headers_too_large())

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's closes at once
        """Keep the connection while a client that has finished sending waits for its answers."""
        self.is_half_closed = True
        if self.phase in (Phase.HEAD, Phase.BODY):
            self.refuse(InvalidInput("the request ended before it was complete: send all of it"))
        elif self.phase is Phase.QUIET:
            self.phase = Phase.DEAF
        return self.is_answer_due() and not self.transport.is_closing()

    def pause_writing(self) -> None:
        """Take no more requests from a client that does not read its answers."""
        super().pause_writing()
        self.flow.hold()

    def resume_writing(self) -> None:
        """Take requests again."""
        super().resume_writing()
        if len(self.pipeline) <= self.limits.pipelined:
            self.flow.release()

    # -- the parser calls ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start the clock of the headers; a first request's has run since the connection was made."""
        super().on_message_begin()
        if self.phase is not Phase.OPEN:
            self.since = self.loop.time()
        self.phase = Phase.HEAD
        self._head_bytes = self._head_count = self._body_bytes = self._partial_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Count and keep the target."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count and keep a header; a trailer is only counted, so that it can never pass for a header."""
        self._head_count += 1
        self._count_head(len(name) + len(value) + 4)
        if self.phase is Phase.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Refuse by the headers alone what needs no body, then hand the request on."""
        expects_body = self._check_body_headers()
        if expects_body and self.parser.should_upgrade():
            self.refuse_in_parser(Unsupported("Upgrade: no other protocol is spoken here, send the request without"))
        self.is_last = self.guard.draining_since is not None or self.parser.should_upgrade()
        self.accept(expects_body=expects_body)
        self.phase = Phase.BODY
        self.since = self.loop.time()

    def on_body(self, body: bytes) -> None:
        """Count and pass on a piece of the body."""
        self._body_bytes += len(body)
        if self._body_bytes > self.limits.body_bytes:
            self.refuse_in_parser(self._body_too_large(f"{self._body_bytes} or more"))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole; another may follow unless this was the last."""
        super().on_message_complete()
        self.phase = Phase.DEAF if self.is_last else Phase.QUIET
        self.since = self.loop.time()

    def accept(self, *, expects_body: bool) -> None:
        """Hand a request whose headers have passed to the application."""
        super().on_headers_complete()
        if self.is_last:
            self.cycle.keep_alive = False
        self.is_last = not self.cycle.keep_alive
        if expects_body:
            self.cycle.transport = _LastWord(self)  # type: ignore[assignment]
        if len(self.pipeline) > self.limits.pipelined:
            self.flow.hold()

    # -- answers -------------------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Start the next request in line, or say what waited for the last answer."""
        super().on_response_complete()
        if self.phase in (Phase.QUIET, Phase.DEAF):
            self.since = self.loop.time()
        if self.transport.is_closing() or self.phase is Phase.CLOSING:
            return
        if self.flow.is_held and not self.flow.write_paused and len(self.pipeline) <= self.limits.pipelined:
            self.flow.release()
        self.after_answer()

    def after_answer(self) -> None:
        """Say the last word, or close, once no answer is due before it."""
        if self.is_answer_due():
            return
        if self._last_answer is not None:
            self.transport.write(self._last_answer)
            self._last_answer = None
            self.finish(hear_out=True)
        elif self.phase is Phase.DEAF:
            self.finish()

    def is_answer_due(self) -> bool:
        """Whether a request that came whole, or is being answered already, waits for its answer."""
        return self.is_application_due()

    def is_application_due(self) -> bool:
        """Whether the application works for this connection, or will."""
        return bool(self.pipeline) or (self.running is not None and not self.running.response_complete)

    def refuse(self, error: ServiceError) -> None:
        """Answer the request that is being received with an error, after all earlier ones, and close."""
        if self.phase >= Phase.DEAF:
            return
        self.guard.count_refusal(error.status)
        if self.phase is Phase.BODY and not self.disown():
            self.transport.close()  # half an answer is out: all that can be said is that there is no more
            return
        self.phase = Phase.DEAF
        now = self.loop.time()
        self._last_answer = refusal(
            error, self.headers or (), self.server_state.default_headers, seconds=now - self.since
        )
        self.since = now
        self.after_answer()

    def disown(self) -> bool:
        """Take the request that is being received away from the application; False when an answer has begun."""
        own = self.cycle
        if own.response_started:
            return False
        own.disconnected = True
        own.message_event.set()
        if own is self.running:
            self.running = None
        else:
            self.pipeline.popleft()  # uvicorn puts the newest on the left
        return True

    def finish(self, *, hear_out: bool = False) -> None:
        """Close; with `hear_out` a client may go on sending for a moment, since a reset would eat its answer."""
        self.phase = Phase.CLOSING
        self.since = self.loop.time()
        if hear_out and not self.is_half_closed and self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.release()
        else:
            self.transport.close()

    # -- the guard and the server call ---------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Act on a deadline that has passed."""
        if self._is_read_too_slowly(now):
            self.transport.abort()
        if self.transport.is_closing() or self._unread_since is not None:
            return
        elapsed = now - self.since
        if self.phase is Phase.CLOSING:
            if elapsed > self.limits.linger_seconds:
                self.transport.abort()
        elif self.phase is Phase.HEAD:
            if elapsed > self.limits.header_seconds:
                self.refuse(RequestTimeout(f"headers: not complete after {elapsed:.1f} s, send them at once"))
        elif self.phase is Phase.BODY:
            self._check_body(elapsed)
        elif self.phase < Phase.DEAF and not self.is_answer_due():
            self._check_idle(elapsed)
        self._check_drain(now)

    def shutdown(self) -> None:
        """The service ends: answer what came, with `Connection: close`, and take nothing new."""
        self.guard.drain(self.loop.time())
        if self.phase is Phase.QUIET and self.is_application_due():
            self.cycle.keep_alive = False
            self.phase = Phase.DEAF

    def _check_body(self, elapsed: float) -> None:
        if self.flow.read_paused:  # it is we who do not read
            self.since += self.limits.tick_seconds
        elif elapsed > self.limits.body_seconds + self._body_bytes / self.limits.body_bytes_per_second:
            came = f"{self._body_bytes} bytes after {elapsed:.1f} s"
            self.refuse(RequestTimeout(f"body: {came}, expected all of it sooner: send it at once"))

    def _check_idle(self, elapsed: float) -> None:
        if elapsed > (self.limits.header_seconds if self.phase is Phase.OPEN else self.timeout_keep_alive):
            self.finish()

    def _check_drain(self, now: float) -> None:
        if self.guard.draining_since is None or self.phase >= Phase.DEAF:
            return
        elapsed = now - self.guard.draining_since
        if self.phase in (Phase.HEAD, Phase.BODY):
            if elapsed > self.limits.drain_seconds:
                self.refuse(NotReady("the service is shutting down; ask again"))
        elif elapsed > _IDLE_DRAIN_SECONDS and not self.is_answer_due():
            self.finish()

    def _is_read_too_slowly(self, now: float) -> bool:
        """Whether answers have waited in our memory for longer than their reader's speed excuses."""
        waiting = self.transport.get_write_buffer_size()
        if not waiting:
            self._unread_since = None
            return False
        if self._unread_since is None:
            self._unread_since, self._unread_bytes = now, waiting
        self._unread_bytes = max(self._unread_bytes, waiting)
        read = self._unread_bytes - waiting
        allowed = self.limits.write_seconds + read / self.limits.write_bytes_per_second
        return bool(now - self._unread_since > allowed)

    # -- limits --------------------------------------------------------------------------------------------------

    def _count_head(self, length: int) -> None:
        self._head_bytes += length
        if self._head_bytes > self.limits.header_bytes or self._head_count > self.limits.header_count:
            self.refuse_in_parser(self._headers_too_large())

    def _check_body_headers(self) -> bool:
        """Refuse a body by its stated length; return whether any body is to come."""
        for name, value in self.headers:
            if name == b"content-length":
                if int(value) > self.limits.body_bytes:
                    self.refuse_in_parser(self._body_too_large(value.decode()))
                return int(value) > 0
            if name == b"transfer-encoding":
                return True
        return False

    def _headers_too_large(self) -> HeadersTooLarge:
        limits = self.limits
        return HeadersTooLarge(f"headers: expected at most {limits.header_count}, and {limits.header_bytes} bytes")

    def _body_too_large(self, came: str) -> BodyTooLarge:
        return BodyTooLarge(f"body: {came[:20]} bytes came, expected at most {self.limits.body_bytes}")

    def refuse_in_parser(self, error: ServiceError) -> NoReturn:
        """Stop the parser; it wraps what a callback raises, so `data_received` finds the error here."""
        self._refused = error
        raise error
