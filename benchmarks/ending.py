"""What a benchmark has started ends with it, however the benchmark ends: killed as well."""

import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

_WATCH = 'read -r _; kill -s TERM -- "-$0"; sleep 5; kill -s KILL -- "-$0"'


@contextmanager
def started(command: Sequence[str], **options: Any) -> "Iterator[subprocess.Popen[Any]]":
    """Start a process; end it and its own processes with the block, kindly first, and whenever this one is gone.

    Args:
        command: its words.
        options: of `subprocess.Popen`.
    """
    process = subprocess.Popen(command, start_new_session=True, **options)
    with process:
        try:
            with ends_with_us(process.pid):
                yield process
        finally:
            end(process)


def end(process: "subprocess.Popen[Any]", seconds: float = 40.0) -> None:
    """End a process that leads its group, and the group with it; what it still has to say is thrown away."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.communicate(timeout=seconds)


@contextmanager
def ends_with_us(group: int) -> Iterator[None]:
    """End a group of processes as soon as this process is gone; within the block only.

    A pipe that nobody else holds is closed then, and a shell that waits at its other end sees that.

    Args:
        group: the id of the process that was started with `start_new_session=True`.
    """
    reader, writer = os.pipe()
    watch = subprocess.Popen(
        ["/bin/sh", "-c", _WATCH, str(group)],
        stdin=reader,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(reader)
    try:
        yield
    finally:
        watch.kill()
        watch.wait()
        os.close(writer)


def end_with_parent() -> None:
    """End this process as soon as the one that it was started by is gone; for a pool of processes to begin with.

    A process of a pool holds both ends of the pipe that it reads, and never sees that nobody will write there again.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
