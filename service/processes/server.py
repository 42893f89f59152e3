"""uvicorn's server with an end in two steps: first it says that it is leaving and goes on answering, then it drains.

A balancer learns that an instance is gone later than the instance is told to end: until then it sends requests, which
a closed port would lose. So ready is 503 at once, and what comes is answered for a while.
"""

import asyncio
import functools
import logging
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from ..transport.connection import GUARD
from ..transport.even import EvenServer
from ..transport.guard import Guard

LEAVE = "foldserve.leave"  # of the lifespan's state: what turns ready false, while requests are answered
_TICK_SECONDS = 0.1

logger = logging.getLogger("foldserve")


class Server(uvicorn.Server):
    """One process of the service.

    Args:
        config: of uvicorn.
        leave_seconds: how long requests are answered after ready has turned 503.
        may_leave: whether the whole service ends; None: it is this process alone, which logs its end, and which a
            second signal of any kind ends at once.
    """

    def __init__(
        self, config: uvicorn.Config, leave_seconds: float, may_leave: Callable[[], bool] | None = None
    ) -> None:
        super().__init__(config)
        self._leave_seconds = leave_seconds
        self._may_leave = may_leave

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal; uvicorn goes on waiting at a second one unless that is SIGINT."""
        if self._may_leave is None:
            self.force_exit = self.force_exit or self.should_exit
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then take connections; of several workers each takes its share of them."""
        if self.config.workers <= 1 or sockets is None:
            await super().startup(sockets)
            return
        await super().startup([])
        state = self.lifespan.state
        protocol: Any = self.config.http_protocol_class
        make = functools.partial(protocol, config=self.config, server_state=self.server_state, app_state=state)
        guard: Guard = state[GUARD]
        assert guard.open_connections is not None
        self.servers += [EvenServer(listener, make, guard.open_connections) for listener in sockets]  # type: ignore[misc]

    async def main_loop(self) -> None:
        """Serve until a signal comes, and then for as long as clients are still sent here."""
        await super().main_loop()
        leave: Callable[[], bool] | None = self.lifespan.state.get(LEAVE)
        if self._leave_seconds and leave is not None and (self._may_leave is None or self._may_leave()) and leave():
            logger.info("leaving", extra={"seconds": self._leave_seconds})
            await self._go_on_for(self._leave_seconds)

    async def _go_on_for(self, seconds: float) -> None:
        until, ticks = time.monotonic() + seconds, 0
        while time.monotonic() < until and not self.force_exit:
            await asyncio.sleep(_TICK_SECONDS)
            await self.on_tick(ticks := ticks + 1)  # keeps the header Date right

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain."""
        if self._may_leave is None:
            logger.info("draining")
        await super().shutdown(sockets)
