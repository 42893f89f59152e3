"""How many bytes of request bodies the service holds at one time, all connections together.

The limit of one body does not bound their sum: a thousand clients may each send one that is just small enough. Counts
what has arrived and not what was announced, so that a promised body reserves no room.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import Overloaded


class BodyBudget:
    """Bytes that may be held and bytes that are; used on one event loop.

    Args:
        max_bytes: more are refused.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0

    @contextmanager
    def hold(self) -> Iterator["Share"]:
        """Give one request its share, and take it back when the request is over."""
        share = Share(self)
        try:
            yield share
        finally:
            share.release()


class Share:
    """What one request, or one connection at a time, holds."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.held_bytes = 0

    def add(self, size: int) -> None:
        """Count bytes that have arrived.

        Raises:
            Overloaded: the bodies of all requests together are over the budget.
        """
        if self._budget.held_bytes + size > self._budget.max_bytes:
            held, limit = self._budget.held_bytes, self._budget.max_bytes
            raise Overloaded(f"bodies: {held} bytes are held, at most {limit} may be: try again in a moment")
        self._budget.held_bytes += size
        self.held_bytes += size

    def release(self) -> None:
        """Give everything back."""
        self._budget.held_bytes -= self.held_bytes
        self.held_bytes = 0
