"""What one version of a model has done: requests and rows answered, batches run, and where their time went.

Counted on the event loop, in whole nanoseconds, since the model was loaded. `perf_analyzer` takes the difference of two
readings and needs every member, zero or not.
"""

import time
from dataclasses import dataclass, field
from typing import Any

from service.batcher import Observer

_STAGES = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass(slots=True)
class Duration:
    """How often something happened, and how many nanoseconds that took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.count += 1
        self.ns += round(seconds * 1e9)

    def to_json(self) -> dict[str, int]:
        """The protocol's form."""
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class Stages:
    """Seconds of one request: `input` and `output` are reading and formatting, outside the engine."""

    total: float
    queue: float
    input: float
    infer: float
    output: float


@dataclass(slots=True)
class Statistics:
    """The counters of one version of a model.

    Requests are told by whoever answers them (`answered`, `failed`), batches by the batcher (`batch`), which knows
    this as one of its observers.
    """

    rows: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    stages: dict[str, Duration] = field(default_factory=lambda: {name: Duration() for name in _STAGES})
    batches: dict[int, Duration] = field(default_factory=dict)
    last_inference_ms: int = 0

    def answered(self, stages: Stages) -> None:
        """Count a request that got its outputs."""
        self.success.add(stages.total)
        self.stages["queue"].add(stages.queue)
        self.stages["compute_input"].add(stages.input)
        self.stages["compute_infer"].add(stages.infer)
        self.stages["compute_output"].add(stages.output)

    def failed(self, seconds: float) -> None:
        """Count a request that got an error after it was read."""
        self.fail.add(seconds)

    def batch(self, rows: int, bucket: int, queue_seconds: float, infer_seconds: float) -> None:
        """Count a run of the engine."""
        self.rows += rows
        duration = self.batches.get(rows)
        if duration is None:
            duration = self.batches[rows] = Duration()
        duration.add(infer_seconds)
        self.last_inference_ms = time.time_ns() // 1_000_000

    def batch_failed(self) -> None:
        """A batch whose members ran alone is counted by those."""

    def refused(self, reason: str) -> None:
        """A refused request is counted by `failed`."""

    def forget(self) -> None:
        """Begin again at zero: the questions that proved a model are not those of its users."""
        fresh = Statistics()
        for name in self.__slots__:
            setattr(self, name, getattr(fresh, name))

    def to_json(self, model: str, version: int) -> dict[str, Any]:
        """One element of `model_stats`."""
        nothing = Duration().to_json()
        return {
            "name": model,
            "version": str(version),
            "last_inference": self.last_inference_ms,
            "inference_count": self.rows,
            "execution_count": sum(duration.count for duration in self.batches.values()),
            "inference_stats": {
                "success": self.success.to_json(),
                "fail": self.fail.to_json(),
                **{name: duration.to_json() for name, duration in self.stages.items()},
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "response_stats": {},
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": {"count": duration.count, "ns": 0},
                    "compute_infer": duration.to_json(),
                    "compute_output": {"count": duration.count, "ns": 0},
                }
                for rows, duration in sorted(self.batches.items())
            ],
            "memory_usage": [],
        }


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
