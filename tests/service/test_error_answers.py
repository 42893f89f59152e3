"""What a client gets for an error, and what the log gets: seen by its operator, and never the load."""

import json
import logging
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.error_answers import ERROR_BYTES, ErrorLog, error_json
from foldserve.service.errors import DeadlineExceeded, InvalidInput, Overloaded


class Clock:
    """Keeps what is to happen later until the test lets it happen."""

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
    log = ErrorLog(clock.later)
    with caplog.at_level(logging.WARNING):
        for number in range(1_000):
            log.note(Overloaded(f"reason {number}"), f"id-{number}", "/predict")
        assert [(record.request_id, record.reason) for record in caplog.records] == [("id-0", "reason 0")]
        clock.tick()
        clock.tick()
    assert [getattr(record, "count", 1) for record in caplog.records] == [1, 999]
    assert (caplog.records[1].status, caplog.records[1].reason) == (503, "reason 999")
    assert not clock.due


def test_after_a_quiet_second_a_refusal_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """The limit is on the rate of lines, not on their number."""
    clock = Clock()
    log = ErrorLog(clock.later)
    with caplog.at_level(logging.WARNING):
        log.note(Overloaded("full"), "first", "/predict")
        clock.tick()
        log.note(DeadlineExceeded("late"), "second", "/predict")
    assert [record.request_id for record in caplog.records] == ["first", "second"]


def test_a_mistake_of_a_client_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    """A client that sends nonsense must not be able to fill the log."""
    with caplog.at_level(logging.DEBUG):
        ErrorLog(Clock().later).note(InvalidInput("nonsense"), "id", "/predict")
    assert not caplog.records


@given(st.text(max_size=5000))
def test_an_error_is_short_json_whatever_it_quotes(message):
    """Control characters, quotes, lone surrogates and long texts: the answer stays within 2 KB of valid JSON."""
    answer = error_json(message)
    assert len(answer) <= ERROR_BYTES
    assert list(json.loads(answer)) == ["error"]


@pytest.mark.parametrize("message", ["\x00" * 3000, '"' * 3000, "é" * 3000, "\ud800" * 3000, "a" * 3000])
def test_the_worst_texts_stay_within_the_limit(message):
    """Characters that JSON writes with six bytes do not break the limit."""
    assert len(error_json(message)) <= ERROR_BYTES
