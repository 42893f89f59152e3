"""One clock for all connections: a mistake about one of them spares no other its deadline."""

import asyncio

from foldserve.service.transport.guard import Guard
from tests.support.wire import limited, on_loop


class Checked:
    def __init__(self, fails: bool) -> None:
        self.fails = fails
        self.is_aborted = False
        self.checks = 0
        self.checked = asyncio.Event()

    def check(self, now: float) -> None:
        self.checks += 1
        if self.fails:
            raise KeyError(7)
        if self.checks == 3:
            self.checked.set()

    def abort(self) -> None:
        self.is_aborted = True


@on_loop
async def test_a_connection_that_fails_is_closed_and_the_others_are_looked_at(caplog):
    """Whichever of them come after it; the failure is in the log."""
    guard = Guard(limited(), lambda *_: None)
    connections = [Checked(fails=number % 2 == 0) for number in range(10)]
    for connection in connections:
        guard.enter(connection, "here")
    async with asyncio.timeout(20):
        for connection in connections[1::2]:
            await connection.checked.wait()
    assert [connection.is_aborted for connection in connections] == [True, False] * 5
    assert {record.getMessage() for record in caplog.records} == {"a connection failed and is closed"}
    for connection in connections:
        guard.leave(connection, "here")
