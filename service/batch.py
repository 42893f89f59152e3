"""Requests that share one run: put together into arrays, run, and told what came of it.

Used by the batcher, which decides who shares a batch and where it runs. Nothing here waits or queues.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from service.errors import DeviceLost, EngineError, ServiceError

_log = logging.getLogger(__name__)

Array = npt.NDArray[Any]


class BatchEngine(Protocol):
    """What a batcher needs of an engine."""

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes, rising."""

    @property
    def bucket_seconds(self) -> Mapping[int, float]:
        """Expected seconds of one run of each bucket."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Answer one batch; must neither keep nor return views of `inputs`, whose memory is used again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Outputs of one request, rows as asked, and where its time went."""

    outputs: Mapping[str, Array]
    queue_seconds: float
    infer_seconds: float
    batch_rows: int


class BatchAnswer:
    """Outputs of a whole batch, shared by its members.

    `started` is on the clock of `time.perf_counter`. `formatted` is for the members: what the first of them makes of
    the outputs, the others need not make again.
    """

    __slots__ = ("formatted", "infer_seconds", "outputs", "rows", "started")

    def __init__(self, outputs: Mapping[str, Array], rows: int, started: float, infer_seconds: float) -> None:
        self.outputs = outputs
        self.rows = rows
        self.started = started
        self.infer_seconds = infer_seconds
        self.formatted: Any = None


class Request:
    """Rows that wait for an answer. Callbacks, since a future for each request costs more than its share of a run.

    Args:
        inputs: each input by name, all with the same number of rows; validated by whoever took them.
        answered: called once with the batch's answer and the place of this request's first row in it.
        failed: called once instead, with the reason.
        deadline: on the clock of `time.perf_counter`; None waits for ever.
    """

    __slots__ = ("answered", "arrived", "deadline", "failed", "inputs", "is_expired", "is_over", "rows")

    def __init__(
        self,
        inputs: Mapping[str, Array],
        answered: Callable[[BatchAnswer, int], None],
        failed: Callable[[ServiceError], None],
        deadline: float | None = None,
    ) -> None:
        self.inputs = inputs
        self.rows = len(next(iter(inputs.values())))
        self.answered = answered
        self.failed = failed
        self.deadline = deadline
        self.arrived = time.perf_counter()
        self.is_over = False  # nobody waits any more: answered, cancelled or expired
        self.is_expired = False

    def cancel(self) -> None:
        """Say that nobody waits any more; neither callback is called afterwards."""
        self.is_over = True


class Staging:
    """Input arrays of each bucket, used again and again: one allocation for many batches."""

    def __init__(self) -> None:
        self._free: dict[int, list[dict[str, Array]]] = {}

    def borrow(self, bucket: int, like: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays of `bucket` rows; what stands in them is zero or an older batch, and answers depend on neither."""
        free = self._free.setdefault(bucket, [])
        if free:
            return free.pop()
        return {name: np.zeros((bucket, *array.shape[1:]), array.dtype) for name, array in like.items()}

    def give_back(self, bucket: int, arrays: dict[str, Array]) -> None:
        """Let another batch have the arrays."""
        self._free[bucket].append(arrays)


class Batch:
    """Some requests, the bucket they run in, and afterwards the answer or each member's own outcome."""

    __slots__ = ("_alone", "answer", "bucket", "inputs", "requests", "rows")

    def __init__(self, requests: list[Request], rows: int, bucket: int) -> None:
        self.requests = requests
        self.rows = rows
        self.bucket = bucket
        self.inputs: Mapping[str, Array] | None = None
        self.answer: BatchAnswer | None = None
        self._alone: list[BatchAnswer | EngineError] = []

    def prepare(self, staging: Staging) -> None:
        """Assemble ahead of the run; if that fails, the run will, and find out whose fault it is."""
        with contextlib.suppress(Exception):
            self.assemble(staging)

    def assemble(self, staging: Staging) -> None:
        """Copy all rows into arrays of the bucket's size; a lone request that fills its bucket is taken as it is."""
        first = self.requests[0].inputs
        if len(self.requests) == 1 and self.rows == self.bucket:
            self.inputs = first
            return
        arrays = staging.borrow(self.bucket, first)
        try:
            for name, array in arrays.items():
                parts = [request.inputs[name] for request in self.requests]
                np.concatenate(parts, out=array[: self.rows], casting="no")
        except Exception:
            staging.give_back(self.bucket, arrays)
            raise
        self.inputs = arrays

    def run(self, engine: BatchEngine, staging: Staging) -> None:
        """Assemble if that has not been done, and run; if that fails, run each member alone."""
        started = time.perf_counter()
        try:
            if self.inputs is None:
                self.assemble(staging)
            assert self.inputs is not None
            outputs = engine.run(self.inputs)
        except Exception as err:  # whatever an engine raises must reach the callers, who wait for an answer
            self._run_alone(engine, err)
        else:
            self.answer = BatchAnswer(outputs, self.rows, started, time.perf_counter() - started)
        if isinstance(self.inputs, dict) and self.inputs is not self.requests[0].inputs:
            staging.give_back(self.bucket, self.inputs)
        self.inputs = None

    def _run_alone(self, engine: BatchEngine, err: Exception) -> None:
        _log.warning("a batch of %d requests failed: %s", len(self.requests), err)
        if len(self.requests) == 1 or isinstance(err, DeviceLost):
            self._alone = [_engine_error(err)] * len(self.requests)
        else:
            self._alone = [_outcome_alone(engine, request) for request in self.requests]

    @property
    def device_lost(self) -> DeviceLost | None:
        """Why the engine can run nothing any more, if it said so."""
        return next((outcome for outcome in self._alone if isinstance(outcome, DeviceLost)), None)

    def deliver(self) -> None:
        """Tell every member that still waits."""
        start = 0
        for place, request in enumerate(self.requests):
            if not request.is_over:
                outcome: BatchAnswer | EngineError = self.answer or self._alone[place]
                try:
                    if isinstance(outcome, BatchAnswer):
                        request.answered(outcome, start if self.answer else 0)
                    else:
                        request.failed(outcome)
                except Exception:  # one caller's mistake is not its neighbours'
                    _log.exception("a caller could not take its answer")
            start += request.rows


def _outcome_alone(engine: BatchEngine, request: Request) -> BatchAnswer | EngineError:
    started = time.perf_counter()
    try:
        outputs = engine.run(request.inputs)
    except Exception as err:
        return _engine_error(err)
    return BatchAnswer(outputs, request.rows, started, time.perf_counter() - started)


def _engine_error(err: Exception) -> EngineError:
    if isinstance(err, EngineError):
        return err
    wrapped = EngineError(f"the run failed: {type(err).__name__}: {str(err)[:300]}")
    wrapped.__cause__ = err
    return wrapped
