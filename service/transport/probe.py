"""Whether a client that has finished sending is still there: it may wait for its answer, or be gone.

The end of what it sends looks the same in both cases. An interim answer tells them apart: a client that waits ignores
it, and the system of one that has gone sends a reset.
"""

import asyncio
import socket
from collections.abc import Callable

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_PROBE_SECONDS = 0.005  # a client that has only finished sending early is mostly answered before


class GoneProbe:
    """Aborts a half-closed connection whose client has gone.

    Args:
        transport: its socket.
        is_waiting: whether an answer is due of which nothing is written yet.
        interval_seconds: how often to look for the reset.
    """

    def __init__(self, transport: asyncio.Transport, is_waiting: Callable[[], bool], interval_seconds: float) -> None:
        self._transport = transport
        self._is_waiting = is_waiting
        self._interval_seconds = interval_seconds
        self._later(_PROBE_SECONDS, self._write_interim)

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(seconds, what)

    def _is_of_use(self) -> bool:
        return self._is_waiting() and not self._transport.is_closing()

    def _write_interim(self) -> None:
        if self._is_of_use():
            self._transport.write(_CONTINUE)
            self._later(_PROBE_SECONDS, self._look_for_reset)

    def _look_for_reset(self) -> None:
        if not self._is_of_use():
            return
        if self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._transport.abort()
        else:
            self._later(self._interval_seconds, self._look_for_reset)
