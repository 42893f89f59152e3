"""Whether a client that has finished sending is still there: it may wait for its answer, or be gone.

The end of what it sends looks the same in both cases. An interim answer tells them apart: a client that waits ignores
it, and the system of one that has gone sends a reset.
"""

import asyncio
import socket
from collections.abc import Callable

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_PROBE_SECONDS = 0.005  # most clients that finish sending early are answered before


async def abort_if_gone(transport: asyncio.Transport, is_waiting: Callable[[], bool], interval_seconds: float) -> None:
    """Abort a half-closed connection whose client has gone.

    Args:
        transport: its socket.
        is_waiting: whether an answer is due of which nothing is written yet.
        interval_seconds: how often to look for the reset.
    """
    await asyncio.sleep(_PROBE_SECONDS)
    if is_waiting() and not transport.is_closing():
        transport.write(_CONTINUE)
        await asyncio.sleep(_PROBE_SECONDS)
    while is_waiting() and not transport.is_closing():
        if transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            transport.abort()
        else:
            await asyncio.sleep(interval_seconds)
