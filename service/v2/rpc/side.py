"""One socket of a connection of gRPC: what arrives is watched, perhaps changed, and goes out at the other.

Used by the gate, which says what is watched and what is said. Knows where frames begin and end, and no call.
"""

import asyncio
import logging
from typing import cast

from ...bodies.budget import BodyBudget, Share
from .frames import FrameReader, MessageMeter, Piece

_log = logging.getLogger(__name__)


class Stream:
    """One call of a connection: the message that arrives, and the share of its bytes until it is answered."""

    __slots__ = ("has_headers", "meter", "share", "since")

    def __init__(self, budget: BodyBudget) -> None:
        self.meter = MessageMeter()
        self.share = Share(budget)
        self.since = 0.0
        self.has_headers = False


class Side(asyncio.Protocol):
    """One of the two sockets of a connection; what arrives is watched and goes out at the other."""

    transport: asyncio.Transport
    other: "Side"

    def __init__(self, reader: FrameReader) -> None:
        self.reader = reader
        self.said: list[bytes] = []  # what the gate has to say to the other side, between two frames
        self.changes: list[tuple[int, bytes]] = []  # of what arrives, before it is passed on: where, and what
        self.is_reading = False
        self.blocked_since: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        """Take what arrives."""
        try:
            self.receive(data)
        except Exception:
            self.failed()

    def failed(self) -> None:
        """End a connection on which a mistake of ours came to light; both sides see it end."""
        _log.exception("a connection failed and is closed")
        self.transport.abort()

    def receive(self, data: bytes) -> None:
        """Take what arrives."""
        self.pass_on(data)

    def pass_on(self, data: bytes) -> None:
        """Watch what arrives, and pass it on; what the gate has to say goes between two frames of it."""
        cut = None
        self.is_reading = True
        for piece in self.reader.read(data):
            self.watch(piece)
            if cut is None and self.said and self.reader.is_between:
                cut = piece.stop
        self.is_reading = False
        if self.changes:
            changed = bytearray(data)
            for start, new in self.changes:
                changed[start : start + len(new)] = new
            data = bytes(changed)
            self.changes.clear()
        if cut is None:
            self._write(data)
        else:
            self._write(b"".join((data[:cut], *self.said, data[cut:])))
            self.said.clear()

    def watch(self, piece: Piece) -> None:
        """Look at a part of a frame."""
        raise NotImplementedError

    def say(self, frames: bytes) -> None:
        """Send frames to the other side as soon as no frame is half sent."""
        if self.reader.is_between and not self.is_reading:
            self._write(frames)
        else:
            self.said.append(frames)

    def pause_writing(self) -> None:
        """Take no more from the other side until this one has read."""
        self.blocked_since = asyncio.get_running_loop().time()
        if not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self.blocked_since = None
        if not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def _write(self, data: bytes) -> None:
        if not self.other.transport.is_closing():
            self.other.transport.write(data)
