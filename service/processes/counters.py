"""Numbers that each process adds to in a file of its own, and that any of them reads as the sums of all.

The counts of a process that was killed stay. Knows places, not names.
"""

import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from .room import say_once


class Counters:
    """Some numbers, zero at first.

    Args:
        size: how many.
        folder: of these numbers alone, shared by the processes that count them; None where there is only this one.
            Without room in it they are this process's alone.
        maxima: places whose total is the largest number instead of the sum.

    Attributes:
        own: what this process has counted: float64, to be added to in place.
    """

    def __init__(self, size: int, folder: Path | None = None, maxima: Sequence[int] = ()) -> None:
        self._folder = folder
        self._file = folder / uuid.uuid4().hex if folder else None  # not the pid, which comes again after a restart
        self._maxima = list(maxima)
        numbers = np.zeros(size)
        if self._file is not None:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._file.write_bytes(
                    numbers.tobytes()
                )  # which takes its space: a hole could not be filled once there is none
                numbers = np.memmap(self._file, np.float64, "r+")
            except OSError as err:
                self._file.unlink(missing_ok=True)
                say_once(self._file, err)
        self.own = numbers.data.cast("B").cast("d")  # in which counting is faster than in the array

    def add(self, numbers: Iterable[float]) -> None:
        """Count a number at each place."""
        for place, number in enumerate(numbers):
            counted = self.own[place]
            self.own[place] = max(counted, number) if place in self._maxima else counted + number

    def totals(self) -> list[float]:
        """Return the numbers of all processes, put together."""
        counted = [np.array(self.own)]
        for file in self._folder.glob("*") if self._folder else ():
            with suppress(FileNotFoundError):  # another process may have closed its own just now
                if file != self._file and file.stat().st_size == self.own.nbytes:
                    counted.append(np.fromfile(file))
        totals = np.sum(counted, axis=0)
        totals[self._maxima] = np.max(counted, axis=0)[self._maxima]
        return list(totals.tolist())

    def close(self) -> None:
        """Take this process's counts away."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
