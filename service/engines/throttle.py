"""Throttle a load beside a version that serves: the loading thread pauses after each of its measured runs.

Without this the loading thread and the event loop compete for the interpreter's lock and the cores, and requests wait
meanwhile. A thread marks itself as throttled; the code that measures in it pauses after each run.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SHARE = 3  # times as long as a run took
_LONGEST_PAUSE_SECONDS = 0.05
_SWITCH_SECONDS = 0.0005  # within which the event loop gets the interpreter back; Python's own 5 ms are a long time

_this_thread = threading.local()
_within = threading.Lock()
_intervals: list[float] = []  # one for each thread that is within such a block; the first is the usual one


@contextmanager
def throttled(*, is_needed: bool = True) -> Iterator[None]:
    """Throttle this thread within the block.

    Args:
        is_needed: whether another version serves meanwhile; at the start none does.
    """
    if not is_needed:
        yield
        return
    _this_thread.is_throttled = True
    try:
        with changing_hands_quickly():
            yield
    finally:
        _this_thread.is_throttled = False


@contextmanager
def changing_hands_quickly() -> Iterator[None]:
    """Let threads that wait for the interpreter have it soon within the block."""
    with _within:
        _intervals.append(sys.getswitchinterval())
        sys.setswitchinterval(min(_SWITCH_SECONDS, _intervals[0]))
    try:
        yield
    finally:
        with _within:
            usual = _intervals[0]
            _intervals.pop()
            if not _intervals:
                sys.setswitchinterval(usual)


def pause(run_seconds: float) -> None:
    """Sleep after a run, in a throttled thread.

    Args:
        run_seconds: how long the run took.
    """
    if getattr(_this_thread, "is_throttled", False):
        time.sleep(min(_SHARE * run_seconds, _LONGEST_PAUSE_SECONDS))
