"""The file in which prometheus_client counts, with its space taken before it is written to.

The library makes files with a hole in them: where the memory or the disk behind them is full, the first write into the
hole ends the process (SIGBUS), and so does that of the process which replaces it. What finds no space is counted in
this process alone, and says so once.
"""

import os
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

from .room import say_once

_FIRST_BYTES = 65_536
_LONGEST_AROUND = 32  # bytes around a key: its length, padding, value and time


class AllocatedDict(MmapedDict):
    """A dict of numbers in a file; those that find no space there are kept in memory.

    Args:
        filename: of the file.
        read_mode: whether it is only read.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        self._own: dict[str, tuple[float, float]] = {}
        self._has_file = read_mode or _allocate(filename, _FIRST_BYTES)
        if self._has_file:
            super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def read_value(self, key: str) -> tuple[float, float]:
        """Return a number and its time."""
        if key in self._own or not self._finds_room(key):
            return self._own.setdefault(key, (0.0, 0.0))
        found: tuple[float, float] = super().read_value(key)  # type: ignore[no-untyped-call]
        return found

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Keep a number."""
        if key in self._own or not self._finds_room(key):
            self._own[key] = value, timestamp
        else:
            super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the file."""
        if self._has_file:
            super().close()  # type: ignore[no-untyped-call]

    def _finds_room(self, key: str) -> bool:
        if not self._has_file:
            return False
        needed = self._used + len(key.encode()) + _LONGEST_AROUND
        if key in self._positions or needed <= self._capacity:
            return True
        capacity = self._capacity
        while capacity < needed:
            capacity *= 2
        return _allocate(self._fname, capacity)


def _allocate(filename: str, size: int) -> bool:
    """Take the space of a file up to a size; False, with one line, where there is none."""
    path = Path(filename)
    try:
        is_new = not path.exists()
        with path.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as err:
        if is_new:
            path.unlink(missing_ok=True)  # an empty one could not be read
        say_once(path, err)
        return False
    return True
