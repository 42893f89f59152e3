"""What a request costs the processor, against an echo that does nothing, on the same loop in the same moment.

No time by the clock, which says what else the machine does, but the process's own; the least of several rounds, which
noise only makes larger; and a bound so wide that nothing but a new cost of the order of the whole request crosses it.
"""

import asyncio
import time
from pathlib import Path

from tests.support.lane import OCTETS, ONE, ask, service
from tests.support.wire import on_loop

REQUESTS, ROUNDS = 200, 5
MOST = 12  # times what the echo and its client cost; 6 on the machine where this was written, 28 by the application
REQUEST = ask(ONE, OCTETS)


class Echo(asyncio.Protocol):
    """Answers each request with as many bytes as a prediction has, and looks at nothing."""

    def __init__(self) -> None:
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._left += len(data)
        while self._left >= len(REQUEST):
            self._left -= len(REQUEST)
            self._transport.write(b"x" * 700)  # type: ignore[attr-defined]


async def cost(port: int) -> float:
    """Seconds of the processor for a request, both ends together: each is sent when the one before is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.process_time()
    for _ in range(REQUESTS):
        writer.write(REQUEST)
        assert await reader.read(65_536)
    spent = time.process_time() - started
    writer.close()
    await writer.wait_closed()
    return spent / REQUESTS


@on_loop
async def test_a_request_on_the_lane_costs_a_few_times_an_echo(fashion: Path) -> None:
    """Lane, batcher and run together, where the application costs more than twice the bound."""
    echo = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    async with service(fashion) as server, echo:
        ours, bare = server.port, echo.sockets[0].getsockname()[1]
        for port in (ours, bare):
            await cost(port)
        ratio = min([await cost(ours) for _ in range(ROUNDS)]) / min([await cost(bare) for _ in range(ROUNDS)])
        assert ratio < MOST, f"{ratio:.1f} times an echo"
