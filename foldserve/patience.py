"""What a person at a terminal sees of a command that takes longer than three seconds; a pipe sees nothing.

Used by commands alone: a library does not write to its user's terminal. Bars of what can be counted (the rows of an
epoch, the bytes of a download) are tqdm's; this is one line that says what goes on, and for how long.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_AFTER_S = 3.0  # what is done by then needs no line
_EVERY_S = 0.5
_CLEAR = "\r\033[K"


@dataclass(frozen=True)
class _Task:
    says: Callable[[], str]
    started: float = field(default_factory=time.monotonic)


_tasks: list[_Task] = []  # the innermost one is shown
_writing = threading.Lock()


@contextmanager
def shown(task: str | Callable[[], str], after: float = _AFTER_S) -> Iterator[None]:
    """Show on a terminal what is being done, once it takes longer than `after` seconds; nothing in a pipe.

    A block inside another one is shown in its place. What is printed meanwhile goes through `tell`.

    Args:
        task: what is done, or what says it anew each time.
        after: seconds, counted from the start of the outermost block.
    """
    if not sys.stderr.isatty():
        yield
        return
    _tasks.append(_Task(task if callable(task) else lambda: task))
    done, is_outermost = threading.Event(), len(_tasks) == 1
    thread = threading.Thread(target=_show, args=(done, after), daemon=True)
    if is_outermost:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if is_outermost:
            thread.join()
        _tasks.pop()


def tell(line: object) -> None:
    """Print a line of the command's own, where the one that says what goes on does not stand in its way."""
    with _writing:
        if _tasks:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
        print(line, flush=True)


def _show(done: threading.Event, after: float) -> None:
    if done.wait(after):
        return
    while not done.wait(_EVERY_S):
        task = _tasks[-1]
        minutes, seconds = divmod(int(time.monotonic() - task.started), 60)
        elapsed = f": {minutes:02}:{seconds:02}"
        with _writing:
            sys.stderr.write(_CLEAR + task.says()[: _columns() - 1 - len(elapsed)] + elapsed)
            sys.stderr.flush()
    sys.stderr.write(_CLEAR)
    sys.stderr.flush()


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
