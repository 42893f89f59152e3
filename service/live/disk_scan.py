"""Looks at the models folder in a thread, for many at once: the event loop never waits for a disk.

Calls that come together are one look, which begins after each of them came: what was published before a call is in its
answer. Looks end in the order in which they began.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Found = TypeVar("Found")


class DiskScan(Generic[Found]):
    """What lies on a disk now.

    Args:
        look: what to do in the thread; what it returns is shared, and not to be changed.
    """

    def __init__(self, look: Callable[[], Found]) -> None:
        self._look = look
        self._one_at_a_time = asyncio.Lock()
        self._next: asyncio.Task[Found] | None = None  # has not begun to look

    async def look(self) -> Found:
        """Return what is found; raises what looking raises."""
        if self._next is None:
            self._next = asyncio.create_task(self._look_now())
        return await asyncio.shield(self._next)  # one that gives up leaves the look to the others

    async def _look_now(self) -> Found:
        async with self._one_at_a_time:
            self._next = None
            return await asyncio.to_thread(self._look)
