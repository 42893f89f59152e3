"""What is written around requests: refusals have to be seen, and must not become the load."""

import logging
from collections.abc import Callable

import pytest

from foldserve.service.observe import RefusalLog


class Clock:
    """Keeps what is to happen later until the test says that the time has come."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Keep one callback."""
        self.due.append(callback)

    def tick(self) -> None:
        """Let all that is due happen."""
        due, self.due = self.due, []
        for callback in due:
            callback()


def test_a_thousand_refusals_in_one_second_are_two_lines_that_account_for_all(caplog: pytest.LogCaptureFixture) -> None:
    """The first is told at once, the others as a number with the last one's reason, and then there is silence."""
    clock = Clock()
    log = RefusalLog(clock.later)
    with caplog.at_level(logging.WARNING):
        for number in range(1_000):
            log.note(f"id-{number}", 503, f"reason {number}")
        assert [(record.request_id, record.reason) for record in caplog.records] == [("id-0", "reason 0")]
        clock.tick()
        clock.tick()
    assert [getattr(record, "count", 1) for record in caplog.records] == [1, 999]
    assert (caplog.records[1].status, caplog.records[1].reason) == (503, "reason 999")
    assert not clock.due


def test_after_a_quiet_second_a_refusal_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """The limit is on the rate of lines, not on their number."""
    clock = Clock()
    log = RefusalLog(clock.later)
    with caplog.at_level(logging.WARNING):
        log.note("first", 503, "full")
        clock.tick()
        log.note("second", 504, "late")
    assert [record.request_id for record in caplog.records] == ["first", "second"]
