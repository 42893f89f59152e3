"""The connections of gRPC before its library sees them: limits as for HTTP, which the library does not have.

Each connection is passed on to the library through a socket of this process, and its frames are watched on the way. A
message counts against the budget of bytes while it arrives; one that is too large, too slow or over the budget ends
its call with a status, and the connection goes on. Reads no header and no message. Calls that a lane takes do not reach
the library; all it learns of them is that their streams have been.
"""

import asyncio
import contextlib
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import grpc

from ...bodies.budget import BodyBudget
from ...error_answers import ErrorLog, error_answer
from ...errors import BodyTooLarge, NotReady, Overloaded, RequestTimeout, ServiceError
from ...request_context import new_request_id
from ...transport.even import EvenServer
from ...transport.guard import Guard
from .frames import (
    CANCEL,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADER_BYTES,
    HEADERS,
    NO_KIND,
    PREFACE_BYTES,
    RST_STREAM,
    FrameReader,
    Piece,
    farewell,
    literal,
    refusal,
    reset,
)
from .side import Side, Stream

ROUTE = "gRPC"  # of refused calls and connections in log and metrics: their own route is not known here

_FULL = b"connections: too many are open, try again later"
_HEAR_SECONDS = 1.0  # in which a client hears that the service ends, and what it sent before has arrived
_LAST_STREAM = 0x7FFF_FFFF
_KIND = 3  # where the type of a frame stands in its header
# The status, CANCELLED, with which the library ends calls that nobody has taken yet when it is told to stop.
_NOT_TAKEN = literal((b"grpc-status", b"1"))


def _start(piece: Piece) -> int:
    """Return where the frame of a whole payload begins among the bytes that were read; negative: in those before."""
    return piece.stop - len(piece.payload) - HEADER_BYTES


def _nothing() -> None:
    """Nothing waits for the end of a lane."""


class Lane(Protocol):
    """Takes some calls of a connection past the library.

    Attributes:
        last_stream: the highest stream that it has taken.
        is_busy: whether it owes answers.
        is_half: whether it holds a frame that the client has not ended.
    """

    last_stream: int

    @property
    def is_busy(self) -> bool:
        """See above."""

    @property
    def is_half(self) -> bool:
        """See above."""

    def receive(self, data: bytes) -> None:
        """Take calls out of what a client has sent; all else is passed on."""

    def leave(self, ended: Callable[[], None]) -> None:
        """The library takes no more calls on this connection: take none either, and say when no answer is owed."""

    def close(self) -> None:
        """The client has gone."""


class Gate:
    """What all connections share.

    Args:
        folder: empty and for this user alone; the library listens in it, and is removed at the end.
        guard: limits and counts of connections.
        budget: of the bytes of all requests.
        max_bytes: of one message.
        error_log: told of every call that is refused here.
        open_lane: makes a connection's way past the library; None: there is none.
    """

    def __init__(
        self,
        folder: Path,
        guard: Guard,
        budget: BodyBudget,
        max_bytes: int,
        error_log: ErrorLog,
        open_lane: "Callable[[Outside], Lane] | None" = None,
    ) -> None:
        self.folder = folder
        self.guard = guard
        self.budget = budget
        self.max_bytes = max_bytes
        self.error_log = error_log
        self.open_lane = open_lane
        self.leaving_since: float | None = None
        self._addresses: dict[str, str] = {}
        self._number = 0
        self._server: asyncio.Server | EvenServer | None = None

    @property
    def inside(self) -> str:
        """Where the library listens."""
        return str(self.folder / "grpc")

    async def open(self, listener: socket.socket) -> None:
        """Take connections from a socket that listens."""
        connections = self.guard.open_connections
        if connections is not None:
            self._server = EvenServer(listener, lambda: Outside(self), connections)
        else:
            self._server = await asyncio.get_running_loop().create_server(lambda: Outside(self), sock=listener)

    def close(self) -> None:
        """Take no more connections; those that are open go on as long as they have calls."""
        self.leaving_since = asyncio.get_running_loop().time()
        if self._server is not None:
            self._server.close()

    async def answered(self, seconds: float) -> None:
        """Wait, for so long at most, until lanes owe no answers."""
        owed: list[asyncio.Event] = []
        for connection in self.guard.connections:
            if isinstance(connection, Outside) and connection.lane is not None and connection.lane.is_busy:
                owed.append(asyncio.Event())
                connection.lane.leave(owed[-1].set)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(event.wait() for event in owed))

    def end(self) -> None:
        """Close all connections."""
        for connection in tuple(self.guard.connections):
            if isinstance(connection, Outside):
                connection.abort()
        shutil.rmtree(self.folder, ignore_errors=True)

    def address(self, peer: str) -> str:
        """Return the address of a client by the name that the library has for its connection."""
        return self._addresses.get(peer.rpartition("/")[2], "")

    def connect(self, address: str) -> tuple[socket.socket, str]:
        """Return a connection to the library on behalf of an address, and the name by which the library knows it.

        Raises:
            OSError: the library takes no more connections.
        """
        self._number += 1
        name = str(self._number)
        place = self.folder / name
        inner = socket.socket(socket.AF_UNIX)
        try:
            inner.setblocking(False)
            inner.bind(str(place))
            inner.connect(self.inside)
        except OSError:
            inner.close()
            raise
        finally:
            place.unlink(missing_ok=True)
        self._addresses[name] = address
        return inner, name

    def forget(self, name: str) -> None:
        """Forget a connection."""
        self._addresses.pop(name, None)


class Inside(Side):
    """The library's socket: says which calls have ended."""

    def __init__(self, outside: "Outside") -> None:
        super().__init__(FrameReader())
        self.other: Side = outside
        self._outside = outside
        self._streams = outside.streams

    def watch(self, piece: Piece) -> None:
        """Note which calls have an answer that begins, and which have ended."""
        if piece.kind == GOAWAY:
            self._keep_taken_calls(piece)
        if not piece.stream or piece.left:
            return
        if self._outside.is_leaving and self._is_not_taken(piece):
            # A client that asks again only where nobody is there would give the call up: it hears that instead.
            self.changes.append((_start(piece) + _KIND, bytes((NO_KIND, 0))))
            self._outside.refuse(piece.stream, NotReady("the service is shutting down; ask again"))
        elif piece.kind == RST_STREAM or (piece.flags & END_STREAM and piece.kind in (DATA, HEADERS)):
            self._outside.drop(piece.stream)
        elif piece.kind == HEADERS and piece.stream in self._streams:
            self._streams[piece.stream].has_headers = True
        elif piece.kind == DATA and piece.stream in self._streams:
            stream = self._streams[piece.stream]
            if stream.meter.is_between:  # a message was answered, and no other is on its way
                stream.share.release()

    def connection_lost(self, exc: Exception | None) -> None:
        """The library has closed the connection."""
        lane = self._outside.lane
        if lane is not None and self.reader.is_between:
            lane.leave(self.other.transport.close)
        else:
            self.other.transport.close()

    def _is_not_taken(self, piece: Piece) -> bool:
        stream = self._streams.get(piece.stream)
        if stream is None or stream.has_headers or piece.kind != HEADERS or not piece.flags & END_STREAM:
            return False
        return piece.is_first and _start(piece) >= 0 and _NOT_TAKEN in bytes(piece.payload)

    def _keep_taken_calls(self, piece: Piece) -> None:
        """Name the last stream of a connection that ends as it is: the library does not know of those it never saw.

        A client takes those behind the last one for not worked on, and sends them again.
        """
        lane = self._outside.lane
        if lane is None or not piece.is_first or len(piece.payload) < 4:
            return
        lane.leave(_nothing)
        last = int.from_bytes(piece.payload[:4]) & _LAST_STREAM
        if lane.last_stream > last:
            self.changes.append((piece.stop - len(piece.payload), lane.last_stream.to_bytes(4)))


class Outside(Side):
    """A client's socket.

    Args:
        gate: what it shares with others.

    Attributes:
        streams: the calls that run in the library, by the number of their stream.
        last_stream: the highest stream that was passed on.
        lane: takes calls past the library; None where there is none.
    """

    def __init__(self, gate: Gate) -> None:
        super().__init__(FrameReader(PREFACE_BYTES))
        self.streams: dict[int, Stream] = {}
        self.last_stream = 0
        self.lane = None if gate.open_lane is None else gate.open_lane(self)
        self._gate = gate
        self._address = ""
        self._name = ""
        self._arriving: dict[int, Stream] = {}
        self._half_since: float | None = None  # since when a frame that is no message's has been arriving
        self._connecting: asyncio.Task[None] | None = None
        self._refused_since: float | None = None
        self._early: list[bytes] | None = []  # until there is a connection to the library

    @property
    def is_leaving(self) -> bool:
        """Whether the library has been told to stop."""
        return self._gate.leaving_since is not None

    def _is_left(self, now: float) -> bool:
        """Whether the service ends, and the client has had time to hear of it and has no call."""
        since = self._gate.leaving_since
        is_heard = since is not None and now - since > _HEAR_SECONDS
        return is_heard and not self.streams and (self.lane is None or not self.lane.is_busy)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a client in, or say that there are too many."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self._address = peer[0] if peer else ""
        self._half_since = asyncio.get_running_loop().time()
        if self._gate.guard.enter(self, self._address):
            self.transport.pause_reading()
            self._connecting = asyncio.create_task(self._connect())
        else:
            self._turn_away()

    def receive(self, data: bytes) -> None:
        """Show the lane what a client sends; what that leaves is passed on."""
        if self._refused_since is not None:
            return
        if self._early is not None:  # reading is paused, but uvloop may have read once before
            self._early.append(data)
            return
        if self.lane is not None:
            self.lane.receive(data)
        else:
            self.pass_on(data)
        self.note_half()

    def note_half(self) -> None:
        """Begin or end the time in which a frame that is no message's has to be whole."""
        is_half = not (self.reader.is_between or self.reader.is_in_data)
        if not is_half and (self.lane is None or not self.lane.is_half):
            self._half_since = None
        elif self._half_since is None:
            self._half_since = asyncio.get_running_loop().time()

    def watch(self, piece: Piece) -> None:
        """Note which calls begin, and count what arrives of their messages."""
        if piece.kind == DATA:
            self._count(piece)
        elif piece.kind == HEADERS and piece.stream > self.last_stream:
            self.last_stream = piece.stream
            self.streams[piece.stream] = Stream(self._gate.budget)
        elif piece.kind == RST_STREAM:
            self.drop(piece.stream)

    def check(self, now: float) -> None:
        """Act if a deadline has passed; `now` is the loop's time."""
        limits = self._gate.guard.limits
        if self._refused_since is not None:
            if now - self._refused_since > limits.linger_seconds:
                self.abort()
        elif self._half_since is not None and now - self._half_since > limits.header_seconds:
            self._gate.guard.refused(RequestTimeout.status, now - self._half_since)
            self.abort()
        elif self._is_left(now):
            self.transport.close()
        elif self.blocked_since is not None and now - self.blocked_since > limits.write_seconds:
            self.abort()
        else:
            for number, stream in tuple(self._arriving.items()):
                if now - stream.since > limits.body_seconds:
                    self.refuse(number, RequestTimeout(f"message: not here in whole after {limits.body_seconds:g} s"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        gate = self._gate
        gate.guard.leave(self, self._address)
        gate.forget(self._name)
        for number in tuple(self.streams):
            self.drop(number)
        if self.lane is not None:
            self.lane.close()
            self.lane = None
        if hasattr(self, "other"):
            self.other.transport.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    async def _connect(self) -> None:
        try:
            inner, self._name = self._gate.connect(self._address)
        except OSError:
            if not self.transport.is_closing():
                self._turn_away()
                self.transport.resume_reading()
            return
        _, self.other = await asyncio.get_running_loop().create_unix_connection(lambda: Inside(self), sock=inner)
        if self.transport.is_closing():
            self.other.transport.abort()
            return
        early, self._early = self._early or [], None
        for data in early:
            self.data_received(data)
        self.transport.resume_reading()

    def _turn_away(self) -> None:
        """Say that there are too many connections; the client has a moment to read it."""
        self._refused_since = asyncio.get_running_loop().time()
        self._half_since = None
        guard = self._gate.guard
        guard.refused(Overloaded.status, 0.0)
        self.transport.write(farewell(_FULL))
        if guard.may_linger:
            self.transport.write_eof()
        else:
            self.transport.close()

    def _count(self, piece: Piece) -> None:
        """Count a part of a message; it ends with its call where it breaks a limit."""
        number = piece.stream
        stream = self.streams.get(number)
        if stream is None:
            return
        meter = stream.meter
        if meter.read(piece):
            self._arriving.pop(number, None)
        if meter.is_between:  # the library holds what is here until the call has taken it: its share stays
            return
        if number not in self._arriving:
            stream.share.release()
            self._arriving[number] = stream
            stream.since = asyncio.get_running_loop().time()
        try:
            if meter.expected > self._gate.max_bytes:
                raise BodyTooLarge(f"message: {meter.expected} bytes, expected at most {self._gate.max_bytes}")
            stream.share.add(meter.received - stream.share.held_bytes)
        except ServiceError as err:
            self.refuse(number, err)

    def refuse(self, number: int, error: ServiceError) -> None:
        """End a call: the library hears that the client has left it, and the client why."""
        stream = self.streams[number]
        self.drop(number)
        gate = self._gate
        request_id = new_request_id()
        gate.error_log.note(error, request_id.decode(), ROUTE)
        gate.guard.refused(error.status, asyncio.get_running_loop().time() - stream.since)
        answer = error_answer(error, request_id.decode())
        status = grpc.StatusCode[answer.grpc_status].value[0]
        headers = [(b"x-request-id", request_id), *answer.headers]
        self.say(reset(number, CANCEL))
        self.other.say(refusal(number, status, answer.message, headers, is_first=not stream.has_headers))

    def drop(self, number: int) -> None:
        """Forget a call that has ended, wherever its message is; its bytes count for nothing any more."""
        stream = self.streams.pop(number, None)
        if stream is not None:
            self._arriving.pop(number, None)
            stream.share.release()
