"""What one version of a model has done: requests and rows answered, batches run, and where their time went.

Counted on the event loop, in nanoseconds, since the model was loaded. `perf_analyzer` takes the difference of two
readings and needs every member, zero or not. Each worker reports the sum over all workers.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..batching.batcher import Observer
from ..processes.counters import Counters

_STAGES = ("queue", "compute_input", "compute_infer", "compute_output")

# Places of the counters; a duration has two, how often and how many nanoseconds altogether.
_LAST_MS, _ROWS, _SUCCESS, _FAIL, _FIRST_STAGE = 0, 1, 2, 4, 6
_FIRST_BATCH = _FIRST_STAGE + 2 * len(_STAGES)  # of batches of 0 rows, then of 1, and so on


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

    Requests are counted by what answers them (`answered`, `failed`), batches by the batcher (`batch`), which knows
    this as one of its observers.

    Args:
        most_rows: of one batch.
        folder: where the workers keep the counters of this version; None when there is only this process.
    """

    def __init__(self, most_rows: int, folder: Path | None = None) -> None:
        self._batches = {rows: _FIRST_BATCH + 2 * rows for rows in range(most_rows + 1)}
        self._counters = Counters(_FIRST_BATCH + 2 * len(self._batches), folder, maxima=[_LAST_MS])
        self._own = self._counters.own

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
        self._own[_ROWS] += rows
        self._own[_LAST_MS] = time.time_ns() // 1_000_000
        self._add(self._batches[rows], infer_seconds)

    def batch_failed(self) -> None:
        """A batch whose members ran alone is counted by those."""

    def refused(self, reason: str) -> None:
        """A refused request is counted by `failed`."""

    def forget(self) -> None:
        """Start again at zero: the golden inputs of a load are no request."""
        self._counters.clear()

    def close(self) -> None:
        """Take this process's counts away: the version has left it."""
        self._counters.close()

    def to_json(self, model: str, version: int) -> dict[str, Any]:
        """One element of `model_stats`: the sums over all workers."""
        totals = list(map(round, self._counters.totals()))
        durations = {rows: _duration(totals, place) for rows, place in self._batches.items() if totals[place]}
        stages = {name: _duration(totals, _FIRST_STAGE + 2 * place) for place, name in enumerate(_STAGES)}
        nothing = {"count": 0, "ns": 0}
        return {
            "name": model,
            "version": str(version),
            "last_inference": totals[_LAST_MS],
            "inference_count": totals[_ROWS],
            "execution_count": sum(duration["count"] for duration in durations.values()),
            "inference_stats": {
                "success": _duration(totals, _SUCCESS),
                "fail": _duration(totals, _FAIL),
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
                for rows, duration in durations.items()
            ],
            "memory_usage": [],
        }

    def _add(self, place: int, seconds: float, times: int = 1) -> None:
        self._own[place] += times
        self._own[place + 1] += seconds * 1e9


def _duration(totals: list[int], place: int) -> dict[str, int]:
    """The protocol's form of how often something happened and how long that took."""
    return {"count": totals[place], "ns": totals[place + 1]}


class Observers:
    """Several observers of one batcher."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def batch(self, rows: int, bucket: int, queue_seconds: float, infer_seconds: float) -> None:
        """Count a run of the engine."""
        for observer in self._observers:
            observer.batch(rows, bucket, queue_seconds, infer_seconds)

    def batch_failed(self) -> None:
        """Count a batch whose members ran alone."""
        for observer in self._observers:
            observer.batch_failed()

    def refused(self, reason: str) -> None:
        """Count a request that cost no run."""
        for observer in self._observers:
            observer.refused(reason)
