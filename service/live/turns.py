"""Loads wait for one another, since they measure or fill the memory; but for none that takes long, or may never end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

_PATIENCE_SECONDS = 2.0  # that a load waits for another one


class Turns:
    """How many versions are loaded at a time.

    Args:
        side_by_side: so many; of these, one is measured, and none is proved meanwhile.
    """

    def __init__(self, side_by_side: int) -> None:
        self._side_by_side = side_by_side
        self._loads = asyncio.Semaphore(side_by_side)
        self._proofs = asyncio.Semaphore(side_by_side)
        self._measurement = asyncio.Semaphore(1)

    def load(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Wait until a version may be loaded."""
        return _turn(self._loads)

    def prove(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Wait until one may be proved whose seconds are known."""
        return _turn(self._proofs)

    @contextlib.asynccontextmanager
    async def measure(self) -> AsyncIterator[None]:
        """Wait until one may be measured."""
        async with _turn(self._measurement), _turn(self._proofs, self._side_by_side):
            yield


@contextlib.asynccontextmanager
async def _turn(loads: asyncio.Semaphore, places: int = 1) -> AsyncIterator[None]:
    """Wait for `places` of those that a semaphore has, as long as patience lasts."""
    taken = 0
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while taken < places:
                    await loads.acquire()
                    taken += 1
        yield
    finally:
        for _ in range(taken):
            loads.release()
