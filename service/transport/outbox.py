"""The answers that a connection owes, in the order of its requests.

Requests may be worked on side by side; their answers leave one after the other. Knows nothing of HTTP.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from .flow import Flow, Pause


class Turn(Protocol):
    """A request whose answer is due.

    Attributes:
        answer: the whole of it, where it was ready before its turn.
    """

    answer: bytes | None

    def start(self) -> None:
        """Its turn has come, and it has no answer yet."""

    def end_connection(self) -> None:
        """Its answer is the connection's last, and has to say so."""

    def cancel(self) -> None:
        """The client has gone."""


class Outbox:
    """The answers of one connection.

    Args:
        transport: where they are written.
        flow: stops the client when too many wait.
        max_waiting: how many may wait before that.
        sent: called after answers were written.

    Attributes:
        due: requests without an answer, or with one that waits for its turn; oldest first.
    """

    __slots__ = ("_flow", "_max_waiting", "_sent", "_transport", "due")

    def __init__(self, transport: asyncio.Transport, flow: Flow, max_waiting: int, sent: Callable[[], None]) -> None:
        self.due: deque[Turn] = deque()
        self._transport = transport
        self._flow = flow
        self._max_waiting = max_waiting
        self._sent = sent

    def add(self, turn: Turn) -> bool:
        """Line up a request; returns whether its turn has come already."""
        self.due.append(turn)
        waiting = len(self.due)
        if waiting > self._max_waiting:
            self._flow.pause_reading(Pause.QUEUE)
        return waiting == 1

    def send(self, turn: Turn, answer: bytes) -> None:
        """Write a whole answer when its turn has come, and those that waited for it."""
        due = self.due
        if due[0] is not turn:
            turn.answer = answer
            return
        self._transport.write(answer)
        due.popleft()
        if due:
            self._next()
        self._sent()

    def complete(self, turn: Turn) -> None:
        """Go on behind an answer that was written piece by piece, unless it was discarded meanwhile."""
        due = self.due
        if due and due[0] is turn:
            due.popleft()
            if due:
                self._next()
            self._sent()

    def _next(self) -> None:
        """Write the answers that waited for their turn, and start what has it now."""
        due = self.due
        while due and (answer := due[0].answer) is not None:
            due.popleft()
            self._transport.write(answer)
        if len(due) <= self._max_waiting:
            self._flow.resume_reading(Pause.QUEUE)
        if due:
            due[0].start()

    def discard(self, turn: Turn) -> None:
        """Take back the newest request: it is not to be answered."""
        if self.due and self.due[-1] is turn:
            self.due.pop()

    def close(self) -> None:
        """Write nothing more: the client has gone, or its last answer is written."""
        for turn in self.due:
            turn.cancel()
        self.due.clear()
        self._sent = _nothing  # it refers back to the connection


def _nothing() -> None:
    """Nothing is sent behind the last answer."""
