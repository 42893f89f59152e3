"""One caller's rows on their way through the batcher, and the answer they come back with.

Callbacks underneath, futures on top: whoever serves thousands of callers a second need not make a future for each, and
may take the answers of a whole batch in one call. Knows neither queues nor engines.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import ServiceError
from ..tensors import Array, TensorSpec

RawRows = bytes | bytearray | memoryview  # rows as they lie in memory, without gaps


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
        self.formatted: dict[Any, Any] = {}


class RowLayout:
    """How rows of a model's only input lie in bytes: a batch of them is one join, with no array made for any of them.

    Args:
        spec: the input.
    """

    def __init__(self, spec: TensorSpec) -> None:
        self._name = spec.name
        self._dtype = spec.dtype
        self._shape = (-1, *spec.row_shape)
        self._row_bytes = spec.row_bytes

    def unpack(self, raw_rows: RawRows) -> dict[str, Array]:
        """Return some rows as the input of a run, without a copy."""
        return {self._name: np.frombuffer(raw_rows, self._dtype).reshape(self._shape)}

    def join(self, parts: list[RawRows], missing_rows: int) -> dict[str, Array]:
        """Return the rows of all parts and, behind them, as many rows of zeros as are missing."""
        if missing_rows:
            parts.append(bytes(missing_rows * self._row_bytes))
        return self.unpack(b"".join(parts))


class Receiver(Protocol):
    """Who takes the answers of several requests at once; all requests that share one name the same."""

    @property
    def layout(self) -> RowLayout | None:
        """How the `raw_rows` of its requests are to be read; None when they have none."""

    def receive(self, requests: Sequence[Any], starts: Sequence[int], batch: BatchAnswer) -> None:
        """Take the answer of a batch for some of its members; each one's rows begin at its start."""


class Request:
    """Rows that wait for an answer. Callbacks, since a future for each request costs more than its share of a run.

    Args:
        inputs: each input by name, all with the same number of rows; validated by whoever took them.
        answered: called once with the batch's answer and the place of this request's first row in it.
        failed: called once instead, with the reason.
        deadline: on the clock of `time.perf_counter`; None waits for ever.

    Attributes:
        raw_rows: the rows as bytes instead, where there is a receiver that says how to read them.
        receiver: called instead of `answered`, once for all its requests in a batch.
    """

    __slots__ = (
        "_inputs", "answered", "arrived", "deadline", "failed", "is_expired", "is_over", "raw_rows", "receiver", "rows",
    )  # fmt: skip

    def __init__(
        self,
        inputs: Mapping[str, Array],
        answered: Callable[[BatchAnswer, int], None],
        failed: Callable[[ServiceError], None],
        deadline: float | None = None,
    ) -> None:
        self._inputs: Mapping[str, Array] | None = inputs
        self.raw_rows: RawRows | None = None
        self.receiver: Receiver | None = None
        self.rows = len(next(iter(inputs.values())))
        self.answered = answered
        self.failed = failed
        self.deadline = math.inf if deadline is None else deadline
        self.arrived = time.perf_counter()
        self.is_over = False  # nobody waits any more: answered, cancelled or expired
        self.is_expired = False

    @property
    def inputs(self) -> Mapping[str, Array]:
        """Each input by name."""
        if self._inputs is None:
            layout = None if self.receiver is None else self.receiver.layout
            assert layout is not None
            assert self.raw_rows is not None
            self._inputs = layout.unpack(self.raw_rows)
        return self._inputs

    def cancel(self) -> None:
        """Say that nobody waits any more; neither callback is called afterwards."""
        self.is_over = True


def future_request(future: asyncio.Future[Answer], inputs: Mapping[str, Array], deadline: float | None) -> Request:
    """A request that settles `future`."""

    def answered(batch: BatchAnswer, start: int) -> None:
        if not future.done():
            stop = start + request.rows
            outputs = {name: array[start:stop] for name, array in batch.outputs.items()}
            waited = batch.started - request.arrived
            future.set_result(Answer(outputs, waited, batch.infer_seconds, batch.rows))

    def failed(error: ServiceError) -> None:
        if not future.done():
            future.set_exception(error)

    request = Request(inputs, answered, failed, deadline)
    return request


def join(answers: Sequence[Answer]) -> Answer:
    """One answer from the parts: rows in order, the first part's wait, the runs added up."""
    outputs = {name: np.concatenate([answer.outputs[name] for answer in answers]) for name in answers[0].outputs}
    infer_seconds = sum(answer.infer_seconds for answer in answers)
    return Answer(outputs, answers[0].queue_seconds, infer_seconds, max(answer.batch_rows for answer in answers))
