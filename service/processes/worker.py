"""A worker that starts as a copy of the supervisor, with the libraries in memory that take longest to import.

Between the supervisor and uvicorn's server. What makes threads, onnxruntime before all, is imported in the copy: only
a process of one thread can be copied safely.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn
from uvicorn._subprocess import subprocess_started
from uvicorn.supervisors.multiprocess import Process

from foldserve.exit_codes import DONE

from .abandoned import end_if_abandoned
from .server import Server
from .signals import held, ignore_strays, let_go
from .workers import Workers

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


class Worker(Process):
    """uvicorn's, but forked rather than spawned where the system can do that.

    Args:
        config: of uvicorn.
        sockets: that listen.
        workers: what all of them share.
        leave_seconds: how long requests are answered after ready has turned 503, when the whole service ends.
    """

    def __init__(
        self, config: uvicorn.Config, sockets: list[socket.socket], workers: Workers, leave_seconds: float
    ) -> None:
        super().__init__(config, sockets)
        self._shared = workers
        self._leave_seconds = leave_seconds
        if sys.platform == "linux":  # libraries of other systems do not survive a copy
            copied = multiprocessing.get_context("fork")
            self.process = copied.Process(target=_serve, args=(config, self.target, sockets))  # type: ignore[assignment]

    def start(self) -> None:
        """Start it, so that it takes every signal that it is sent from then on."""
        with held() if sys.platform == "linux" else contextlib.nullcontext():
            super().start()

    @property
    def server(self) -> Server:
        """What serves in the copy; a worker that another one replaces leaves without a word, as the others stay."""
        if self._server is None:
            self._server = Server(self.config, self._leave_seconds, self._shared.are_leaving)
        assert isinstance(self._server, Server)
        return self._server


def _serve(config: uvicorn.Config, target: Callable[..., None], sockets: list[socket.socket]) -> None:
    """Run in the copy: forget that the supervisor collects signals, then serve."""
    ignore_strays()  # first, so that none of them ends this process meanwhile
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGWINCH):
        signal.signal(number, signal.SIG_DFL)
    let_go()
    _go_on_without_parent()
    gc.disable()  # until all is imported, see `factory`
    subprocess_started(config, target, sockets, None)
    end_if_abandoned(DONE)


def _go_on_without_parent() -> None:
    """Let a stopped worker go on once the supervisor has ended: only then can it see that, and end too."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT), 0, 0, 0)
