"""Connections that several workers take from one socket, as many each: the system wakes whichever it likes.

Left to that, one worker of two may get eighty of a hundred clients, and has them for as long as they stay: it refuses
what the other one has time for. So a worker that has more than another one leaves a connection to that for a moment.
Knows sockets and counts, and nothing of what is said over them.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Protocol

_log = logging.getLogger(__name__)

_TURN_SECONDS = 0.001  # that a connection is left to a worker with fewer, which may be busy or stopped
_AT_ONCE = 64  # of so many it takes one more when it was its turn: else thousands would be slow beside a stopped worker
_MOST_OPENING = 16  # that are taken and not looked at yet: those that have no place hold a descriptor until then
_NO_DESCRIPTORS_SECONDS = 0.1


class Counts(Protocol):
    """The connections of all workers.

    Attributes:
        own: of this worker.
    """

    own: int

    @property
    def is_ahead(self) -> bool:
        """Whether this worker has more than the one that has the fewest."""

    def add(self, number: int) -> None:
        """Count so many more of this worker; fewer, where it is negative."""

    def stop(self) -> None:
        """This worker takes no more."""


class EvenServer:
    """Takes connections from a socket for this worker; the part of `asyncio.Server` that is asked for.

    Args:
        listener: that listens.
        make_protocol: called for each connection.
        connections: those of all workers; who makes the protocol takes one that has ended out of them.
    """

    def __init__(
        self, listener: socket.socket, make_protocol: Callable[[], asyncio.BaseProtocol], connections: Counts
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[object]] = set()
        self._turn: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        connections.add(0)
        self._loop.add_reader(listener, self._take)

    def close(self) -> None:
        """Take no more; those that are open go on."""
        if self._turn is None:
            self._loop.remove_reader(self._listener)
        else:
            self._turn.cancel()
        self._connections.stop()

    async def wait_closed(self) -> None:
        """Return once every connection that was taken is open."""
        await asyncio.gather(*self._opening, return_exceptions=True)

    def _take(self) -> None:
        """Take what waits, for as long as no worker has fewer."""
        while not self._connections.is_ahead:
            if not self._take_one():
                return  # the loop calls again for what still waits
        self._wait(_TURN_SECONDS)

    def _wait(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._turn = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        """Take what the others have left."""
        self._turn = None
        self._loop.add_reader(self._listener, self._take)
        for _ in range(1 + self._connections.own // _AT_ONCE):
            if not self._take_one():
                return

    def _take_one(self) -> bool:
        """Take a connection; False where none waits, or none can be taken."""
        if len(self._opening) >= _MOST_OPENING:
            return False
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return False
        except OSError:  # no descriptor is free
            self._wait(_NO_DESCRIPTORS_SECONDS)
            return False
        connection.setblocking(False)
        self._connections.add(1)
        task: asyncio.Task[object] = self._loop.create_task(self._open(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return True

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError:  # the client has gone, before anybody could count it
            pass
        except Exception:  # a mistake of ours
            _log.exception("a connection failed and is closed")
        else:
            return
        connection.close()
        self._connections.add(-1)
