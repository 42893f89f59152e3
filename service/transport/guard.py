"""What one server allows its connections: limits, counts for each address, and one clock that looks for the overdue.

uvicorn has no header or body timeout, no header cap and counts idle connections as work. The protocol class asks a
`Guard` instead; this module knows numbers and connections, and nothing of HTTP.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..settings import MEBIBYTE, Settings


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How much a client may send, hold and dawdle.

    Args:
        header_seconds: from the first byte of a request (or the connection) to the end of its headers; else 408.
        header_bytes: of the request line and all headers together; else 431.
        header_count: headers of one request; else 431.
        body_seconds: head start of a body before `body_bytes_per_second` counts; else 408.
        body_bytes: of one body, counted as they arrive; else 413.
        body_bytes_per_second: slowest average speed of a body.
        write_seconds: head start of a client that reads an answer slowly; then it is cut off.
        write_bytes_per_second: slowest average speed at which an answer is read.
        connections: open at once; one more is answered 503.
        connections_per_address: the same for each peer address.
        pipelined: requests of one connection that wait for their turn before we stop reading from it.
        linger_seconds: how long a refused client may go on sending, so that it reads why instead of a reset.
        drain_seconds: how long a half-sent request may go on once the service ends.
    """

    header_seconds: float = 10.0
    header_bytes: int = 32 * 1024
    header_count: int = 100
    body_seconds: float = 30.0
    body_bytes: int = 64 * MEBIBYTE
    body_bytes_per_second: int = 16 * 1024
    write_seconds: float = 30.0
    write_bytes_per_second: int = 16 * 1024
    connections: int = 8_192
    connections_per_address: int = 4_096
    pipelined: int = 64
    linger_seconds: float = 2.0
    drain_seconds: float = 3.0

    @property
    def tick_seconds(self) -> float:
        """How often to look for the overdue: a tenth of the shortest limit, between 5 ms and a quarter second."""
        shortest = min(
            self.header_seconds, self.body_seconds, self.write_seconds, self.linger_seconds, self.drain_seconds
        )
        return min(0.25, max(0.005, shortest / 10))


def connection_limits(settings: Settings) -> ConnectionLimits:
    """Return the limits that the settings ask for."""
    return ConnectionLimits(
        header_seconds=settings.header_seconds,
        header_bytes=settings.max_header_bytes,
        body_seconds=settings.body_seconds,
        body_bytes=settings.max_body_bytes,
        write_seconds=settings.write_seconds,
        connections=settings.max_connections,
        connections_per_address=settings.max_connections_per_address,
    )


class Connection(Protocol):
    """What the guard needs of a connection."""

    def check(self, now: float) -> None:
        """Act if a deadline has passed; `now` is the loop's time."""


class Guard:
    """The connections of one server.

    Args:
        limits: what each of them may do.
        refused: called with the status of each request that is refused here, before any application saw it.

    Attributes:
        connections: those that are open.
        draining_since: when the service began to end; None while it runs.
    """

    def __init__(self, limits: ConnectionLimits | None = None, refused: Callable[[int], None] | None = None) -> None:
        self.limits = limits or ConnectionLimits()
        self.draining_since: float | None = None
        self._refused = refused
        self.connections: set[Connection] = set()
        self._by_address: Counter[str] = Counter()
        self._tick: asyncio.TimerHandle | None = None

    def drain(self, now: float) -> None:
        """Say that the service ends: no connection outlives the requests it is busy with."""
        if self.draining_since is None:
            self.draining_since = now

    def is_full_for(self, address: str) -> bool:
        """Return whether one more connection, which `enter` has counted already, is too many."""
        limits = self.limits
        return len(self.connections) > limits.connections or self._by_address[address] > limits.connections_per_address

    def enter(self, connection: Connection, address: str) -> None:
        """Count a connection and look after it from now on."""
        self.connections.add(connection)
        self._by_address[address] += 1
        if self._tick is None:
            self._schedule()

    def leave(self, connection: Connection, address: str) -> None:
        """Forget a connection; the clock stops with the last one."""
        if connection not in self.connections:
            return
        self.connections.remove(connection)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]
        if not self.connections and self._tick is not None:
            self._tick.cancel()
            self._tick = None

    def count_refusal(self, status: int) -> None:
        """Count a request that was refused here."""
        if self._refused is not None:
            self._refused(status)

    def _schedule(self) -> None:
        self._tick = asyncio.get_running_loop().call_later(self.limits.tick_seconds, self._look)

    def _look(self) -> None:
        self._schedule()  # first, so that what a check raises cannot stop the clock
        now = asyncio.get_running_loop().time()
        for connection in tuple(self.connections):
            connection.check(now)
