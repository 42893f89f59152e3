"""A worker that starts as a copy of the supervisor, with the libraries in memory that take longest to import.

Between the supervisor and uvicorn's server. What makes threads, onnxruntime before all, is imported in the copy: only
a process of one thread can be copied safely.
"""

import ctypes
import gc
import multiprocessing
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn
from uvicorn._subprocess import subprocess_started
from uvicorn.supervisors.multiprocess import SIGNALS, Process

from foldserve.exit_codes import DONE

from .abandoned import end_if_abandoned
from .signals import ignore_strays

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


class Worker(Process):
    """uvicorn's, but forked rather than spawned where the system can do that."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        if sys.platform == "linux":  # libraries of other systems do not survive a copy
            copied = multiprocessing.get_context("fork")
            self.process = copied.Process(target=_serve, args=(config, self.target, sockets))  # type: ignore[assignment]


def _serve(config: uvicorn.Config, target: Callable[..., None], sockets: list[socket.socket]) -> None:
    """Run in the copy: forget that the supervisor collects signals, then serve."""
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    ignore_strays()
    _go_on_without_parent()
    gc.disable()  # until all is imported, see `factory`
    subprocess_started(config, target, sockets, None)
    end_if_abandoned(DONE)


def _go_on_without_parent() -> None:
    """Let a stopped worker go on once the supervisor has ended: only then can it see that, and end too."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT), 0, 0, 0)
