"""A load beside a version that serves: it takes its measurements in small helpings and gives way between them.

Without this the thread that loads and the event loop meet at the interpreter's lock and on the cores, and those who ask
meanwhile wait. A thread says that it gives way; whoever measures in it pauses after each run.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SHARE = 3  # times as long as a run took
_LONGEST_PAUSE_SECONDS = 0.05
_SWITCH_SECONDS = 0.0005  # within which the event loop gets the interpreter back; Python's own 5 ms are a long time

_here = threading.local()


@contextmanager
def giving_way(*, is_needed: bool = True) -> Iterator[None]:
    """Let this thread give way within the block.

    Args:
        is_needed: whether anybody is there to give way to; at the start nobody is.
    """
    interval = sys.getswitchinterval()
    _here.gives_way = is_needed
    try:
        if is_needed:
            sys.setswitchinterval(min(interval, _SWITCH_SECONDS))
        yield
    finally:
        sys.setswitchinterval(interval)
        _here.gives_way = False


def pause(run_seconds: float) -> None:
    """Sleep after a run, where this thread gives way.

    Args:
        run_seconds: how long the run took.
    """
    if getattr(_here, "gives_way", False):
        time.sleep(min(_SHARE * run_seconds, _LONGEST_PAUSE_SECONDS))
