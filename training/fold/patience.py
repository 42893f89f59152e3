"""How long a command that folds may take, and what a person sees meanwhile.

Used by commands alone: a library does not take a process's alarm clock or write to its terminal.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from foldserve import patience

from ..errors import ConfigError, FoldError
from .failures import current_step


class _TimedOut(KeyboardInterrupt):
    """The time is up; passes wherever Ctrl-C does, so that nothing on the way takes it for a failure of its own."""


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
def shown(task: str = "folding", after: float = 3.0) -> Iterator[None]:
    """Show on a terminal which step of a fold goes on, as `foldserve.patience.shown` does; nothing in a pipe.

    Args:
        task: what is done where no step of a fold says more.
        after: seconds until it is shown.
    """
    with patience.shown(lambda: current_step(task), after):
        yield
