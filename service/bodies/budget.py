"""How many bytes of request bodies the service holds at one time, all connections together.

The limit of one body does not bound their sum: a thousand clients may each send one that is just small enough. Counts
what has arrived and not what was announced, so that a promised body reserves no room. Where all is held and an address
wants more, those that hold more than it give way: one client cannot keep the others out.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from ..errors import Overloaded


class BodyBudget:
    """Bytes that may be held and bytes that are; used on one event loop.

    Args:
        max_bytes: more are refused.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.by_address: Counter[str] = Counter()
        self.arriving: set[Share] = set()  # of bodies that can be given up

    @contextmanager
    def hold(self, address: str = "") -> Iterator["Share"]:
        """Give one request its share, and take it back when the request is over."""
        share = Share(self, address)
        try:
            yield share
        finally:
            share.release()

    def make_room(self, address: str, size: int) -> None:
        """Give up the largest bodies that still arrive, of addresses that hold more than this one will.

        Raises:
            Overloaded: there is no such body.
        """
        while self.held_bytes + size > self.max_bytes:
            fair = self.by_address[address] + size
            others = [share for share in self.arriving if self.by_address[share.address] > fair and share.held_bytes]
            if not others:
                raise Overloaded(
                    f"bodies: {self.held_bytes} bytes are held, at most {self.max_bytes} may be: try again in a moment"
                )
            max(others, key=lambda share: (self.by_address[share.address], share.held_bytes)).surrender()


class Share:
    """What one request, or one connection at a time, holds.

    Attributes:
        address: of the client.
        held_bytes: of the body so far.
    """

    def __init__(self, budget: BodyBudget, address: str = "") -> None:
        self._budget = budget
        self._give_up: Callable[[], None] | None = None
        self.address = address
        self.held_bytes = 0

    def add(self, size: int) -> None:
        """Count bytes that have arrived.

        Raises:
            Overloaded: the bodies of all requests together are over the budget.
        """
        budget = self._budget
        if budget.held_bytes + size > budget.max_bytes:
            budget.make_room(self.address, size)
        budget.held_bytes += size
        budget.by_address[self.address] += size
        self.held_bytes += size

    def release(self) -> None:
        """Give everything back."""
        budget, address = self._budget, self.address
        budget.held_bytes -= self.held_bytes
        budget.by_address[address] -= self.held_bytes
        if not budget.by_address[address]:
            del budget.by_address[address]
        self.held_bytes = 0
        self.keep()

    def offer(self, give_up: Callable[[], None]) -> None:
        """Say how the request is ended for the sake of others, while its body arrives."""
        self._give_up = give_up
        self._budget.arriving.add(self)

    def keep(self) -> None:
        """The body is whole, or gone: it is not given up any more."""
        self._give_up = None
        self._budget.arriving.discard(self)

    def surrender(self) -> None:
        """Give everything back for the sake of others, and end the request."""
        give_up = self._give_up
        self.release()
        if give_up is not None:
            give_up()

    @asynccontextmanager
    async def receiving(self) -> AsyncIterator[None]:
        """Receive a body within this block, which ends where others need the room.

        Raises:
            Overloaded: they do.
        """
        try:
            async with asyncio.timeout(None) as waiting:
                self.offer(lambda: waiting.reschedule(0))
                yield
        except TimeoutError:
            raise gave_way() from None
        finally:
            self.keep()


def gave_way() -> Overloaded:
    """Return the error for a body that was given up."""
    return Overloaded("body: others needed the room, and this address holds the most: send less at once, or faster")
