"""A client of gRPC that writes its frames itself, for what no library lets a test say."""

import socket

from foldserve.service.v2.rpc.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    SETTINGS,
    FrameReader,
    frame,
    literal,
)
from tests.support.grpc_service import INFER

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
OPENING = PREFACE + frame(SETTINGS, 0, 0, b"")
BLOCK = b"".join(
    literal(field)
    for field in (
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", INFER.encode()), (b":authority", b"h"),
        (bytes((0x74, 0x65)), b"trailers"), (b"content-type", b"application/grpc"),
    )
)  # fmt: skip


def infer_frames(stream: int, message: bytes, block: bytes = BLOCK, piece: int = 16_384) -> bytes:
    """One call in whole; its message in frames of so many bytes."""
    body = b"\x00" + len(message).to_bytes(4) + message
    parts = [body[start : start + piece] for start in range(0, len(body), piece)]
    flags = [0] * (len(parts) - 1) + [END_STREAM]
    data = [frame(DATA, flag, stream, part) for flag, part in zip(flags, parts, strict=True)]
    return frame(HEADERS, END_HEADERS, stream, block) + b"".join(data)


class FrameClient:
    """One connection.

    Attributes:
        frames: all that were received, as (kind, flags, stream, payload).
    """

    def __init__(self, port: int, opening: bytes = OPENING) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.sendall(opening)
        self._reader = FrameReader()
        self._payload = b""
        self.frames: list[tuple[int, int, int, bytes]] = []

    def __enter__(self) -> "FrameClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send."""
        self._socket.sendall(data)

    def receive(self) -> bool:
        """Take what has arrived, waiting for something; False when the service has closed the connection."""
        try:
            data = self._socket.recv(65_536)
        except ConnectionResetError:
            return False
        for piece in self._reader.read(data):
            self._payload += bytes(piece.payload)
            if not piece.left:
                self.frames.append((piece.kind, piece.flags, piece.stream, self._payload))
                self._payload = b""
        return bool(data)

    def read_until(self, is_enough: object) -> None:
        """Receive until the frames are enough for a function of them."""
        while not is_enough(self.frames):  # type: ignore[operator]
            assert self.receive(), "the service has closed the connection"

    def answer(self, stream: int) -> bytes:
        """Wait for the end of a call; its message, which is empty where it was refused."""
        self.read_until(lambda frames: any(it[2] == stream and it[1] & END_STREAM for it in frames))
        data = b"".join(payload for kind, _, other, payload in self.frames if kind == DATA and other == stream)
        return data[5:]

    def ask(self, stream: int, message: bytes) -> bytes:
        """Make a call and wait for its end."""
        self.send(infer_frames(stream, message))
        return self.answer(stream)
