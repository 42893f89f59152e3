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


@contextmanager
def throttled(*, is_needed: bool = True) -> Iterator[None]:
    """Throttle this thread within the block.

    Args:
        is_needed: whether another version serves meanwhile; at the start none does.
    """
    interval = sys.getswitchinterval()
    _this_thread.is_throttled = is_needed
    try:
        if is_needed:
            sys.setswitchinterval(min(interval, _SWITCH_SECONDS))
        yield
    finally:
        sys.setswitchinterval(interval)
        _this_thread.is_throttled = False


def pause(run_seconds: float) -> None:
    """Sleep after a run, in a throttled thread.

    Args:
        run_seconds: how long the run took.
    """
    if getattr(_this_thread, "is_throttled", False):
        time.sleep(min(_SHARE * run_seconds, _LONGEST_PAUSE_SECONDS))
