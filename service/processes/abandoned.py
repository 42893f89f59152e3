"""Work in threads that was given up and goes on: it must not keep the process once that is to end.

Python waits for every thread of a pool when it ends. What hangs in a library cannot be stopped, only left behind.
"""

import logging
import os
from concurrent.futures import Future
from typing import Any

_given_up: list[Future[Any]] = []


def abandon(work: Future[Any]) -> None:
    """Note that nobody waits for this work any more, until it ends: what it gives is freed then."""
    _given_up.append(work)
    work.add_done_callback(_given_up.remove)


def end_if_abandoned(exit_code: int) -> None:
    """End the process at once if work that was given up still runs; everything else has been ended before."""
    if any(work.running() for work in _given_up):
        logging.shutdown()
        os._exit(exit_code)
