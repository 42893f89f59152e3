"""Deadlines as numbers: no socket and no clock, a table of phases and times."""

import pytest

from foldserve.service.errors import NotReady, RequestTimeout, ServiceError
from foldserve.service.transport.deadlines import Deadlines, Overdue, Phase
from tests.support.wire import limited

LIMITS = limited(header_seconds=10, body_seconds=30, body_bytes_per_second=100, linger_seconds=2, drain_seconds=3)
KEEP_ALIVE = 75


def deadlines(phase: Phase) -> Deadlines:
    """Deadlines of a connection that was made at 0 and is in a phase since then."""
    made = Deadlines(LIMITS, KEEP_ALIVE, now=0)
    if phase is not Phase.NEW:
        made.enter(phase, 0)
    return made


@pytest.mark.parametrize(
    ("phase", "limit", "expected"),
    [
        (Phase.NEW, 10, Overdue.CLOSE),
        (Phase.HEAD, 10, RequestTimeout),
        (Phase.BODY, 30, RequestTimeout),
        (Phase.IDLE, KEEP_ALIVE, Overdue.CLOSE),
        (Phase.CLOSED, 2, Overdue.ABORT),
    ],
)
def test_each_phase_has_its_time(phase: Phase, limit: float, expected: Overdue | type[ServiceError]) -> None:
    """Up to the limit all is well, a moment later it is not."""
    made = deadlines(phase)
    assert made.overdue(limit, is_answer_due=False, draining_since=None) is None
    overdue = made.overdue(limit + 0.1, is_answer_due=False, draining_since=None)
    assert overdue is expected or type(overdue) is expected


@pytest.mark.parametrize("phase", [Phase.IDLE, Phase.MUST_CLOSE])
def test_a_client_that_waits_for_an_answer_is_not_idle(phase: Phase) -> None:
    """However long it takes: that is the deadline of the request, which is counted elsewhere."""
    assert deadlines(phase).overdue(1e6, is_answer_due=True, draining_since=0) is None


def test_a_body_buys_time_with_each_byte() -> None:
    """1,000 bytes at 100 a second are ten seconds more."""
    made = deadlines(Phase.BODY)
    made.body_bytes = 1_000
    assert made.overdue(40, is_answer_due=False, draining_since=None) is None
    assert made.overdue(40.1, is_answer_due=False, draining_since=None) is not None


def test_the_first_headers_are_due_from_the_start_of_the_connection() -> None:
    """Those of the next request from its first byte."""
    first, next_one = deadlines(Phase.NEW), deadlines(Phase.IDLE)
    for made in (first, next_one):
        made.enter(Phase.HEAD, 9)
    assert first.overdue(10.1, is_answer_due=False, draining_since=None) is not None
    assert next_one.overdue(18.9, is_answer_due=False, draining_since=None) is None


@pytest.mark.parametrize(
    ("phase", "limit", "expected"),
    [
        (Phase.HEAD, 3, NotReady),
        (Phase.BODY, 3, NotReady),
        (Phase.IDLE, 0.3, Overdue.CLOSE),
        (Phase.NEW, 0.3, Overdue.CLOSE),
    ],
)
def test_the_end_of_the_service_leaves_less_time(phase: Phase, limit: float, expected: object) -> None:
    """A half-sent request gets a few seconds, an idle connection a moment."""
    made = deadlines(phase)
    assert made.overdue(limit, is_answer_due=False, draining_since=0) is None
    overdue = made.overdue(limit + 0.1, is_answer_due=False, draining_since=0)
    assert overdue is expected or type(overdue) is expected


def test_reading_an_answer_slowly_is_no_fault_while_it_goes_on() -> None:
    """A head start, then a speed; an empty buffer begins anew."""
    made = Deadlines(limited(write_seconds=30, write_bytes_per_second=100), KEEP_ALIVE, now=0)
    assert not made.is_read_too_slowly(0, 10_000)
    assert not made.is_read_too_slowly(40, 9_000)
    assert made.is_read_too_slowly(41, 9_000)
    assert not made.is_read_too_slowly(42, 0)
    assert not made.is_read_too_slowly(43, 10_000)
    assert not made.is_read_too_slowly(73, 10_000)
    assert made.is_read_too_slowly(73.1, 10_000)
