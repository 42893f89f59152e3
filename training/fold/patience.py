"""How long a command that folds may take, and what a person sees meanwhile.

Used by commands alone: a library does not take a process's alarm clock or write to its terminal.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tqdm import tqdm

from ..errors import ConfigError, FoldError
from .failures import current_step

_AFTER_S = 3.0  # a fold that is done by then needs no progress
_EVERY_S = 0.5


class _TimedOut(BaseException):
    """The time is up; no Exception, so that nothing on the way takes it for a failure of its own."""


@contextmanager
def limited_to(seconds: float | None) -> Iterator[None]:
    """Raise FoldError when what is inside takes longer; None for no limit. For the main thread.

    Raises:
        ConfigError: `seconds` is not positive.
        FoldError: the time is up; says what was being done.
    """
    if seconds is None:
        yield
        return
    if not seconds > 0:
        raise ConfigError(f"--timeout {seconds:g}: expected a positive number of seconds")
    step = "folding"

    def ring(_: int, __: FrameType | None) -> None:
        nonlocal step
        step = current_step()
        raise _TimedOut

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TimedOut:
        raise FoldError(
            f"not folded within {seconds:g} s, while {step}; nothing was written: raise --timeout"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def shown(task: str = "folding", after: float = _AFTER_S) -> Iterator[None]:
    """Show on a terminal what is being done, once it takes longer than `after` seconds; nothing in a pipe.

    Args:
        task: what is done where no step of a fold says more.
        after: seconds.
    """
    done = threading.Event()
    thread = threading.Thread(target=_show, args=(done, task, after), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show(done: threading.Event, task: str, after: float) -> None:
    if done.wait(after):
        return
    with tqdm(desc=current_step(task), bar_format="{desc}: {elapsed}", disable=None, leave=False) as bar:
        while not done.wait(_EVERY_S):
            bar.set_description_str(current_step(task))
