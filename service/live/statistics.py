"""What one version of a model has done: requests and rows answered, batches run, and where their time went.

Counted on the event loop, in whole nanoseconds, since the model was loaded. `perf_analyzer` takes the difference of two
readings and needs every member, zero or not. Several workers each count in a file of their own and read the sum of all,
so that any of them answers for the service, and the counts of one that was killed stay.
"""

import mmap
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..batching.batcher import Observer

_STAGES = ("queue", "compute_input", "compute_infer", "compute_output")

# Places of the counters; a duration has two, how often and how many nanoseconds altogether.
_LAST_MS, _ROWS, _SUCCESS, _FAIL, _FIRST_STAGE = 0, 1, 2, 4, 6
_FIRST_BATCH = _FIRST_STAGE + 2 * len(_STAGES)  # of batches of 0 rows, then of 1, and so on
_CELL_BYTES = 8


@dataclass(slots=True)
class Stages:
    """Seconds of a request, or of several: `input` and `output` are reading and formatting, outside the engine."""

    total: float
    queue: float
    input: float
    infer: float
    output: float


class Statistics:
    """The counters of one version of a model.

    Requests are told by whoever answers them (`answered`, `failed`), batches by the batcher (`batch`), which knows
    this as one of its observers.

    Args:
        most_rows: of one batch.
        folder: where the workers keep the counters of this version; None when there is only this process.
    """

    def __init__(self, most_rows: int, folder: Path | None = None) -> None:
        self._length = _FIRST_BATCH + 2 * (most_rows + 1)
        self._folder = folder
        self._file = folder / str(os.getpid()) if folder else None
        self._cells = memoryview(self._memory()).cast("q")

    def answered(self, stages: Stages, requests: int = 1) -> None:
        """Count requests that got their outputs; the seconds are those of all of them together."""
        self._add(_SUCCESS, stages.total, requests)
        for place, seconds in enumerate((stages.queue, stages.input, stages.infer, stages.output)):
            self._add(_FIRST_STAGE + 2 * place, seconds, requests)

    def failed(self, seconds: float) -> None:
        """Count a request that got an error after it was read."""
        self._add(_FAIL, seconds)

    def batch(self, rows: int, bucket: int, queue_seconds: float, infer_seconds: float) -> None:
        """Count a run of the engine."""
        self._cells[_ROWS] += rows
        self._cells[_LAST_MS] = time.time_ns() // 1_000_000
        self._add(_FIRST_BATCH + 2 * rows, infer_seconds)

    def batch_failed(self) -> None:
        """A batch whose members ran alone is counted by those."""

    def refused(self, reason: str) -> None:
        """A refused request is counted by `failed`."""

    def forget(self) -> None:
        """Begin again at zero: the questions that proved a model are not those of its users."""
        for place in range(self._length):
            self._cells[place] = 0

    def close(self) -> None:
        """Take this process's counts away: the version has left it."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def to_json(self, model: str, version: int) -> dict[str, Any]:
        """One element of `model_stats`: the sums over all workers."""
        cells = self._totals()
        batches = [rows for rows in range((self._length - _FIRST_BATCH) // 2) if cells[_FIRST_BATCH + 2 * rows]]
        durations = [_duration(cells, _FIRST_BATCH + 2 * rows) for rows in batches]
        stages = {name: _duration(cells, _FIRST_STAGE + 2 * place) for place, name in enumerate(_STAGES)}
        nothing = {"count": 0, "ns": 0}
        return {
            "name": model,
            "version": str(version),
            "last_inference": cells[_LAST_MS],
            "inference_count": cells[_ROWS],
            "execution_count": sum(duration["count"] for duration in durations),
            "inference_stats": {
                "success": _duration(cells, _SUCCESS),
                "fail": _duration(cells, _FAIL),
                **stages,
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "response_stats": {},
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": {"count": duration["count"], "ns": 0},
                    "compute_infer": duration,
                    "compute_output": {"count": duration["count"], "ns": 0},
                }
                for rows, duration in zip(batches, durations, strict=True)
            ],
            "memory_usage": [],
        }

    def _add(self, place: int, seconds: float, times: int = 1) -> None:
        self._cells[place] += times
        self._cells[place + 1] += round(seconds * 1e9)

    def _memory(self) -> bytearray | mmap.mmap:
        """Zeros that this process may count in; in a file where others are to read them."""
        size = self._length * _CELL_BYTES
        if self._file is None:
            return bytearray(size)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("w+b") as file:
            file.truncate(size)
            return mmap.mmap(file.fileno(), size)

    def _totals(self) -> list[int]:
        """The counters of all workers, added up; of the last moment, the latest."""
        if self._folder is None:
            return list(self._cells)
        counted = [np.array(self._cells)]
        for file in self._folder.iterdir():
            with suppress(FileNotFoundError):  # a worker may let go of the version at this moment
                if file != self._file and file.stat().st_size == self._length * _CELL_BYTES:
                    counted.append(np.fromfile(file, np.int64))
        totals: list[int] = np.sum(counted, axis=0).tolist()
        totals[_LAST_MS] = int(np.max(counted, axis=0)[_LAST_MS])
        return totals


def _duration(cells: list[int], place: int) -> dict[str, int]:
    """The protocol's form of how often something happened and how long that took."""
    return {"count": cells[place], "ns": cells[place + 1]}


class Observers:
    """Several observers of one batcher, told one after the other."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def batch(self, rows: int, bucket: int, queue_seconds: float, infer_seconds: float) -> None:
        """Tell all of a run of the engine."""
        for observer in self._observers:
            observer.batch(rows, bucket, queue_seconds, infer_seconds)

    def batch_failed(self) -> None:
        """Tell all of a batch whose members ran alone."""
        for observer in self._observers:
            observer.batch_failed()

    def refused(self, reason: str) -> None:
        """Tell all of a request that cost no run."""
        for observer in self._observers:
            observer.refused(reason)
