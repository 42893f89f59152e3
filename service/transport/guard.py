"""What the connections of one server share: limits, counts for each address, and one clock that looks for the overdue.

uvicorn has no header or body timeout, no header cap and counts idle connections as work; a connection has a `Guard`
instead. Knows numbers and connections, and nothing of HTTP.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from .even import Counts
from .limits import ConnectionLimits

_log = logging.getLogger(__name__)

_LINGERING = 32  # connections over the limit that may stay to read why they were refused; few beside those kept back


class Connection(Protocol):
    """What the guard needs of a connection."""

    def check(self, now: float) -> None:
        """Act if a deadline has passed; `now` is the loop's time."""

    def abort(self) -> None:
        """Close at once."""


class Guard:
    """The connections of one server.

    Args:
        limits: what each of them may do.
        refused: called with status and seconds of each answer that a connection gives by itself.
        open_connections: of all workers that take connections from the same socket; None where there is only this one.

    Attributes:
        connections: those that are open.
        draining_since: when the service began to end; None while it runs.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        refused: Callable[[int, float], None],
        open_connections: Counts | None = None,
    ) -> None:
        self.limits = limits
        self.refused = refused
        self.open_connections = open_connections
        self.draining_since: float | None = None
        self.connections: set[Connection] = set()
        self._refused: set[Connection] = set()  # they have no place, and stay only to read why
        self._by_address: Counter[str] = Counter()
        self._tick: asyncio.TimerHandle | None = None

    def drain(self, now: float) -> None:
        """Say that the service ends: no connection outlives the requests it is busy with."""
        if self.draining_since is None:
            self.draining_since = now

    @property
    def may_linger(self) -> bool:
        """Whether a refused connection may stay for a moment: not where so many are refused that descriptors end."""
        return len(self._refused) <= min(_LINGERING, self.limits.connections // 4)

    def enter(self, connection: Connection, address: str) -> bool:
        """Look after a connection from now on; returns whether there is a place for it, and for its address."""
        limits = self.limits
        has_place = len(self.connections) - len(self._refused) < limits.connections and (
            self._by_address[address] < limits.connections_per_address or limits.proxies.trusts(address)
        )
        self.connections.add(connection)
        if has_place:
            self._by_address[address] += 1
        else:
            self._refused.add(connection)
        if self._tick is None:
            self._schedule()
        return has_place

    def leave(self, connection: Connection, address: str) -> None:
        """Forget a connection; the clock stops with the last one."""
        if connection in self.connections:
            self._forget(connection, address)
            if self.open_connections is not None:
                self.open_connections.add(-1)

    def move(self, connection: Connection, address: str, to: str) -> bool:
        """Count a connection for another address; returns whether there is a place for it."""
        self._forget(connection, address)
        return self.enter(connection, to)

    def _forget(self, connection: Connection, address: str) -> None:
        self.connections.remove(connection)
        if connection in self._refused:
            self._refused.remove(connection)
        else:
            self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]
        if not self.connections and self._tick is not None:
            self._tick.cancel()
            self._tick = None

    def _schedule(self) -> None:
        self._tick = asyncio.get_running_loop().call_later(self.limits.tick_seconds, self._look)

    def _look(self) -> None:
        self._schedule()  # first, so that what a check raises cannot stop the clock
        now = asyncio.get_running_loop().time()
        for connection in tuple(self.connections):
            try:
                connection.check(now)
            except Exception:  # a mistake of ours about one connection must not spare the others their deadlines
                _log.exception("a connection failed and is closed")
                connection.abort()
