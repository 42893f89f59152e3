"""How many connections each worker has, in a file that all of them read: so that each takes its share of what comes.

Knows counts, and neither sockets nor what is said over them.
"""

import mmap
import os
from pathlib import Path

from .room import say_once

_MOST_WORKERS = 256
_NUMBER_BYTES = 8
_SLACK = 16  # of so many connections a worker may have one more than another one


class OpenConnections:
    """How many connections each worker has, in a file that all of them read.

    Args:
        path: of the file, which the first one makes; where there is no room for it nothing is shared out.
        place: of this process among the workers, from 0.

    Attributes:
        own: connections of this worker.
    """

    def __init__(self, path: Path, place: int) -> None:
        self._place = place % _MOST_WORKERS
        self.own = 0
        self._takes = True
        size = _MOST_WORKERS * _NUMBER_BYTES
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)  # a hole could not be filled once there is no room
                memory: memoryview = memoryview(mmap.mmap(descriptor, size))
            finally:
                os.close(descriptor)
        except OSError as err:
            say_once(path, err)
            memory = memoryview(bytearray(size))
        self._counts = memory.cast("q")  # one more than there are; 0 where no worker takes connections

    @property
    def is_ahead(self) -> bool:
        """Whether this worker has more than the one that has the fewest."""
        counts = self._counts.tolist()
        return counts[self._place] > min(filter(None, counts)) + self.own // _SLACK

    def add(self, number: int) -> None:
        """Count so many more; fewer, where it is negative."""
        self.own += number
        if self._takes:
            self._counts[self._place] = self.own + 1

    def stop(self) -> None:
        """This worker takes no more; those that it has may stay."""
        self._takes = False
        self._counts[self._place] = 0
