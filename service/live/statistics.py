"""What one version of a model has done: requests and rows answered, batches run, and where their time went.

Noted on the event loop and counted in bulk, in nanoseconds, since the model was loaded. `perf_analyzer` takes the
difference of two readings and needs every member, zero or not. Each worker reports the sum over all workers. What the
service asks itself is no request and no answer: its rows stand apart.
"""

import time
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..batching.request import CHECKS
from ..metrics import Floats, VersionMetrics
from ..processes.counters import Counters
from ..tensors import Array
from .predictions import Predictions

_STAGES = ("queue", "compute_input", "compute_infer", "compute_output")

# Places of the counters; a duration has two, how often and how many nanoseconds altogether.
_LAST_MS, _ROWS, _SUCCESS, _FAIL, _FIRST_STAGE = 0, 1, 2, 4, 6
_FIRST_CHECK = _FIRST_STAGE + 2 * len(_STAGES)
_FIRST_BATCH = _FIRST_CHECK + len(CHECKS)
_BATCH_PLACES = 4  # for batches of 0 rows, then of 1, and so on: how many, and nanoseconds of input, infer and output

_PLACES_OF_SECONDS = (_SUCCESS, *range(_FIRST_STAGE, _FIRST_CHECK, 2))

_MOST_NOTED = 1_024  # batches, or requests answered together, that are noted before they are counted
_ANSWER, _RUN = 6, 6  # numbers that are noted of requests answered together, and of a batch


class Statistics:
    """The counters of one version of a model.

    Requests are counted by what answers them (`answered`, `failed`), batches by the batcher (`batch`), which knows
    this as one of its observers.

    Args:
        most_rows: of one batch.
        metrics: show the same.
        folder: where the workers keep the counters of this version; None when there is only this process.
        predictions: counts classes and confidences too; None for a model that does not classify.
    """

    def __init__(
        self,
        most_rows: int,
        metrics: VersionMetrics,
        folder: Path | None = None,
        predictions: Predictions | None = None,
    ) -> None:
        self._most_rows = most_rows
        self._metrics = metrics
        self._counters = Counters(_FIRST_BATCH + _BATCH_PLACES * (most_rows + 1), folder, maxima=[_LAST_MS])
        self._last_ms = 0
        self._answers = array("d")  # one after the other, `_ANSWER` numbers each
        self._runs = array("d")  # the same with `_RUN` numbers
        self._predictions = predictions
        # A failure or a refusal is no load of its own, and is counted at once.
        self.batch_failed = metrics.batch_failed
        self.refused = metrics.refused

    def answered(
        self, total: float, queue: float, compute_input: float, infer: float, output: float, requests: int = 1
    ) -> None:
        """Note requests that got their outputs; the seconds are those of all of them together.

        Args:
            total: from arrival to answer.
            queue: waiting for the run.
            compute_input: reading them and assembling the batch.
            infer: of the run.
            output: from the end of the run to the answer.
            requests: how many.
        """
        self._answers.extend((requests, total, queue, compute_input, infer, output))
        self._metrics.has_news()
        if len(self._answers) >= _MOST_NOTED * _ANSWER:
            self.count()

    def failed(self, seconds: float) -> None:
        """Count a request that got an error after it was read."""
        self._add(_FAIL, 1, seconds)
        self._metrics.requests(0, 1)

    def batch(
        self,
        rows: int,
        padded_rows: int,
        queue_seconds: float,
        infer_seconds: float,
        input_seconds: float,
        output_seconds: float,
        check_rows: Mapping[str, int],
    ) -> None:
        """Note a run of the engine."""
        for source, asked in check_rows.items():
            self._counters.own[_FIRST_CHECK + CHECKS.index(source)] += asked
            self._metrics.checked(source, asked)
        if not rows:
            return
        self._last_ms = time.time_ns() // 1_000_000
        self._runs.extend((rows, padded_rows, queue_seconds, infer_seconds, input_seconds, output_seconds))
        self._metrics.has_news()
        if len(self._runs) >= _MOST_NOTED * _RUN:
            self.count()

    def outputs(self, outputs: Mapping[str, Array], rows: int) -> None:
        """Note what clients were answered."""
        if self._predictions is not None:
            self._predictions.note(outputs, rows)

    def count(self) -> None:
        """Count what was noted."""
        if self._predictions is not None:
            self._predictions.count()
        if self._runs:
            runs, self._runs = np.frombuffer(self._runs).reshape(-1, _RUN).T, array("d")
            self._count_runs(*runs)
        if self._answers:
            answers, self._answers = np.frombuffer(self._answers).reshape(-1, _ANSWER), array("d")
            requests, *seconds = answers.sum(axis=0).tolist()
            for place, spent in zip(_PLACES_OF_SECONDS, seconds, strict=True):
                self._add(place, requests, spent)
            self._metrics.requests(int(requests), 0)

    def close(self) -> None:
        """Take this process's counts away: the version has left it."""
        self.count()
        self._counters.close()

    def to_json(self, model: str, version: int) -> dict[str, Any]:
        """One element of `model_stats`: the sums over all workers.

        `check_rows` goes beyond the protocol: rows that the service asked itself, and that no other member holds.
        """
        self.count()
        totals = list(map(round, self._counters.totals()))
        batches = {rows: totals[self._place(rows) :][:_BATCH_PLACES] for rows in range(self._most_rows + 1)}
        stages = {name: _duration(totals, _FIRST_STAGE + 2 * place) for place, name in enumerate(_STAGES)}
        nothing = {"count": 0, "ns": 0}
        return {
            "name": model,
            "version": str(version),
            "last_inference": totals[_LAST_MS],
            "inference_count": totals[_ROWS],
            "execution_count": sum(count for count, *_ in batches.values()),
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
                    "compute_input": {"count": count, "ns": compute_input},
                    "compute_infer": {"count": count, "ns": infer},
                    "compute_output": {"count": count, "ns": output},
                }
                for rows, (count, compute_input, infer, output) in batches.items()
                if count
            ],
            "memory_usage": [],
            "check_rows": dict(zip(CHECKS, totals[_FIRST_CHECK:_FIRST_BATCH], strict=True)),
        }

    def _count_runs(
        self, rows: Floats, padded: Floats, queue: Floats, infer: Floats, compute_input: Floats, output: Floats
    ) -> None:
        """Count batches, in the statistics by the rows of clients in them."""
        self._metrics.batches(rows, padded, queue, infer)
        own = self._counters.own
        own[_LAST_MS] = self._last_ms
        own[_ROWS] += float(rows.sum())
        sizes = rows.astype(np.int64)
        columns = (np.ones_like(rows), compute_input * 1e9, (infer - compute_input) * 1e9, output * 1e9)
        sums = np.array([np.bincount(sizes, column) for column in columns])
        for size in np.flatnonzero(sums[0]).tolist():
            for offset, amount in enumerate(sums[:, size].tolist()):
                own[self._place(size) + offset] += amount

    def _place(self, rows: int) -> int:
        return _FIRST_BATCH + _BATCH_PLACES * rows

    def _add(self, place: int, times: float, seconds: float) -> None:
        self._counters.own[place] += times
        self._counters.own[place + 1] += seconds * 1e9


def _duration(totals: list[int], place: int) -> dict[str, int]:
    """The protocol's form of how often something happened and how long that took."""
    return {"count": totals[place], "ns": totals[place + 1]}
