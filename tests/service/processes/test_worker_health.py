"""A worker as its supervisor sees it; the worker's end of the pipe is the test's, and so is the clock."""

import multiprocessing
import os
from types import SimpleNamespace

import pytest

from foldserve.service.processes.worker_health import WorkerHealth

LIMIT = 5.0


class Waits:
    """What a worker waited for a core between two looks."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.each = seconds

    def seconds(self) -> float:
        return self.each


@pytest.fixture
def pipe():
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        yield ours, theirs


def health_of(pipe, waits: Waits | None = None, short_runs: int = 0) -> WorkerHealth:
    return WorkerHealth(SimpleNamespace(pid=os.getpid(), parent_conn=pipe[0]), short_runs, waits or Waits())


def answer(pipe, is_up: bool) -> None:
    """What a worker says to a question, which has to be there."""
    assert pipe[1].recv() == b"ping"
    pipe[1].send(is_up)


def checks(health: WorkerHealth, start: float, seconds: float) -> list[bool]:
    """Check each half second, as a supervisor does."""
    return [health.check(LIMIT, start + 0.5 * number) for number in range(int(seconds * 2))]


def come_up(health: WorkerHealth, pipe, start: float) -> None:
    for is_up, now in ((False, start), (True, start + 1)):
        assert health.check(LIMIT, now)
        answer(pipe, is_up)
        assert health.has_served is False
        assert health.check(LIMIT, now + 0.1)
    assert health.has_served


def test_a_worker_that_answers_is_asked_again_and_never_waited_for(pipe):
    """A check returns whether or not the answer is there, and at most one ping is open."""
    health = health_of(pipe)
    assert checks(health, 1e6, 3) == [True] * 6
    answer(pipe, False)
    assert not pipe[1].poll(0)
    assert health.check(LIMIT, 1e6 + 4)
    assert pipe[1].poll(0)


def test_a_worker_that_stops_answering_hangs(pipe):
    """Five seconds once it has answered; a worker that still starts may take two minutes."""
    starting = health_of(pipe)
    assert checks(starting, 1e6, 119) == [True] * 238
    answer(pipe, False)
    assert starting.check(LIMIT, 1e6 + 119)
    found = checks(starting, 1e6 + 119.5, 6)
    assert found.index(False) == 9


def test_a_supervisor_that_was_stopped_does_not_blame_its_workers(pipe):
    """An hour without a check counts as one check."""
    health = health_of(pipe)
    come_up(health, pipe, 1e6)
    assert health.check(LIMIT, 1e6 + 10)
    assert health.check(LIMIT, 1e6 + 3600)


def test_a_starved_worker_does_not_hang_and_a_hung_one_does(pipe):
    """Only the time counts in which it could have answered."""
    waits = Waits()
    health = health_of(pipe, waits)
    come_up(health, pipe, 1e6)
    waits.each = 0.45
    assert checks(health, 1e6 + 2, 40) == [True] * 80
    waits.each = 0.0
    assert not all(checks(health, 1e6 + 42, 6))


def test_a_worker_that_served_is_replaced_at_once_and_others_more_and_more_rarely(pipe):
    """Pauses grow over lives that ended before they had served; one that did makes up for all of them."""
    short = 0
    for pause in (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
        health = health_of(pipe, short_runs=short)
        assert health.restart_pause(1e6) == pause
        assert health.restart_at == 1e6 + pause
        short = health.short_runs
    health = health_of(pipe, short_runs=short)
    come_up(health, pipe, 1e6)
    assert health.restart_pause(1e6 + 3) == 0.0
    assert health.short_runs == 0


def test_a_worker_that_dies_as_soon_as_it_serves_has_not_served(pipe):
    """Else one that falls over its first request would be started without pause."""
    health = health_of(pipe, short_runs=2)
    come_up(health, pipe, 1e6)
    assert health.restart_pause(1e6 + 1.5) == 2.0
