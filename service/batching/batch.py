"""Requests that share one run: assembled into arrays, run, and told their answers.

Used by the batcher, which decides who shares a batch and where it runs. Nothing here waits or queues.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from ..errors import DeviceLost, EngineError, InvalidInput, ServiceError
from ..tensors import Array
from .request import CLIENT, BatchAnswer, Receiver, Request

_log = logging.getLogger(__name__)


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


class Observer(Protocol):
    """Counts; called once per batch and per client's refusal, always on the event loop."""

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
        """A batch ran.

        Args:
            rows: that clients asked for; 0 where the service asked all of them itself.
            padded_rows: rows that only filled the bucket.
            queue_seconds: the longest wait among its members.
            infer_seconds: of the run.
            input_seconds: the part of them in which the batch was assembled.
            output_seconds: in which its answers were handed over; on the fast lane, written and sent.
            check_rows: rows that the service asked itself, by source.
        """

    def outputs(self, outputs: Mapping[str, Array], rows: int) -> None:
        """What a batch of clients alone was answered.

        Args:
            outputs: by name, not to be kept.
            rows: that clients asked for; those behind them fill the bucket.
        """

    def batch_failed(self) -> None:
        """A batch failed, and its members ran alone."""

    def refused(self, reason: str) -> None:
        """A request got no run: "queue_full", "deadline_ahead", "deadline_passed", "cancelled" or "closed"."""


class NullObserver:
    """An observer that counts nothing."""

    def batch(self, *counted: Any) -> None:
        """Count nothing."""

    def outputs(self, outputs: Mapping[str, Array], rows: int) -> None:
        """Count nothing."""

    def batch_failed(self) -> None:
        """Count nothing."""

    def refused(self, reason: str) -> None:
        """Count nothing."""


class BufferPool:
    """Input arrays of each bucket, used again and again: one allocation for many batches.

    Args:
        keeps: whether they are; not where each batch may have another shape.
    """

    def __init__(self, *, keeps: bool = True) -> None:
        self._keeps = keeps
        self._free: dict[int, list[dict[str, Array]]] = {}

    def borrow(self, bucket: int, example: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays of `bucket` rows with the names, row shapes and dtypes of `example`.

        They hold zeros or an older batch, and answers depend on neither.
        """
        free = self._free.setdefault(bucket, [])
        if free:
            return free.pop()
        return {name: np.zeros((bucket, *array.shape[1:]), array.dtype) for name, array in example.items()}

    def give_back(self, bucket: int, arrays: dict[str, Array]) -> None:
        """Let another batch have the arrays."""
        if self._keeps:
            self._free[bucket].append(arrays)


class Batch:
    """Some requests, the bucket they run in, and afterwards the answer or each member's own outcome.

    Attributes:
        cancelled: how many clients' requests were dropped because they had been cancelled.
        input_seconds: in which it was assembled.
        answer: None before the run, and where the members had to run alone.
    """

    __slots__ = (
        "_borrowed", "_outcomes", "_receiver", "answer", "bucket", "cancelled", "input_seconds", "inputs", "requests",
        "rows",
    )  # fmt: skip

    def __init__(self, requests: list[Request], rows: int, bucket: int) -> None:
        self.requests = requests
        self.rows = rows
        self.bucket = bucket
        self.cancelled = 0
        self.input_seconds = 0.0
        self.inputs: Mapping[str, Array] | None = None
        self.answer: BatchAnswer | None = None
        self._receiver = _common_receiver(requests)
        self._borrowed: dict[str, Array] | None = None
        self._outcomes: list[BatchAnswer | ServiceError] = []

    def prepare(self, buffers: BufferPool) -> None:
        """Assemble ahead of the run; if that fails, the run will fail too, and run each member alone."""
        with contextlib.suppress(Exception):
            self.assemble(buffers)

    def drop_cancelled(self, bucket_for: Callable[[int], int], buffers: BufferPool) -> None:
        """Drop, just before the run, members that were cancelled or have expired; the others are assembled anew.

        Args:
            bucket_for: the bucket of a number of rows.
            buffers: take back the arrays that were assembled.
        """
        waiting = [request for request in self.requests if not request.is_over]
        if not waiting or len(waiting) == len(self.requests):
            return
        gone = [request for request in self.requests if request.is_over and not request.is_expired]
        self.cancelled = sum(request.source == CLIENT for request in gone)
        self._give_back(buffers)
        self.requests = waiting
        self.rows = sum(request.rows for request in waiting)
        self.bucket = bucket_for(self.rows)

    def assemble(self, buffers: BufferPool) -> None:
        """Put all rows into arrays of the bucket's size; a lone request that fills its bucket is taken as it is."""
        started = time.perf_counter()
        layout = None if self._receiver is None else self._receiver.layout
        if layout is not None:
            raw_rows: list[Any] = [request.raw_rows for request in self.requests]
            self.inputs = layout.join(raw_rows, self.bucket - self.rows)
        elif len(self.requests) == 1 and self.rows == self.bucket:
            self.inputs = self.requests[0].inputs
        else:
            self._copy(buffers)
        self.input_seconds = time.perf_counter() - started

    def _copy(self, buffers: BufferPool) -> None:
        """Copy the rows of requests that hold arrays into arrays that are used again."""
        arrays = buffers.borrow(self.bucket, self.requests[0].inputs)
        try:
            for name, array in arrays.items():
                parts = [request.inputs[name] for request in self.requests]
                np.concatenate(parts, out=array[: self.rows], casting="no")
        except Exception:
            buffers.give_back(self.bucket, arrays)
            raise
        self.inputs = self._borrowed = arrays

    def run(self, engine: BatchEngine, buffers: BufferPool) -> None:
        """Assemble if that has not been done, and run; if that fails, run each member alone."""
        started = time.perf_counter()
        try:
            if self.inputs is None:
                self.assemble(buffers)
            assert self.inputs is not None
            outputs = engine.run(self.inputs)
        except Exception as err:  # whatever an engine raises must reach the callers, who wait for an answer
            self._run_alone(engine, err)
        else:
            seconds = time.perf_counter() - started
            self.answer = BatchAnswer(outputs, self.rows, started, seconds, min(self.input_seconds, seconds))
        self._give_back(buffers)

    def _give_back(self, buffers: BufferPool) -> None:
        if self._borrowed is not None:
            buffers.give_back(self.bucket, self._borrowed)
        self.inputs = self._borrowed = None

    def _run_alone(self, engine: BatchEngine, err: Exception) -> None:
        """Run each member alone, also a lone one that was padded, since the padding may be what failed."""
        if isinstance(err, DeviceLost) or (len(self.requests) == 1 and self.rows == self.bucket):
            self._outcomes = [_outcome_of(err)] * len(self.requests)
        else:
            self._outcomes = [_outcome_alone(engine, request) for request in self.requests]
        if any(isinstance(outcome, EngineError) for outcome in self._outcomes):  # others are mistakes of clients
            _log.warning("a batch of %d requests failed: %s", len(self.requests), err)

    def check_rows(self) -> Mapping[str, int]:
        """Return the rows that the service asked itself, by source."""
        rows: Counter[str] = Counter()
        for request in self.requests:
            if request.source != CLIENT:
                rows[request.source] += request.rows
        return rows

    @property
    def has_failed(self) -> bool:
        """Whether its run failed; not where its only member's own inputs are to blame."""
        return self.answer is None and [*map(type, self._outcomes)] != [InvalidInput]

    @property
    def device_lost(self) -> DeviceLost | None:
        """The engine's error if its device is lost and can run nothing any more."""
        return next((outcome for outcome in self._outcomes if isinstance(outcome, DeviceLost)), None)

    def deliver(self) -> None:
        """Tell every member that still waits."""
        if self.answer is None:
            for request, outcome in zip(self.requests, self._outcomes, strict=True):
                _tell(request, outcome, 0)
            return
        starts = [0, *accumulate(request.rows for request in self.requests[:-1])]
        if self._receiver is None:
            for request, start in zip(self.requests, starts, strict=True):
                _tell(request, self.answer, start)
            return
        try:
            self._receiver.receive(self.requests, starts, self.answer)
        except Exception:
            _log.exception("answers could not be taken")


def _common_receiver(requests: list[Request]) -> Receiver | None:
    """Return the receiver of all requests; None where they have several."""
    receiver = requests[0].receiver
    for request in requests:
        if request.receiver is not receiver:
            return None
    return receiver


def _tell(request: Request, outcome: BatchAnswer | ServiceError, start: int) -> None:
    """Tell one member, unless it is over; an error in its receiver does not reach its neighbours."""
    if request.is_over:
        return
    try:
        if isinstance(outcome, BatchAnswer):
            request.receiver.receive((request,), (start,), outcome)
        else:
            request.failed(outcome)
    except Exception:
        _log.exception("an answer could not be taken")


def _outcome_alone(engine: BatchEngine, request: Request) -> BatchAnswer | ServiceError:
    started = time.perf_counter()
    try:
        outputs = engine.run(request.inputs)
    except Exception as err:
        return _outcome_of(err)
    return BatchAnswer(outputs, request.rows, started, time.perf_counter() - started)


def _outcome_of(err: Exception) -> ServiceError:
    if isinstance(err, (EngineError, InvalidInput)):
        return err
    wrapped = EngineError(f"the run failed: {type(err).__name__}: {str(err)[:300]}")
    wrapped.__cause__ = err
    return wrapped
