"""What signals do to a process of the service, so that none ends it by accident; alone and among workers alike.

SIGTERM, SIGINT and SIGQUIT drain, SIGHUP reloads, SIGUSR2 replaces workers where there are several; the others that
would end or stop a process by default are ignored. Who drains and who replaces is decided by the server and the
supervisor.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Each ends or stops a process by default. SIGHUP, and those that a supervisor takes, get a meaning later.
_IGNORED = (
    "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR", "SIGTTIN", "SIGTTOU",
)  # fmt: skip

_ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}


@contextmanager
def held() -> Iterator[None]:
    """Hold the signals that end a process; a copy of it that is made within holds them until it calls `let_go`.

    Until then the copy would take them for those of the process that it is a copy of.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_go() -> None:
    """Take the signals that were held."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def ignore_strays() -> None:
    """Let no signal end this process but those that are meant to, each of which drains."""
    for name in _IGNORED:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, lambda *_: signal.raise_signal(signal.SIGTERM))


@contextmanager
def reloading(reload: Callable[[], None]) -> Iterator[None]:
    """Call `reload` on the running loop at each SIGHUP within; a thread other than the first gets no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    import asyncio  # this module is needed before there is time to import anything

    before = signal.getsignal(signal.SIGHUP)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # without a handler it would end the process
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
