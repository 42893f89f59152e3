"""Workers that take connections from one socket have as many each, however the system wakes them."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from foldserve.service.processes.open_connections import OpenConnections
from foldserve.service.settings import Settings
from foldserve.service.transport.even import EvenServer
from foldserve.service.transport.guard import Guard
from foldserve.service.transport.limits import connection_limits


class Worker:
    """One of several in this process: takes connections, and counts them as a service's guard does."""

    def __init__(self, listener: socket.socket, path, place: int) -> None:
        self.counts = OpenConnections(path, place)
        self.guard = Guard(connection_limits(Settings()), lambda *_: None, self.counts)
        self.changed = asyncio.Event()
        self._listener = listener.dup()  # a loop has one reader of a descriptor
        self.server = EvenServer(self._listener, lambda: Held(self), self.counts)

    @property
    def number(self) -> int:
        return len(self.guard.connections)

    def leave_all(self) -> None:
        for connection in tuple(self.guard.connections):
            connection.transport.abort()

    async def end(self) -> None:
        assert self.counts.own == self.number
        self.server.close()
        await self.server.wait_closed()
        self.leave_all()
        await until([self], lambda: not self.number)
        self._listener.close()


class Held(asyncio.Protocol):
    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.worker.guard.enter(self, "")
        self.worker.changed.set()

    def connection_lost(self, exc) -> None:
        self.worker.guard.leave(self, "")
        self.worker.changed.set()

    def check(self, now: float) -> None:
        pass

    def abort(self) -> None:
        self.transport.abort()


async def until(workers: list[Worker], holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            waits = [asyncio.create_task(worker.changed.wait()) for worker in workers]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for worker, wait in zip(workers, waits, strict=True):
                wait.cancel()
                worker.changed.clear()


@asynccontextmanager
async def clients(listener: socket.socket, number: int) -> AsyncIterator[None]:
    address = listener.getsockname()
    opened = await asyncio.to_thread(lambda: [socket.create_connection(address) for _ in range(number)])
    try:
        yield
    finally:
        for connection in opened:
            connection.close()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        yield listener


@pytest.mark.parametrize("number", [4, 7, 200])
def test_clients_that_come_at_once_are_shared_out(listener, tmp_path, number):
    """Of two workers each has half of the clients, give or take a sixteenth, though one is woken before the other."""

    async def run() -> list[int]:
        workers = [Worker(listener, tmp_path / "counts", place) for place in range(2)]
        async with clients(listener, number):
            await until(workers, lambda: sum(worker.number for worker in workers) == number)
            found = [worker.number for worker in workers]
        for worker in workers:
            await worker.end()
        return found

    found = asyncio.run(run())
    assert abs(found[0] - found[1]) <= 1 + number // 16


def test_who_comes_after_others_have_left_is_shared_out_too(listener, tmp_path, monkeypatch):
    """The clients of one worker leave; those that come then are its own until both have as many.

    A turn that the other worker had begun to wait for before they left gives it one of them.
    """

    async def run() -> list[int]:
        workers = [Worker(listener, tmp_path / "counts", place) for place in range(2)]
        async with clients(listener, 20):
            await until(workers, lambda: sum(worker.number for worker in workers) == 20)
            workers[0].leave_all()
            await until(workers, lambda: not workers[0].number)
            async with clients(listener, 8):
                await until(workers, lambda: sum(worker.number for worker in workers) == 18)
                found = [worker.number for worker in workers]
        for worker in workers:
            await worker.end()
        return found

    assert asyncio.run(run()) in ([8, 10], [7, 11])


def test_a_worker_that_stands_still_keeps_no_client_waiting(listener, tmp_path):
    """One that has fewer and takes none, as a stopped process, is left each client for a moment only."""

    async def run() -> float:
        OpenConnections(tmp_path / "counts", 1).add(0)
        worker = Worker(listener, tmp_path / "counts", 0)
        began = time.perf_counter()
        async with clients(listener, 300):
            await until([worker], lambda: worker.number == 300)
            seconds = time.perf_counter() - began
        await worker.end()
        return seconds

    assert asyncio.run(run()) < 5


def test_a_worker_that_has_left_is_waited_for_by_none(listener, tmp_path):
    """After its end a worker counts for nothing, so that the others take every client at once."""

    async def run() -> tuple[bool, bool]:
        workers = [Worker(listener, tmp_path / "counts", place) for place in range(2)]
        async with clients(listener, 4):
            await until(workers, lambda: sum(worker.number for worker in workers) == 4)
            workers[0].counts.add(5)
            was_ahead = workers[0].counts.is_ahead
            await workers[1].end()
            is_ahead = workers[0].counts.is_ahead
            workers[0].counts.add(-5)
        await workers[0].end()
        return was_ahead, is_ahead

    assert asyncio.run(run()) == (True, False)


def test_without_room_for_the_counts_every_client_is_taken(listener, tmp_path):
    """Where the file cannot be made a worker knows of no other, and takes what comes."""

    async def run() -> bool:
        worker = Worker(listener, tmp_path / "gone" / "counts", 0)
        async with clients(listener, 9):
            await until([worker], lambda: worker.number == 9)
            is_ahead = worker.counts.is_ahead
        await worker.end()
        return is_ahead

    assert not asyncio.run(run())


def test_a_protocol_that_cannot_be_made_is_no_connection(listener, tmp_path, caplog):
    """Its client is told at once, and the worker takes as many after it as before."""

    async def run() -> tuple[list[bytes], int, int]:
        worker = Worker(listener, tmp_path / "counts", 0)
        make, worker.server._make_protocol = worker.server._make_protocol, fail
        got = [await asyncio.to_thread(ask, listener.getsockname()) for _ in range(3)]
        failed = worker.counts.own
        worker.server._make_protocol = make
        async with clients(listener, 2):
            await until([worker], lambda: worker.number == 2)
            taken = worker.counts.own
        await worker.end()
        return got, failed, taken

    assert asyncio.run(run()) == ([b""] * 3, 0, 2)
    assert [record.getMessage() for record in caplog.records] == ["a connection failed and is closed"] * 3


def test_few_are_taken_before_they_are_looked_at(listener, tmp_path):
    """Of a crowd that has no place each holds a descriptor until it is told so: a few at one time."""

    async def run() -> tuple[int, int]:
        worker = Worker(listener, tmp_path / "counts", 0)
        most, take_one = [], worker.server._take_one

        def noted() -> bool:
            most.append(worker.counts.own - worker.number)
            return take_one()

        worker.server._take_one = noted
        async with clients(listener, 300):
            await until([worker], lambda: worker.number == 300)
        await worker.end()
        return len(most), max(most)

    times, most = asyncio.run(run())
    assert times >= 300
    assert most <= 20


def fail() -> asyncio.BaseProtocol:
    raise MemoryError


def ask(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, timeout=10) as connection:
        return connection.recv(1)
