"""The fast lane of one gRPC connection: usual calls are cut out of what its client sends, and answered on it.

A usual call is a `ModelInfer` whose block of headers is known and changes nothing of what the connection remembers
(RFC 7541), whose message is short and here in whole, and names a model that the lane answers. Everything else is passed
on to the library of gRPC byte by byte, which never sees the calls that were taken: for it their streams have been.

What both share of the connection is shared out. The client's window for the whole connection has a part that is the
lane's; credit for what the lane has read is the lane's to give; pings that a client sends because of the lane's answers
are answered here, since the library would take them for too many.

Source: RFC 9113 section 5.1.1 (streams that were skipped are closed), 5.2 (windows), 6 (frames).
"""

import asyncio
import struct
import time
from collections.abc import Callable

from ...errors import ServiceError
from ...v2.rpc.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADER_BYTES,
    HEADERS,
    PADDED,
    PING,
    PREFIX_BYTES,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    window_update,
)
from ...v2.rpc.gate import Outside
from ...v2.rpc.known_blocks import Metadata, keeps_table
from .calls import Call, CallHead, CallLane
from .messages import LABEL, MOST_ANSWERED

_MOST_BLOCK_BYTES = 2_048  # of a block of headers that is remembered
_MOST_BLOCKS = 64  # that one connection has remembered
_MOST_CALL_BYTES = 32_768  # of a call that is taken, with its headers
_HELD_SECONDS = 0.005  # for which the beginning of a call waits for its rest
# Of the client's window for the connection these are the lane's: half of the least that a client may have, and more
# where it opens by more at once. All but these the library has, and no answer is promised that would not fit.
_LEAST_WINDOW, _MOST_WINDOW, _SHARE = 32_768, 262_144, 4
_MOST_OPENED = 0x7FFF_FFFF  # bytes by which one frame may open a window
_CREDIT_BYTES = 8_192  # read from a client before it is told so
_INITIAL_WINDOW_SIZE = 4  # a setting
_FRAME = struct.Struct(">IBI")  # length and type, flags, stream
_SETTING = struct.Struct(">HI")

_PASS, _WAIT = -1, -2  # instead of the place where a call ends


class CallConnection:
    """Takes the usual calls of one connection.

    Args:
        shared: what all connections share.
        outside: the client's side of the gate.

    Attributes:
        last_stream: the highest stream that was taken.
    """

    def __init__(self, shared: CallLane, outside: Outside) -> None:
        self.last_stream = 0
        self._shared = shared
        self._outside = outside
        self._is_on = True
        self._known: dict[bytes, CallHead | None] = {}
        self._asked: set[bytes] = set()
        self._table = 0  # how often what the connection remembers has changed
        self._held = b""  # the beginning of a frame or of a call
        self._release: asyncio.TimerHandle | None = None
        self._running: dict[int, Call] = {}
        self._window = 0  # bytes of answers that may be sent
        self._most_window = _LEAST_WINDOW
        self._promised = 0  # of these, to calls that run
        self._unacknowledged = 0  # bytes that were read and the client was not told
        self._has_answered = False  # since the last ping
        self._passed_at = 0.0  # when the library last had a call
        self._out: list[bytes] = []
        self._ended: list[Callable[[], None]] = []

    @property
    def is_busy(self) -> bool:
        """Whether answers are owed."""
        return bool(self._running)

    @property
    def is_half(self) -> bool:
        """Whether a client has begun a frame that the library has not seen, and not ended it."""
        return bool(self._held) and self._release is None

    def receive(self, data: bytes) -> None:
        """Take the calls out of what a client has sent."""
        if self._held:
            data, self._held = self._held + data, b""
        while data and (missing := self._outside.reader.missing):  # the rest of what was passed on in part
            self._outside.pass_on(data[:missing])
            data = data[missing:]
        if data:
            self._read(data, may_wait=True)

    def leave(self, ended: Callable[[], None]) -> None:
        """Take no more calls; `ended` is called when no answer is owed."""
        self._turn_off()
        if self.is_busy:
            self._ended.append(ended)
        else:
            ended()

    def close(self) -> None:
        """The client has gone."""
        self._turn_off()
        self._held = b""
        if self._release is not None:
            self._release.cancel()
        for call in self._running.values():
            call.cancel()
        self._running.clear()
        self._out.clear()
        self._end()

    # -- what a client sends -------------------------------------------------------------------------------------

    def _read(self, data: bytes, *, may_wait: bool) -> None:
        """Take calls and pass on the rest; the beginning of a call may wait for what is missing of it."""
        position = start = 0  # of the frame that is looked at; of those that are to be passed on
        end, now, waits = len(data), time.perf_counter(), False
        while end - position >= HEADER_BYTES:
            word, flags, stream = _FRAME.unpack_from(data, position)
            kind, stop = word & 0xFF, position + HEADER_BYTES + (word >> 8)
            if stop > end:
                if kind == DATA or stop - position > _MOST_BLOCK_BYTES:
                    if kind != DATA:  # it is passed on in pieces, so that nobody has looked at it in whole
                        self._turn_off()
                    position = end
                break
            instead: bytes | None = None  # is passed on in the place of the frame; None: itself
            if kind == HEADERS:
                taken = self._take(data, position, stop, flags, stream, now)
                if taken == _WAIT and may_wait:
                    waits = True
                    break
                if taken > 0:
                    instead, stop = b"", taken
                else:
                    instead = self._passed(data[position:stop], flags, stream, now)
            elif kind != DATA:
                instead = self._look_at(kind, flags, stream, data[position + HEADER_BYTES : stop])
            if instead is not None:
                if start < position:
                    self._outside.pass_on(data[start:position])
                if instead:
                    self._outside.pass_on(instead)
                start = stop
            position = stop
        if start < position:
            self._outside.pass_on(data[start:position])
        if position < end:
            self._hold(data[position:], may_grow=not waits)
        if self._out or self._unacknowledged >= _CREDIT_BYTES:
            self.flush()

    def _hold(self, data: bytes, *, may_grow: bool) -> None:
        """Keep the beginning of a frame, with which the library could do nothing, or for a moment that of a call."""
        self._held = data
        if not may_grow and self._release is None:
            self._release = asyncio.get_running_loop().call_later(_HELD_SECONDS, self._let_go)

    def _let_go(self) -> None:
        """Pass on what was held of a call whose rest has not come."""
        self._release = None
        data, self._held = self._held, b""
        try:
            if data:
                self._read(data, may_wait=False)
                self._outside.note_half()
        except Exception:
            self._outside.failed()

    def _look_at(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes | None:
        """Look at a frame that is no part of a call; returns what is passed on instead of it, None for itself."""
        if kind == WINDOW_UPDATE and len(payload) == 4:
            return self._opened(stream, int.from_bytes(payload))
        if kind == RST_STREAM:
            return self._reset(stream)
        if kind == PING and not flags & ACK and len(payload) == 8 and self._may_answer_ping():
            self._has_answered = False
            self._out.append(frame(PING, ACK, 0, payload))
            return b""
        if kind == SETTINGS and not flags & ACK:
            self._settings(payload)
        elif kind == CONTINUATION:
            self._turn_off()
        return None

    # -- calls ---------------------------------------------------------------------------------------------------

    def _take(self, data: bytes, position: int, stop: int, flags: int, stream: int, now: float) -> int:
        """Take the call that begins at a block of headers, if it is a usual one.

        Returns:
            Where it ends; or that it is to be passed on, or has to wait for what is missing.
        """
        outside, shared = self._outside, self._shared
        if stream <= self.last_stream and stream > outside.last_stream:  # the library would take it for a new one
            outside.abort()
            return _PASS
        block = data[position + HEADER_BYTES : stop]
        head = self._known.get(block)
        if head is None or flags != END_HEADERS or stream <= self.last_stream or not stream & 1:
            return _PASS
        if head.keys is not shared.access.keys:
            del self._known[block]
            return _PASS
        streams = len(self._running) + len(outside.streams)
        if not shared.is_open or streams >= shared.max_streams or outside.blocked_since is not None:
            return _PASS
        if now - self._passed_at > shared.idle_seconds:  # the library ends connections without calls
            return _PASS
        found = self._message(data, stop, stream, position + _MOST_CALL_BYTES)
        if isinstance(found, int):
            return found
        message, stop, size, opened = found
        if shared.budget.held_bytes + size > shared.budget.max_bytes:
            return _PASS
        known = shared.messages.read(message)
        if known is None or self._promised + known.most_answered > self._window:
            return _PASS
        self.last_stream = stream
        self._unacknowledged += size
        if opened:
            rest = self._opened(0, opened)
            if rest != b"":
                outside.pass_on(window_update(0, opened) if rest is None else rest)
        call = Call(self, stream, known.endpoint, head, now)
        call.options, call.rows, call.raw_rows = known.request, known.rows, message[len(known.prefix) :]
        call.promised = known.most_answered
        self._promised += call.promised
        self._running[stream] = call
        try:
            if head.payer is not None:
                shared.access.spend(head.payer)
            known.endpoint.batcher.submit(call)
        except ServiceError as err:
            shared.failures.add(call, err)
        return stop

    def _message(self, data: bytes, position: int, stream: int, most: int) -> tuple[bytes, int, int, int] | int:
        """Return the only message of a call.

        Returns:
            The message, where it ends, bytes that count against our window, and what the client said meanwhile of its
            own; or why there is none.
        """
        parts: list[bytes] = []
        size = opened = 0
        end = len(data)
        while True:
            if end - position < HEADER_BYTES:
                return _WAIT if end <= most else _PASS
            word, flags, other = _FRAME.unpack_from(data, position)
            kind, position = word & 0xFF, position + HEADER_BYTES
            stop = position + (word >> 8)
            if stop > most:
                return _PASS
            if kind == DATA and other == stream and not flags & ~END_STREAM:
                if stop > end:
                    return _WAIT
                parts.append(data[position:stop])
                size += stop - position
                if flags & END_STREAM:
                    break
            elif kind == WINDOW_UPDATE and stop - position == 4 and other in (0, stream):
                if stop > end:
                    return _WAIT
                more = int.from_bytes(data[position:stop]) & _MOST_OPENED
                opened += 0 if other else more
                if not more or opened > _MOST_OPENED:  # mistakes, which the library answers
                    return _PASS
            else:
                return _PASS
            position = stop
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if size < PREFIX_BYTES or body[0] or int.from_bytes(body[1:PREFIX_BYTES]) != size - PREFIX_BYTES:
            return _PASS  # compressed, or more than one message, or none
        return body[PREFIX_BYTES:], stop, size, opened

    def _passed(self, whole: bytes, flags: int, stream: int, now: float) -> bytes | None:
        """Note what a block of headers that is passed on does; returns it with a mark where its meaning is wanted."""
        if not flags & END_HEADERS or flags & (PADDED | PRIORITY):
            self._turn_off()
        if stream > self._outside.last_stream:
            self._passed_at = now
        block = whole[HEADER_BYTES:]
        if not self._is_on or block in self._known:
            return None
        if not keeps_table(block):
            self._table += 1
            self._known.clear()
            self._asked.clear()
            return None
        if len(block) > _MOST_BLOCK_BYTES or block in self._asked or stream <= self._outside.last_stream:
            return None
        self._asked.add(block)
        table = self._table

        def learn(route: str, metadata: Metadata, seconds_left: float | None) -> None:
            if table == self._table:
                late = 0.0 if seconds_left is None else time.perf_counter() - now
                self._learn(block, route, metadata, None if seconds_left is None else seconds_left + late)

        return frame(HEADERS, flags, stream, block + self._shared.blocks.mark(learn))

    def _learn(self, block: bytes, route: str, metadata: Metadata, seconds: float | None) -> None:
        """Remember what a block means."""
        self._asked.discard(block)
        head = self._shared.read_head(route, metadata, seconds)
        if self._is_on and (head is not None or route != LABEL):  # the key may become a good one
            if len(self._known) >= _MOST_BLOCKS:
                self._known.clear()
            self._known[block] = head

    # -- what is shared with the library ---------------------------------------------------------------------------

    def _is_ours(self, stream: int) -> bool:
        """Return whether the library does not know a stream, or any more."""
        last = max(self.last_stream, self._outside.last_stream)
        return 0 < stream <= last and stream not in self._outside.streams

    def _opened(self, stream: int, size: int) -> bytes | None:
        """Take our part of what a client lets us send; returns what is passed on instead, None for all of it."""
        if stream:
            return b"" if self._is_ours(stream) else None
        size &= _MOST_OPENED
        self._most_window = max(self._most_window, min(_MOST_WINDOW, size // _SHARE))
        ours = min(size, self._most_window - self._window)
        if not ours:
            return None
        self._window += ours
        return window_update(0, size - ours) if size > ours else b""

    def _reset(self, stream: int) -> bytes | None:
        """End a call that its client has left."""
        call = self._running.pop(stream, None)
        if call is not None:
            call.cancel()
            self._promised -= call.promised
        return b"" if self._is_ours(stream) else None

    def _may_answer_ping(self) -> bool:
        return self._has_answered and self._outside.blocked_since is None

    def _settings(self, payload: bytes) -> None:
        if len(payload) % _SETTING.size:
            return
        for name, value in _SETTING.iter_unpack(payload):
            if name == _INITIAL_WINDOW_SIZE and value < MOST_ANSWERED:
                self._turn_off()

    def _turn_off(self) -> None:
        """Take no more calls on this connection."""
        self._is_on = False
        self._known.clear()
        self._asked.clear()

    # -- answers -------------------------------------------------------------------------------------------------

    def answer(self, call: Call, frames: bytes) -> None:
        """Send the frames of an answer with the next `flush`."""
        if self._running.pop(call.stream, None) is not None:
            self._has_answered = True
            self._promised -= call.promised
            self._window -= call.size
            self._out.append(frames)

    def flush(self) -> None:
        """Send."""
        if self._unacknowledged >= _CREDIT_BYTES:
            self._out.append(window_update(0, self._unacknowledged))
            self._unacknowledged = 0
        if self._out:
            self._outside.other.say(b"".join(self._out))
            self._out.clear()
        if self._ended and not self.is_busy:
            self._end()

    def _end(self) -> None:
        ended, self._ended = self._ended, []
        for tell in ended:
            tell()
