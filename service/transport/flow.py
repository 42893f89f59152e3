"""Who has to wait: a client from which we do not read, and an application whose client does not read.

Part of one connection; has the interface that uvicorn's ASGI cycle expects of its flow control.
"""

import asyncio
from enum import Enum, auto


class Pause(Enum):
    """Why nothing is read."""

    APPLICATION = auto()  # it has enough of the body for now
    QUEUE = auto()  # enough requests wait for their turn
    UNREAD = auto()  # the client does not read its answers


class Flow:
    """Flow control of one connection.

    Args:
        transport: its socket.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._pauses: set[Pause] = set()
        self._is_writable = asyncio.Event()
        self._is_writable.set()

    @property
    def read_paused(self) -> bool:
        """Whether nothing is read."""
        return bool(self._pauses)

    @property
    def write_paused(self) -> bool:
        """Whether the client has so much to read that no more should be written."""
        return not self._is_writable.is_set()

    def pause_reading(self, why: Pause = Pause.APPLICATION) -> None:
        """Stop reading until every reason is taken back."""
        if not self._pauses:
            self._transport.pause_reading()
        self._pauses.add(why)

    def resume_reading(self, why: Pause = Pause.APPLICATION) -> None:
        """Take back one reason."""
        if why in self._pauses:
            self._pauses.remove(why)
            if not self._pauses:
                self._transport.resume_reading()

    def discard_rest(self) -> None:
        """Read whatever is sent: it will not be kept."""
        if self._pauses:
            self._pauses.clear()
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        """Take no more requests from a client that does not read its answers."""
        self._is_writable.clear()
        self.pause_reading(Pause.UNREAD)

    def resume_writing(self) -> None:
        """Take requests again."""
        self._is_writable.set()
        self.resume_reading(Pause.UNREAD)

    async def drain(self) -> None:
        """Wait until more may be written."""
        await self._is_writable.wait()
