"""Frames of HTTP/2 and the messages in them, in whatever pieces they arrive."""

import pytest

pytest.importorskip("grpc", reason="needs the extra grpc")

from foldserve.service.v2.rpc.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    PADDED,
    PREFACE_BYTES,
    FrameReader,
    MessageMeter,
    frame,
    refusal,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAMES = [
    frame(4, 0, 0, b""), frame(HEADERS, 0, 1, b"ab"), frame(CONTINUATION, END_HEADERS, 1, b"c"),
    frame(DATA, 0, 1, b"\x00\x00\x00\x00\x03ab"), frame(DATA, 0, 3, b""), frame(DATA, 1, 1, b"c"),
    frame(6, 0, 0, b"8" * 8),
]  # fmt: skip


def pieces_of(data, size):
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 2, 5, 9, 10, 1000])
def test_frames_are_the_same_however_they_are_cut(size):
    """Every way to cut the stream gives each frame's type, stream and payload, and the same ends."""
    reader = FrameReader(PREFACE_BYTES)
    whole, payload, ends, read = [], b"", [], 0
    for data in pieces_of(PREFACE + b"".join(FRAMES), size):
        for piece in reader.read(data):
            assert piece.is_first == (payload == b"" or piece.is_first)
            payload += bytes(piece.payload)
            if not piece.left:
                whole.append(frame(piece.kind, piece.flags, piece.stream, payload))
                ends.append(read + piece.stop)
                payload = b""
        read += len(data)
    assert whole == FRAMES
    lengths = [len(PREFACE) + sum(map(len, FRAMES[: count + 1])) for count in range(len(FRAMES))]
    assert ends == lengths


def test_nothing_may_be_said_within_a_frame_or_before_headers_are_complete():
    """Only where a frame ends and no headers are to be continued is there room for one of ours."""
    reader, data, room = FrameReader(PREFACE_BYTES), PREFACE + b"".join(FRAMES), set()
    for position in range(len(data)):
        list(reader.read(data[position : position + 1]))
        if reader.is_between:
            room.add(position + 1)
    ends = {len(PREFACE) + sum(map(len, FRAMES[:count])) for count in range(len(FRAMES) + 1)}
    before_continuation = len(PREFACE) + sum(map(len, FRAMES[:2]))
    assert room == ends - {before_continuation}


def message(size):
    return b"\x00" + size.to_bytes(4) + b"m" * size


@pytest.mark.parametrize("frame_size", [1, 4, 7, 100, 70_000])
@pytest.mark.parametrize("read_size", [3, 64, 65_536])
@pytest.mark.parametrize("padding", [None, 0, 9])
def test_messages_are_counted_across_frames_with_and_without_padding(frame_size, read_size, padding):
    """As many messages end as were sent, empty ones too, and at the end none is half here."""
    sizes = [0, 1, 300, 0, 2_000]
    parts = pieces_of(b"".join(map(message, sizes)), frame_size)
    if padding is not None:
        parts = [bytes((padding,)) + part + bytes(padding) for part in parts]
    data = b"".join(frame(DATA, 0 if padding is None else PADDED, 1, part) for part in parts)
    reader, meter, most = FrameReader(), MessageMeter(), 0
    for chunk in pieces_of(data, read_size):
        for piece in reader.read(chunk):
            meter.read(piece)
            most = max(most, meter.received)
            assert meter.received <= meter.expected <= max(sizes)
    assert meter.is_between
    assert most < max(sizes)


def test_a_length_is_known_before_the_message_is_here():
    """Five bytes are enough to refuse two gigabytes."""
    meter = MessageMeter()
    (piece,) = FrameReader().read(frame(DATA, 0, 1, b"\x00\x7f\xff\xff\xff"))
    assert not meter.read(piece)
    assert meter.expected == 2**31 - 1


def test_a_refusal_is_headers_that_need_no_table():
    """Each field is a literal with its length, the long ones in several octets (RFC 7541, 5.1 and 6.2.2)."""
    sentence = "é" * 40  # 240 characters once it is quoted
    data = refusal(5, 14, sentence, [(b"retry-after", b"1")], is_first=True)
    headers, end = FrameReader().read(data)
    assert (headers.kind, headers.flags, headers.stream, end.kind) == (HEADERS, 5, 5, 3)
    block = bytes(headers.payload)
    assert block.startswith(b"\x88\x00\x0ccontent-type\x10application/grpc\x00\x0bgrpc-status\x0214")
    assert b"\x00\x0cgrpc-message\x7f\x71" + b"%C3%A9" * 40 in block
    assert block.endswith(b"\x00\x0bretry-after\x011")
