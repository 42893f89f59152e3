"""The open loop of `open_loop.py` with clients that live: who asks once more, who changes connections, who walks away.

Each load runs in a process of its own (`generate`), so that nothing else is in its loop.
"""

import contextlib
import gc
import multiprocessing
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from benchmarks.ending import end_with_parent
from benchmarks.serving.open_loop import Connection, Load

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close sends a reset at once
_FRESH_EACH = 50  # answers: one connection in so many is opened anew, as clients come and go


class PatientLoad(Load):
    """Clients that ask once more, over a new connection, when theirs broke; keeps when each broke and what came of it.

    One connection in fifty answers is left for a new one: without that all connections would stay with the worker
    that lived when another was killed.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._sent_at: dict[int, float] = {}
        self._again: set[int] = set()
        self._answers = 0
        self.losses: list[tuple[float, float]] = []  # when the request was sent, when its connection was seen to end
        self.failed_twice = 0

    def _send(self, planned: float, number: int) -> bool:
        if self.free:
            self._sent_at[self.free[0].sock.fileno()] = time.perf_counter()
        return super()._send(planned, number)

    def _lost(self, connection: Connection) -> None:
        number, planned = connection.number, connection.planned
        if number >= 0:
            self.losses.append((self._sent_at[connection.sock.fileno()], time.perf_counter()))
        super()._lost(connection)
        if number in self._again:
            self.failed_twice += 1
        elif number >= 0:
            self._again.add(number)
            self.free.rotate(1)  # the newest connection first: it cannot have been the dead one's
            self.free[0].free_since = time.perf_counter()
            self._send(planned, number)

    def _answered(self, connection: Connection, status: int, head: bytes, body: bytes) -> None:
        super()._answered(connection, status, head, body)
        self._answers += 1
        if self._answers % _FRESH_EACH == 0:
            self._drop(self.free.pop())
            fresh = self._open()
            fresh.free_since = time.perf_counter()
            self.free.append(fresh)

    def _summary(self, rate: float, seconds: float, sent: int) -> dict[str, object]:
        return {**super()._summary(rate, seconds, sent), "losses": self.losses, "failed_twice": self.failed_twice}


class LeavingLoad(Load):
    """Half of the clients close their connection at a random moment after they have asked.

    Args:
        longest_seconds: none waits longer before it leaves.
        is_rude: leaves with a reset; otherwise as a client's system does, which says only that no more will come.
        arguments: of `Load`.
    """

    def __init__(self, longest_seconds: float, is_rude: bool, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._random = random.Random(3)
        self._longest_seconds, self._is_rude = longest_seconds, is_rude
        self._leaving: dict[Connection, tuple[float, int]] = {}  # when, and which request it waits for
        self.left = 0

    def _send(self, planned: float, number: int) -> bool:
        self._leave()
        connection = self.free[0] if self.free else None
        was_sent = super()._send(planned, number)
        if was_sent and number % 2 and connection is not None:
            at = time.perf_counter() + self._random.uniform(0, self._longest_seconds)
            self._leaving[connection] = (at, number)
        return was_sent

    def _leave(self) -> None:
        """Close the connections whose moment has come and whose answer has not."""
        now = time.perf_counter()
        for connection, (at, number) in list(self._leaving.items()):
            if connection.number != number:
                del self._leaving[connection]
            elif at <= now:
                del self._leaving[connection]
                if self._is_rude:
                    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                self._drop(connection)
                self.due -= 1
                self.left += 1
                fresh = self._open()
                fresh.free_since = time.perf_counter()
                self.free.append(fresh)

    def _summary(self, rate: float, seconds: float, sent: int) -> dict[str, object]:
        return {**super()._summary(rate, seconds, sent), "left": self.left}


def generate(make: Callable[..., Load], arguments: Sequence[Any], rate: float, seconds: float) -> dict[str, Any]:
    """Run a load in this process, on time also beside other work."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    gc.disable()
    return make(*arguments).run(rate, seconds)


@contextmanager
def beside() -> Any:
    """Give a function that starts a load in a process of its own and returns its future summary."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as pool:

        def begin(make: Callable[..., Load], arguments: Sequence[Any], rate: float, seconds: float) -> Future[Any]:
            return pool.submit(generate, make, arguments, rate, seconds)

        pool.submit(os.getpid).result()  # it has started and imported what it needs
        yield begin
