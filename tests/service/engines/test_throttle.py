"""A load is throttled in its own thread, for as long as it lasts, and only beside a version that serves."""

import sys
import threading

import pytest

from foldserve.service.engines import throttle


@pytest.fixture
def slept(monkeypatch):
    """The seconds of each pause."""
    seconds = []
    monkeypatch.setattr(throttle.time, "sleep", seconds.append)
    return seconds


def test_pauses_are_in_proportion_and_bounded(slept):
    """Three times the run, and never so long that a load of large batches does not end."""
    with throttle.throttled():
        throttle.pause(0.002)
        throttle.pause(2.0)
    assert slept == [0.006, 0.05]


def test_nobody_else_pauses(slept):
    """Neither another thread nor a load at the start, nor this one once it is done."""
    with throttle.throttled():
        thread = threading.Thread(target=throttle.pause, args=(1.0,))
        thread.start()
        thread.join()
    with throttle.throttled(is_needed=False):
        throttle.pause(1.0)
    throttle.pause(1.0)
    assert slept == []


def test_the_interpreter_changes_hands_quickly_meanwhile():
    """And as it did before afterwards."""
    before = sys.getswitchinterval()
    with throttle.throttled():
        assert sys.getswitchinterval() <= 0.0005
    assert sys.getswitchinterval() == before


def test_the_usual_interval_is_back_once_the_last_of_several_threads_is_through():
    """Whichever of them began first."""
    usual = sys.getswitchinterval()
    first, second = throttle.changing_hands_quickly(), throttle.changing_hands_quickly()
    with first:
        second.__enter__()
    assert sys.getswitchinterval() < usual
    second.__exit__(None, None, None)
    assert sys.getswitchinterval() == usual
