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


@pytest.mark.parametrize("sent", [100, 10_000, 1_000_000])
def test_what_was_sent_fast_is_no_leave_to_stand_still(sent: int) -> None:
    """After a second of sending, a body has its 30 seconds and no more, whatever it has sent."""
    made = deadlines(Phase.BODY)
    made.body_bytes = sent
    assert not made.is_body_late(1)
    assert not made.is_body_late(30)
    assert made.is_body_late(32)


@pytest.mark.parametrize(("rate", "is_late"), [(90, True), (100, False), (110, False)])
def test_a_body_keeps_its_least_rate_for_as_long_as_it_takes(rate: int, is_late: bool) -> None:
    """At 100 bytes a second it may go on for an hour; a tenth less is late in minutes, whatever it began with."""
    made = deadlines(Phase.BODY)
    late = False
    for second in range(1, 3_600):
        made.body_bytes = 50_000 + rate * second
        late = late or made.is_body_late(second)
    assert late is is_late


def test_time_in_which_we_did_not_read_is_excused() -> None:
    """A body that we have stopped stands still by our own doing."""
    made = deadlines(Phase.BODY)
    made.excuse(5)
    assert not made.is_body_late(35)
    assert made.is_body_late(35.1)


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
