"""Requests before an engine: which are refused, when a batch runs and where, and how its members get their answers.

An idle engine runs at once what arrives; a busy one takes everything that waits when it is free, up to its largest
bucket. There is no delay window. What waits is in `queue`. Knows futures and rows; neither HTTP nor ONNX.

A batch that is measured to be short runs on the event loop itself, at the end of the turn in which its requests
arrived; a longer one runs in the batcher's one worker thread, so that health and metrics never wait for it. Measured on
two cores with a convolutional network of 23 microseconds a row: a lone caller is answered in 32 microseconds on the
loop and 85 through the thread; 32 callers get 52,000 to 54,000 answers a second on the loop and 40,000 through it.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import chain

from ..errors import DeviceLost, NotReady, Overloaded
from ..tensors import Array
from .batch import Batch, BatchEngine, BufferPool, NullObserver, Observer
from .latency_model import SAFE_SHARE, LatencyModel
from .queue import Queue
from .request import CLIENT, Answer, BatchAnswer, FutureRequest, Request, join

__all__ = ["Answer", "BatchAnswer", "BatchEngine", "Batcher", "Observer", "Request"]

# While the worker thread runs, requests whose deadline passes are told so within this time.
_SWEEP_SECONDS = 0.01
_NO_CHECKS: Mapping[str, int] = {}


class Batcher:
    """Batches the requests of one event loop for one engine; all methods belong to that loop.

    Args:
        engine: runs batches, one at a time.
        max_queue_rows: rows that may wait; a request beyond them is refused, unless nothing waits before it.
        inline_seconds: batches measured to be shorter run on the event loop; 0 sends all to the worker thread.
        executor: a pool of exactly one thread that the engine has to run in; None makes one when it is needed.
        observer: counts batches and refusals.
        lost: called when the engine has lost its device.
        is_free: rows of different requests may differ in their shape: only equal ones share a batch.
    """

    def __init__(
        self,
        engine: BatchEngine,
        *,
        max_queue_rows: int,
        inline_seconds: float = 0.001,
        executor: Executor | None = None,
        observer: Observer | None = None,
        lost: Callable[[DeviceLost], None] | None = None,
        is_free: bool = False,
    ) -> None:
        self._engine = engine
        self._largest = engine.buckets[-1]
        self._max_queue_rows = max_queue_rows
        self._easy_rows = min(self._largest, max_queue_rows)
        self._executor = executor
        self._own_executor: ThreadPoolExecutor | None = None
        self._observer = observer or NullObserver()
        self._lost = lost
        self._latency = LatencyModel(engine.bucket_seconds, inline_seconds)
        self._queue = Queue(self._latency, self._largest, self._observer, is_free=is_free)
        self._buffers = BufferPool(keeps=not is_free)
        self._prepared: deque[Batch] = deque()  # at most one; the worker thread takes it when it is free
        self._in_flight: list[Batch] = []  # prepared or running in the worker thread
        self._is_running = False
        self._checks = 0  # requests of the service's own that wait or run
        self._batches = 0
        self._answered_batches = 0
        self._is_scheduled = False
        self._is_watching = False
        self._is_closed = False
        self._drained: asyncio.Event | None = None

    def take_buckets(self) -> None:
        """Take batch sizes into use that the engine has proved since; what waits may leave in them."""
        self._latency.measure(self._engine.bucket_seconds)
        self._largest = self._queue.largest = max(self._engine.bucket_seconds)
        self._easy_rows = min(self._largest, self._max_queue_rows)

    @property
    def queued_rows(self) -> int:
        """Rows that wait for their batch."""
        return self._queue.rows

    @property
    def batches(self) -> int:
        """Batches that were started so far."""
        return self._batches

    @property
    def answered_batches(self) -> int:
        """Batches whose run gave answers so far."""
        return self._answered_batches

    @property
    def running_batch(self) -> int | None:
        """The number of the batch that runs in the worker thread now; None when none does."""
        return self._batches if self._is_running else None

    async def infer(
        self, inputs: Mapping[str, Array], *, deadline: float | None = None, source: str = CLIENT
    ) -> Answer:
        """Answer any number of rows; more than the largest bucket are split and joined.

        Args:
            inputs: each input by name, all with the same number of rows, at least 1; left as they are until answered.
            deadline: on the clock of `time.perf_counter`; None waits for ever.
            source: who asks; what the service asks itself is counted apart.

        Raises:
            Overloaded: the answer could not be ready by the deadline, or the queue is full.
            DeadlineExceeded: the deadline passed before there was an answer.
            NotReady: the batcher is closed.
            InvalidInput: the model cannot run on these inputs, and runs on its golden ones.
            EngineError: the run failed, also for this request alone.
        """
        rows = len(next(iter(inputs.values())))
        latest = math.inf if deadline is None else deadline
        parts = [inputs] if rows <= self._largest else list(self._parts(inputs, rows))
        requests = [FutureRequest(part, latest, source) for part in parts]
        self._checks += 0 if source == CLIENT else len(requests)
        try:
            if len(requests) == 1:
                self.submit(requests[0])
            else:  # all parts are queued in one go, and one that fails takes the others with it
                self._admit(rows, latest, source)
                for request in requests:
                    self._enqueue(request)
            return join([await request.future for request in requests])
        finally:
            self._checks -= 0 if source == CLIENT else len(requests)
            for request in requests:  # after an answer this changes nothing; after a cancellation it spares a run
                request.cancel()

    def submit(self, request: Request, *, is_alone: bool = False) -> None:
        """Queue a request of at most the largest bucket's rows; its receiver gets the answer.

        Args:
            request: the rows and their receiver.
            is_alone: nothing else can arrive in this turn of the loop: an idle engine need not wait for its end.

        Raises:
            Overloaded: the answer could not be ready by the deadline, or the queue is full.
            NotReady: the batcher is closed.
        """
        if (
            self._is_running
            or self._is_closed
            or self._queue.rows + request.rows > self._easy_rows
            or request.deadline - request.arrived < self._latency.easy_seconds
        ):
            self._admit(request.rows, request.deadline, request.source)
        self._enqueue(request, is_alone=is_alone)

    async def close(self) -> None:
        """Refuse new requests, answer those that wait, and end the worker thread."""
        self._is_closed = True
        if self._queue or self._is_running:
            self._drained = asyncio.Event()
            await self._drained.wait()
        if self._own_executor is not None:
            self._own_executor.shutdown()

    def _parts(self, inputs: Mapping[str, Array], rows: int) -> Iterator[dict[str, Array]]:
        for start in range(0, rows, self._largest):
            yield {name: array[start : start + self._largest] for name, array in inputs.items()}

    def _admit(self, rows: int, deadline: float, source: str) -> None:
        """Refuse what could not be answered in time: a run for a late answer is a run lost for others."""
        if self._is_closed:
            self._refused("closed", source)
            raise NotReady("the service is shutting down; ask again")
        is_idle = not self._is_running and not self._queue
        prepared = [*self._prepared]  # in one step: the worker thread may take it meanwhile
        ahead = self._queue.rows + sum(batch.rows for batch in prepared)
        if ahead and ahead + rows > self._max_queue_rows:
            self._refused("queue_full", source)
            after = math.ceil(self._latency.seconds_for(ahead, is_idle=is_idle))
            message = f"queue: {ahead} rows wait, got {rows} more, at most {self._max_queue_rows} may wait"
            raise Overloaded(message, after)
        expected, left = self._latency.seconds_for(ahead + rows, is_idle=is_idle), deadline - time.perf_counter()
        if not self._latency.can_promise(expected, left):
            self._refused("deadline_ahead", source)
            times = f"{expected * 1e3:.0f} ms, and the deadline leaves {max(0.0, left) * 1e3:.0f} ms"
            message = f"the answer would take {times}, of which {SAFE_SHARE:.0%} may be promised"
            after = math.ceil(max(0.0, expected - left * SAFE_SHARE))
            raise Overloaded(f"{message}: ask again, or allow more time", after)

    def _refused(self, reason: str, source: str) -> None:
        if source == CLIENT:
            self._observer.refused(reason)

    def _enqueue(self, request: Request, *, is_alone: bool = False) -> None:
        self._queue.append(request)
        if self._is_running:
            self._prepare_full()
        elif is_alone and not self._is_scheduled:
            self._turn()
        else:
            self._schedule()

    def _schedule(self) -> None:
        """Run at the end of this turn of the loop: whatever else arrives in it joins the batch."""
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_scheduled = False
        if self._is_running:
            return
        batch = self._queue.take()
        if batch is None:
            self._tell_if_drained()
        elif self._latency.is_short(batch.bucket):
            self._batches += 1
            batch.run(self._engine, self._buffers)
            self._settle(batch)
            if self._queue:
                self._schedule()
            else:
                self._tell_if_drained()
        else:
            self._in_flight.append(batch)
            self._start(batch)
            self._watch_deadlines()

    def _start(self, batch: Batch) -> None:
        """Hand a batch to the worker thread."""
        self._batches += 1
        self._is_running = True
        self._latency.started(batch.bucket)
        if self._executor is None:
            self._own_executor = self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._executor.submit(self._work, batch, asyncio.get_running_loop())
        self._prepare_full()

    def _work(self, batch: Batch, loop: asyncio.AbstractEventLoop) -> None:
        """In the worker thread: run this batch, then the prepared one if there is one, and so on."""
        while True:
            batch.run(self._engine, self._buffers)
            try:
                following = self._prepared.popleft()
            except IndexError:
                loop.call_soon_threadsafe(self._finished, batch, None)
                return
            following.drop_cancelled(self._latency.bucket_for, self._buffers)
            loop.call_soon_threadsafe(self._finished, batch, following)
            batch = following

    def _finished(self, batch: Batch, following: Batch | None) -> None:
        """Back on the loop: keep the engine busy first, then tell the callers."""
        self._in_flight.remove(batch)
        if following is not None:
            self._batches += 1
            self._latency.started(following.bucket)
            self._prepare_full()
        elif self._prepared:  # it was prepared just after the thread had looked
            self._start(self._prepared.popleft())
        else:
            self._is_running = False
            self._schedule()
        self._settle(batch)

    def _prepare_full(self) -> None:
        """While the worker thread runs, prepare the next batch if it cannot grow any more; never more than that one."""
        if self._prepared or self._queue.rows < self._largest:
            return
        batch = self._queue.take()
        if batch is not None:
            batch.prepare(self._buffers)
            self._in_flight.append(batch)
            self._prepared.append(batch)

    def _watch_deadlines(self) -> None:
        if not self._is_watching:
            self._is_watching = True
            asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """While the worker thread runs, fail requests whose deadline passes: they need not wait for the run to end."""
        self._is_watching = False
        if not self._is_running:
            return
        now = time.perf_counter()
        for request in chain(self._queue, *(batch.requests for batch in self._in_flight)):
            if request.deadline < now and not request.is_over:
                self._queue.expire(request)
        self._watch_deadlines()

    def _settle(self, batch: Batch) -> None:
        """Tell the members, count the batch, remember its time."""
        for _ in range(batch.cancelled):
            self._observer.refused("cancelled")
        started = time.perf_counter()
        batch.deliver()
        answer = batch.answer
        if answer is None:
            if batch.has_failed:
                self._observer.batch_failed()
            if batch.device_lost is not None and self._lost is not None:
                self._lost(batch.device_lost)
            return
        self._answered_batches += 1
        self._latency.finished(batch.bucket, answer.infer_seconds)
        # The members are looked at only while the service asks itself.
        checks = batch.check_rows() if self._checks else _NO_CHECKS
        self._observer.batch(
            batch.rows - sum(checks.values()) if checks else batch.rows,
            batch.bucket - batch.rows,
            answer.started - batch.requests[0].arrived,
            answer.infer_seconds,
            answer.input_seconds,
            time.perf_counter() - started,
            checks,
        )
        if not checks:
            self._observer.outputs(answer.outputs, batch.rows)

    def _tell_if_drained(self) -> None:
        if self._drained is not None and not self._queue and not self._is_running:
            self._drained.set()
