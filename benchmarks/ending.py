"""A service that a benchmark has started ends with it, however the benchmark ends: killed as well."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_WATCH = 'read -r _; kill -s TERM -- "-$0"; sleep 5; kill -s KILL -- "-$0"'


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
