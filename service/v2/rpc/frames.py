"""HTTP/2 frames, as far as a gate has to know them: where each begins and ends, and how much of a message is in it.

Reads no header and keeps no payload. The few frames that the gate writes by itself use no state of the connection:
their headers are literals that no table remembers (RFC 7541 section 6.2.2).

Source: RFC 9113 section 4.1 (frames), 6 (their types); gRPC over HTTP2 (five bytes before each message).
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple
from urllib.parse import quote

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
NO_ERROR, CANCEL, ENHANCE_YOUR_CALM = 0x0, 0x8, 0xB
NO_KIND = 0xFF  # of a frame that everybody passes over (RFC 9113 section 5.5)
PREFACE_BYTES = 24  # that a client sends before its first frame
PREFIX_BYTES = 5  # before each message of gRPC: whether it is compressed, and its length

HEADER_BYTES = 9  # before each payload
STATUS_200 = b"\x88"  # in the table that every connection has


class Piece(NamedTuple):
    """A part of one frame that arrived at once.

    Attributes:
        kind: type of the frame.
        flags: of the frame.
        stream: to which it belongs; 0 for the connection.
        payload: as much of its payload as is here.
        stop: where the part ends in the bytes that were read.
        is_first: whether the payload begins here.
        left: bytes of the payload that have not arrived.
    """

    kind: int
    flags: int
    stream: int
    payload: memoryview
    stop: int
    is_first: bool
    left: int


class FrameReader:
    """Cuts what one side of a connection sends into frames, in whatever pieces it arrives.

    Args:
        preface_bytes: that come before the first frame.

    Attributes:
        is_between: whether nothing is half sent; the side may be spoken for here.
    """

    def __init__(self, preface_bytes: int = 0) -> None:
        self._preface_left = preface_bytes
        self._header = bytearray()
        self._frame = (0, 0, 0)
        self._left = 0
        self._is_open = False  # the header was read and the payload was not
        self._is_first = True
        self._awaits_continuation = False

    @property
    def is_between(self) -> bool:
        """Whether all frames that have begun are here in whole, headers with those that continue them."""
        return not (self._preface_left or self._header or self._is_open or self._awaits_continuation)

    @property
    def missing(self) -> int:
        """Bytes that are missing, as far as can be told yet, of what has begun; 0 between two frames."""
        if self._preface_left:
            return self._preface_left
        return HEADER_BYTES - len(self._header) if self._header else self._left

    @property
    def is_in_data(self) -> bool:
        """Whether what has begun is the payload of a message."""
        return self._is_open and self._frame[0] == DATA

    def read(self, data: bytes) -> Iterator[Piece]:
        """Yield the parts of frames in bytes that have arrived; frames without a payload have one, which is empty."""
        view, position, end = memoryview(data), min(self._preface_left, len(data)), len(data)
        self._preface_left -= position
        while position < end:
            if not self._is_open:
                position, is_whole = self._read_header(view, position)
                if not is_whole or (self._left and position == end):
                    return
            take = min(self._left, end - position)
            payload, position = view[position : position + take], position + take
            self._left -= take
            self._is_open, is_first, self._is_first = self._left > 0, self._is_first, False
            yield Piece(*self._frame, payload, position, is_first, self._left)

    def _read_header(self, view: memoryview, position: int) -> tuple[int, bool]:
        """Take bytes of a frame's header; returns the position after them, and whether the header is whole."""
        take = HEADER_BYTES - len(self._header)
        self._header += view[position : position + take]
        is_whole = len(self._header) == HEADER_BYTES
        if is_whole:
            head, self._header = self._header, bytearray()
            self._left = int.from_bytes(head[:3])
            kind, flags = head[3], head[4]
            self._frame = kind, flags, int.from_bytes(head[5:]) & 0x7FFF_FFFF
            self._is_open = self._is_first = True
            if kind in (HEADERS, CONTINUATION):
                self._awaits_continuation = not flags & END_HEADERS
        return min(position + take, len(view)), is_whole


class MessageMeter:
    """How much of the messages of one call has arrived; their bytes pass by.

    Attributes:
        expected: bytes of the message that is arriving; 0 between two.
        received: how many of them are here.
    """

    __slots__ = ("_padding", "_prefix", "expected", "received")

    def __init__(self) -> None:
        self._prefix = bytearray()
        self._padding = 0
        self.expected = self.received = 0

    @property
    def is_between(self) -> bool:
        """Whether no message has begun that is not here in whole."""
        return not (self.expected or self._prefix)

    def read(self, piece: Piece) -> bool:
        """Count a part of a DATA frame; returns whether a message ends in it."""
        data = piece.payload
        if piece.flags & PADDED:
            if piece.is_first and len(data):
                self._padding, data = data[0], data[1:]
            data = data[: max(0, len(data) - max(0, self._padding - piece.left))]
        position, has_ended = 0, False
        while position < len(data):
            if not self.expected:
                take = PREFIX_BYTES - len(self._prefix)
                self._prefix += data[position : position + take]
                if len(self._prefix) == PREFIX_BYTES:
                    self.expected = int.from_bytes(self._prefix[1:])
                    self._prefix.clear()
                    has_ended = has_ended or not self.expected
            else:
                take = min(self.expected - self.received, len(data) - position)
                self.received += take
                if self.received == self.expected:
                    self.expected, self.received, has_ended = 0, 0, True
            position += take
        return has_ended


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def window_update(stream: int, size: int) -> bytes:
    """Return the frame that lets the other side send so many bytes more."""
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4))


def reset(stream: int, code: int) -> bytes:
    """Return the frame that ends a stream."""
    return frame(RST_STREAM, 0, stream, code.to_bytes(4))


def refusal(stream: int, status: int, message: str, headers: Iterable[tuple[bytes, bytes]], *, is_first: bool) -> bytes:
    """Return the frames that end a call with a status.

    Args:
        stream: of the call.
        status: the number of a gRPC status code.
        message: its sentence.
        headers: what is to stand beside it, in lower case.
        is_first: whether the call has had no headers yet.
    """
    fields = [(b"content-type", b"application/grpc")] if is_first else []
    fields += [
        (b"grpc-status", b"%d" % status),
        (b"grpc-message", quote(message, safe=" !'(),:;=?").encode()),
        *headers,
    ]
    block = (STATUS_200 if is_first else b"") + b"".join(map(literal, fields))
    return frame(HEADERS, END_STREAM | END_HEADERS, stream, block) + reset(stream, NO_ERROR)


def farewell(message: bytes) -> bytes:
    """Return what a server says to a connection that it does not want."""
    return frame(SETTINGS, 0, 0, b"") + frame(GOAWAY, 0, 0, bytes(4) + ENHANCE_YOUR_CALM.to_bytes(4) + message)


def literal(field: tuple[bytes, bytes]) -> bytes:
    """Return a header, name and value, that neither side is to remember."""
    return b"\x00" + b"".join(part for text in field for part in (_length(len(text)), text))


def _length(number: int) -> bytes:
    """Return a length with a prefix of seven bits (RFC 7541 section 5.1)."""
    if number < 0x7F:
        return bytes((number,))
    out, number = bytearray((0x7F,)), number - 0x7F
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
