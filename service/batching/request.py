"""One caller's rows on their way through the batcher, and the answer to them.

Receivers underneath, futures on top: a caller with thousands of requests a second need not make a future for each, and
may take the answers of a whole batch in one call. Knows neither queues nor engines.
"""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import ServiceError
from ..tensors import Array, TensorSpec

RawRows = bytes | bytearray | memoryview  # rows as they lie in memory, without gaps

# Who asks. What the service asks itself is run as a client's requests are, and counted apart.
CLIENT, GOLDEN, CANARY, SHADOW = "client", "golden", "canary", "shadow"
CHECKS = (GOLDEN, CANARY, SHADOW)


@dataclass(frozen=True, slots=True)
class Answer:
    """Outputs of one request, its rows in their order, and where its time went.

    `input_seconds`, in which its batch was assembled, are part of `infer_seconds`.
    """

    outputs: Mapping[str, Array]
    queue_seconds: float
    infer_seconds: float
    batch_rows: int
    input_seconds: float = 0.0


class BatchAnswer:
    """Outputs of a whole batch, shared by its members.

    `started` is on the clock of `time.perf_counter`; `input_seconds`, in which the batch was assembled, are part of
    `infer_seconds`. `formatted` is for the members: what the first of them makes of
    the outputs, the others need not make again.
    """

    __slots__ = ("formatted", "infer_seconds", "input_seconds", "outputs", "rows", "started")

    def __init__(
        self,
        outputs: Mapping[str, Array],
        rows: int,
        started: float,
        infer_seconds: float,
        input_seconds: float = 0.0,
    ) -> None:
        self.outputs = outputs
        self.rows = rows
        self.started = started
        self.infer_seconds = infer_seconds
        self.input_seconds = input_seconds
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
        """Return the rows of all parts, followed by as many rows of zeros as are missing."""
        if missing_rows:
            parts.append(bytes(missing_rows * self._row_bytes))
        return self.unpack(b"".join(parts))


class Receiver(Protocol):
    """Takes the answers of several requests at once; all requests that share one name the same."""

    @property
    def layout(self) -> RowLayout | None:
        """How the `raw_rows` of its requests are to be read; None when they have none."""

    def receive(self, requests: Sequence[Any], starts: Sequence[int], batch: BatchAnswer) -> None:
        """Take the answer of a batch for some of its members; each one's rows begin at its start.

        Some of them may be over, and need no answer any more.
        """


class Request:
    """Rows that wait for an answer. No future, since one for each request costs more than its share of a run.

    Args:
        receiver: takes the answer, in one call for all its requests in a batch.
        inputs: each input by name, all with the same number of rows, validated before; None where the rows come as
            bytes.
        deadline: on the clock of `time.perf_counter`.
        arrived: on the same clock; None is now.

    Attributes:
        source: who asks.
        raw_rows: the rows as bytes instead, where the receiver has a layout.
        rows: how many there are.
        is_over: nothing waits for the answer any more: the request is answered, cancelled or expired.
    """

    __slots__ = ("_inputs", "arrived", "deadline", "is_expired", "is_over", "raw_rows", "receiver", "rows")

    source = CLIENT

    def __init__(
        self,
        receiver: Receiver,
        inputs: Mapping[str, Array] | None = None,
        *,
        deadline: float = math.inf,
        arrived: float | None = None,
    ) -> None:
        self.receiver = receiver
        self._inputs = inputs
        self.raw_rows: RawRows | None = None
        self.rows = 0 if inputs is None else len(next(iter(inputs.values())))
        self.deadline = deadline
        self.arrived = time.perf_counter() if arrived is None else arrived
        self.is_over = self.is_expired = False

    @property
    def inputs(self) -> Mapping[str, Array]:
        """Each input by name."""
        if self._inputs is None:
            layout, raw_rows = self.receiver.layout, self.raw_rows
            assert layout is not None
            assert raw_rows is not None
            self._inputs = layout.unpack(raw_rows)
        return self._inputs

    def failed(self, error: ServiceError) -> None:
        """Tell the caller why there is no answer; called at most once, and not after an answer."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Say that nothing waits for the answer any more; it is then not told."""
        self.is_over = True


class FutureRequest(Request):
    """A request whose answer is the result of its future.

    Attributes:
        future: of the running event loop.
    """

    __slots__ = ("future", "source")

    def __init__(self, inputs: Mapping[str, Array], deadline: float, source: str = CLIENT) -> None:
        super().__init__(_FUTURES, inputs, deadline=deadline)
        self.source = source
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def failed(self, error: ServiceError) -> None:
        """Settle the future with the error."""
        if not self.future.done():
            self.future.set_exception(error)

    def cancel(self) -> None:
        """Cancel the future too, unless it is settled."""
        super().cancel()
        self.future.cancel()


class _Futures:
    """Gives each `FutureRequest` its rows."""

    layout = None

    def receive(self, requests: Sequence[FutureRequest], starts: Sequence[int], batch: BatchAnswer) -> None:
        for request, start in zip(requests, starts, strict=True):
            if not request.future.done():
                outputs = {name: array[start : start + request.rows] for name, array in batch.outputs.items()}
                waited = batch.started - request.arrived
                request.future.set_result(_answer(batch, outputs, waited))


_FUTURES = _Futures()


def _answer(batch: BatchAnswer, outputs: Mapping[str, Array], waited: float) -> Answer:
    return Answer(outputs, waited, batch.infer_seconds, batch.rows, batch.input_seconds)


def join(answers: Sequence[Answer]) -> Answer:
    """One answer from the parts: rows in order, the first part's wait, the runs added up."""
    if len(answers) == 1:
        return answers[0]
    outputs = {name: np.concatenate([answer.outputs[name] for answer in answers]) for name in answers[0].outputs}
    infer_seconds = sum(answer.infer_seconds for answer in answers)
    input_seconds = sum(answer.input_seconds for answer in answers)
    largest = max(answer.batch_rows for answer in answers)
    return Answer(outputs, answers[0].queue_seconds, infer_seconds, largest, input_seconds)
