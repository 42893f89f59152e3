"""The batcher with engines that answer with the question, so that a mix-up shows, and that can be held at will."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from foldserve.service.batching.batcher import BatchAnswer, Batcher, Request
from foldserve.service.batching.latency_model import LatencyModel
from foldserve.service.batching.request import CANARY, RowLayout
from foldserve.service.errors import DeadlineExceeded, DeviceLost, EngineError, NotReady, Overloaded
from foldserve.service.tensors import TensorSpec
from tests.support.live_models import loaded

BUCKETS = (1, 2, 4, 8)
POISON = -1
PATIENCE = 10.0


class Echo:
    """Answers with its inputs; remembers the real rows of each batch."""

    def __init__(self, seconds: float = 1e-5, buckets: tuple[int, ...] = BUCKETS) -> None:
        self.buckets = buckets
        self.bucket_seconds = dict.fromkeys(buckets, seconds)
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = inputs["identity"].copy()
        self.batches.append(rows.tolist())
        self.threads.add(threading.current_thread().name)
        if (rows == POISON).any():
            raise ValueError("poison")
        return {"echo": rows}


class Held(Echo):
    """Runs in the batcher's thread and waits there for `let_go`."""

    def __init__(self) -> None:
        super().__init__(seconds=1.0)
        self.started = threading.Semaphore(0)
        self.let_go = threading.Semaphore(0)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.started.release()
        assert self.let_go.acquire(timeout=PATIENCE)
        return super().run(inputs)

    async def has_started(self) -> None:
        assert await asyncio.to_thread(self.started.acquire, timeout=PATIENCE)


class Counted:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.checks: list[dict[str, int]] = []
        self.batches: list[tuple[int, int]] = []
        self.failures = 0
        self.rows_answered = 0
        self.reasons: list[str] = []

    def batch(self, rows, padded_rows, queue_seconds, infer_seconds, input_seconds, output_seconds, check_rows) -> None:
        assert queue_seconds >= 0
        assert infer_seconds >= input_seconds >= 0
        assert output_seconds > 0
        self.checks.append(dict(check_rows))
        self.batches.append((rows, rows + padded_rows))

    def outputs(self, outputs, rows) -> None:
        self.rows_answered += rows

    def batch_failed(self) -> None:
        self.failures += 1

    def refused(self, reason: str) -> None:
        self.reasons.append(reason)


def rows(*numbers: int) -> dict[str, np.ndarray]:
    return {"identity": np.array(numbers, np.int64)}


def echoed(answer: Any) -> list[int]:
    return answer.outputs["echo"].tolist()


def soon(seconds: float) -> float:
    return time.perf_counter() + seconds


def run(test: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(test, PATIENCE))


async def arrive(*calls: Awaitable[Any]) -> list[asyncio.Task[Any]]:
    """Start calls in order and let each get as far as the queue."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    return tasks


def test_a_lone_request_runs_at_once_and_alone():
    """An idle engine does not wait for others: the request is answered two turns of the loop after it arrived."""

    async def test():
        engine = Echo()
        batcher = Batcher(engine, max_queue_rows=100)
        (task,) = await arrive(batcher.infer(rows(7)))
        await asyncio.sleep(0)
        assert engine.batches == [[7]]
        answer = await task
        assert echoed(answer) == [7]
        assert answer.batch_rows == 1

    run(test())


def test_what_arrives_in_one_turn_of_the_loop_is_one_batch():
    """Requests that arrive together run together, each gets its own rows, and none gets padding."""

    async def test():
        engine, counted = Echo(), Counted()
        batcher = Batcher(engine, max_queue_rows=100, observer=counted)
        answers = await asyncio.gather(*(batcher.infer(rows(n)) for n in (3, 4, 5)))
        assert [echoed(answer) for answer in answers] == [[3], [4], [5]]
        assert [batch[:3] for batch in engine.batches] == [[3, 4, 5]]
        assert counted.batches == [(3, 4)]

    run(test())


def test_a_batch_may_be_taken_while_it_is_counted():
    """The worker thread takes the prepared batch whenever it is free, also in the middle of an admission."""

    async def test():
        engine = Held()
        batcher = Batcher(engine, max_queue_rows=100)

        class Taken:
            @property
            def rows(self) -> int:
                batcher._prepared.popleft()
                return 8

        tasks = await arrive(batcher.infer(rows(1)))
        await engine.has_started()
        batcher._prepared.append(Taken())
        tasks += await arrive(batcher.infer(rows(2)))
        assert not batcher._prepared
        engine.let_go.release(2)
        assert [echoed(await task) for task in tasks] == [[1], [2]]

    run(test())


class Called(Request):
    """A request that is its own receiver and passes the answer on."""

    layout = None

    def __init__(self, inputs: Mapping[str, np.ndarray], answered: Callable[[BatchAnswer, int], None]) -> None:
        super().__init__(self, inputs)
        self._answered = answered

    def receive(self, requests: Sequence[Request], starts: Sequence[int], batch: BatchAnswer) -> None:
        assert list(requests) == [self]
        self._answered(batch, starts[0])

    def failed(self, error: Exception) -> None:
        pytest.fail(str(error))


class Raw(Request):
    """A request whose rows are bytes."""

    def __init__(self, desk: "Desk", *numbers: int) -> None:
        super().__init__(desk)
        self.rows, self.raw_rows = len(numbers), rows(*numbers)["identity"].tobytes()

    def failed(self, error: Exception) -> None:
        self.receiver.failures.append(self.inputs["identity"].tolist())


class Desk:
    """Takes answers for all its requests of a batch at once."""

    def __init__(self) -> None:
        self.layout = RowLayout(TensorSpec("identity", "INT64", (None,)))
        self.calls: list[list[list[int]]] = []
        self.failures: list[list[int]] = []

    def receive(self, requests: Sequence[Request], starts: Sequence[int], batch: BatchAnswer) -> None:
        echo = batch.outputs["echo"]
        given = [echo[start : start + request.rows].tolist() for request, start in zip(requests, starts, strict=True)]
        inputs = [request.inputs["identity"].tolist() for request in requests]
        assert given == inputs
        self.calls.append(given)


def test_answers_are_taken_for_a_whole_batch_at_once():
    """Requests of one receiver come as bytes and are answered in one call; others in their batch, and other receivers',
    get their own rows too."""

    async def test():
        engine, desk, other = Echo(), Desk(), Desk()
        batcher = Batcher(engine, max_queue_rows=100)
        for numbers in ((1,), (2, 3), (4,)):
            batcher.submit(Raw(desk, *numbers))
        await asyncio.sleep(0)
        assert desk.calls == [[[1], [2, 3], [4]]]
        (task,) = await arrive(batcher.infer(rows(5)))
        batcher.submit(Raw(desk, 6))
        batcher.submit(Raw(other, 7, 8))
        assert echoed(await task) == [5]
        assert (desk.calls[1:], other.calls) == ([[[6]]], [[[7, 8]]])
        assert engine.batches == [[1, 2, 3, 4], [5, 6, 7, 8]]

    run(test())


def test_bytes_that_do_not_fill_a_bucket_are_padded_and_a_poisoned_row_harms_only_itself():
    """Three rows of bytes run as four, the last of zeros; of a batch that fails each is run alone."""

    async def test():
        engine, desk = Echo(), Desk()
        batcher = Batcher(engine, max_queue_rows=100)
        for number in (1, POISON, 3):
            batcher.submit(Raw(desk, number))
        await asyncio.sleep(0)
        assert engine.batches == [[1, POISON, 3, 0], [1], [POISON], [3]]
        assert (desk.calls, desk.failures) == ([[[1]], [[3]]], [[POISON]])

    run(test())


def test_a_bucket_that_is_mostly_padding_is_not_run():
    """Five rows on a device that computes row after row are four and one, in the order in which they arrived."""

    async def test():
        engine, counted = Echo(), Counted()
        engine.bucket_seconds = {bucket: bucket * 1e-4 for bucket in BUCKETS}
        batcher = Batcher(engine, max_queue_rows=100, observer=counted)
        answers = await asyncio.gather(*(batcher.infer(rows(n)) for n in (1, 2, 3, 4, 5)))
        assert [echoed(answer) for answer in answers] == [[n] for n in (1, 2, 3, 4, 5)]
        assert counted.batches == [(4, 4), (1, 1)]
        (answer,) = await asyncio.gather(batcher.infer(rows(1, 2, 3, 4, 5)))
        assert echoed(answer) == [1, 2, 3, 4, 5]  # one request is never cut for that
        assert counted.batches[2:] == [(5, 8)]

    run(test())


def test_a_request_of_more_rows_than_may_wait_is_answered_where_nothing_waits():
    """Refused with a time to come back, it would come back for ever."""

    async def test():
        batcher = Batcher(Echo(), max_queue_rows=3)
        assert echoed(await batcher.infer(rows(*range(20)), deadline=soon(PATIENCE))) == list(range(20))
        await batcher.close()

    run(test())


def test_who_is_alone_is_answered_at_once_and_who_is_not_shares():
    """Where nothing else can arrive no turn of the loop is waited for; beside others that wait, it joins them."""

    async def test():
        engine, counted, answers = Echo(), Counted(), []
        batcher = Batcher(engine, max_queue_rows=3, observer=counted)

        def ask(number: int, *, is_alone: bool) -> None:
            request = Called(rows(number), lambda batch, start: answers.append(batch.outputs["echo"][start]))
            batcher.submit(request, is_alone=is_alone)

        ask(1, is_alone=True)
        assert answers == [1]
        ask(2, is_alone=False)
        ask(3, is_alone=True)
        assert answers == [1]
        await asyncio.sleep(0)
        assert answers == [1, 2, 3]
        ask(4, is_alone=False)
        with pytest.raises(Overloaded):
            await batcher.infer(rows(1, 2, 3), deadline=soon(PATIENCE))
        await asyncio.sleep(0)
        assert answers == [1, 2, 3, 4]
        assert counted.batches == [(1, 1), (2, 2), (1, 1)]
        assert counted.reasons == ["queue_full"]

    run(test())


def test_who_is_alone_does_not_hold_up_the_loop():
    """A long run goes to the worker thread even then: health has to be answered beside it."""

    async def test():
        engine, answers = Held(), []
        batcher = Batcher(engine, max_queue_rows=100)
        request = Called(rows(1), lambda batch, start: answers.append(batch.outputs["echo"][start]))
        batcher.submit(request, is_alone=True)
        await engine.has_started()
        assert answers == []
        engine.let_go.release()
        await batcher.close()
        assert answers == [1]

    run(test())


def test_short_batches_run_on_the_loop_and_long_ones_in_one_thread():
    """Where a batch runs follows from how long it is expected to take."""

    async def test():
        short, long = Echo(seconds=1e-5), Echo(seconds=0.5)
        for engine in (short, long):
            batcher = Batcher(engine, max_queue_rows=100, inline_seconds=0.1)
            for n in range(5):
                await batcher.infer(rows(n))
            await batcher.close()
        assert short.threads == {threading.current_thread().name}
        assert len(long.threads) == 1
        assert long.threads != short.threads

    run(test())


def test_what_arrived_while_a_batch_ran_leaves_as_the_next_one():
    """A busy engine takes everything that waits when it frees."""

    async def test():
        engine = Held()
        batcher = Batcher(engine, max_queue_rows=100)
        first = await arrive(batcher.infer(rows(1)))
        await engine.has_started()
        later = await arrive(*(batcher.infer(rows(n)) for n in (2, 3, 4)))
        engine.let_go.release(2)
        answers = await asyncio.gather(*first, *later)
        assert [echoed(answer) for answer in answers] == [[1], [2], [3], [4]]
        assert [batch[: len(batch)] for batch in engine.batches] == [[1], [2, 3, 4, 0]]
        assert [answer.batch_rows for answer in answers] == [1, 3, 3, 3]
        assert answers[1].queue_seconds > 0
        await batcher.close()

    run(test())


def test_exactly_one_full_batch_is_prepared_while_one_runs():
    """A batch that cannot grow is put together ahead; the rest stays in the queue, where it can still be dropped."""

    async def test():
        engine = Held()
        batcher = Batcher(engine, max_queue_rows=100)
        first = await arrive(batcher.infer(rows(0)))
        await engine.has_started()
        later = await arrive(*(batcher.infer(rows(n)) for n in range(1, 21)))
        assert batcher.queued_rows == 20 - BUCKETS[-1]
        engine.let_go.release()
        await engine.has_started()  # the second batch runs and the third is put together: in other arrays
        await asyncio.sleep(0)
        assert batcher.queued_rows == 20 - 2 * BUCKETS[-1]
        engine.let_go.release(10)
        answers = await asyncio.gather(*first, *later)
        assert [echoed(answer) for answer in answers] == [[n] for n in range(21)]
        assert engine.batches == [[0], list(range(1, 9)), list(range(9, 17)), [17, 18, 19, 20]]
        await batcher.close()

    run(test())


def test_rows_are_counted_not_requests():
    """Two requests of five rows do not fit a bucket of eight, and none is cut in two."""

    async def test():
        engine = Echo()
        batcher = Batcher(engine, max_queue_rows=100)
        first, second = await asyncio.gather(batcher.infer(rows(*range(5))), batcher.infer(rows(*range(5, 10))))
        assert echoed(first) == list(range(5))
        assert echoed(second) == list(range(5, 10))
        assert [batch[:5] for batch in engine.batches] == [list(range(5)), list(range(5, 10))]

    run(test())


def test_more_rows_than_the_largest_bucket_are_split_and_joined():
    """The caller gets all rows back in order, however many runs they took, and so does the next request."""

    async def test():
        engine = Echo()
        batcher = Batcher(engine, max_queue_rows=100)
        large, small = await asyncio.gather(batcher.infer(rows(*range(21))), batcher.infer(rows(99)))
        assert echoed(large) == list(range(21))
        assert echoed(small) == [99]
        assert [len(batch) for batch in engine.batches] == [8, 8, 8]
        assert large.batch_rows == 8

    run(test())


def test_a_full_queue_refuses_with_a_time_to_come_back():
    """Rows beyond the limit are refused at once, with whole seconds that follow from the latency model."""

    async def test():
        engine, counted = Held(), Counted()
        batcher = Batcher(engine, max_queue_rows=10, observer=counted)
        first = await arrive(batcher.infer(rows(0)))
        await engine.has_started()
        waiting = await arrive(batcher.infer(rows(*range(8))), batcher.infer(rows(1, 2)))
        with pytest.raises(Overloaded, match="10 rows wait, got 1 more, at most 10") as refusal:
            await batcher.infer(rows(3))
        assert 2 <= refusal.value.retry_after <= 3
        assert refusal.value.headers == {"Retry-After": str(refusal.value.retry_after)}
        assert counted.reasons == ["queue_full"]
        engine.let_go.release(10)
        await asyncio.gather(*first, *waiting)
        await batcher.close()

    run(test())


def test_a_poisoned_request_harms_only_itself():
    """A failed batch is run again member by member: the neighbours get their answers, the culprit its error."""

    async def test():
        counted = Counted()
        batcher = Batcher(Echo(), max_queue_rows=100, observer=counted)
        calls = [batcher.infer(rows(n)) for n in (1, POISON, 3)]
        first, culprit, third = await asyncio.gather(*calls, return_exceptions=True)
        assert echoed(first) == [1]
        assert echoed(third) == [3]
        assert isinstance(culprit, EngineError)
        assert "poison" in str(culprit)
        assert counted.failures == 1

    run(test())


def test_an_engine_error_reaches_every_caller():
    """When nothing works no caller is left waiting."""

    async def test():
        batcher = Batcher(Echo(), max_queue_rows=100)
        calls = [batcher.infer(rows(POISON)) for _ in range(3)] + [batcher.infer(rows(*[POISON] * 20))]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [EngineError] * 4

    run(test())


def test_rows_of_another_shape_or_type_cannot_spoil_a_batch():
    """Should validation ever let one through, it fails alone, and is not cast into the neighbours' type."""

    async def test():
        batcher = Batcher(Echo(), max_queue_rows=100)
        for strange in ([[1.5, 2.5]], [1.5]):
            calls = batcher.infer(rows(1)), batcher.infer({"identity": np.array(strange)})
            good, bad = await asyncio.gather(*calls)
            assert echoed(good) == [1]
            assert echoed(bad) == strange

    run(test())


def test_a_cancelled_caller_costs_no_run_and_leaves_its_neighbours_answered():
    """Whoever has gone before the batch starts is left out of it."""

    async def test():
        engine, counted = Held(), Counted()
        batcher = Batcher(engine, max_queue_rows=100, observer=counted)
        first = await arrive(batcher.infer(rows(0)))
        await engine.has_started()
        stays, goes, also_stays = await arrive(*(batcher.infer(rows(n)) for n in (1, 2, 3)))
        goes.cancel()
        await asyncio.sleep(0)
        engine.let_go.release(2)
        answers = await asyncio.gather(*first, stays, also_stays)
        assert [echoed(answer) for answer in answers] == [[0], [1], [3]]
        assert engine.batches == [[0], [1, 3]]
        assert counted.reasons == ["cancelled"]
        await batcher.close()

    run(test())


def test_a_caller_that_goes_while_its_batch_runs_leaves_its_neighbours_answered():
    """The run goes on, and its other members get their rows."""

    async def test():
        engine = Held()
        batcher = Batcher(engine, max_queue_rows=100)
        goes, stays = await arrive(batcher.infer(rows(1)), batcher.infer(rows(2)))
        await engine.has_started()
        goes.cancel()
        engine.let_go.release()
        assert echoed(await stays) == [2]
        await batcher.close()

    run(test())


def test_a_deadline_that_cannot_be_kept_is_refused_at_once():
    """With one run of a second going on and its own to come, two seconds are too little to promise anything."""

    async def test():
        engine, counted = Held(), Counted()
        batcher = Batcher(engine, max_queue_rows=100, observer=counted)
        first = await arrive(batcher.infer(rows(0)))
        await engine.has_started()
        with pytest.raises(Overloaded, match="the deadline leaves") as refusal:
            await batcher.infer(rows(1), deadline=soon(2.0))
        assert refusal.value.retry_after == 1
        patient = await arrive(batcher.infer(rows(1), deadline=soon(5)))
        assert counted.reasons == ["deadline_ahead"]
        engine.let_go.release(2)
        await asyncio.gather(*first, *patient)
        await batcher.close()

    run(test())


def test_a_deadline_that_passes_in_the_queue_is_told_in_time_and_costs_no_run():
    """The 504 comes while the engine is still busy, and the late request is never executed."""

    async def test():
        engine, counted = Held(), Counted()
        engine.bucket_seconds = dict.fromkeys(BUCKETS, 0.002)  # it promises too much
        batcher = Batcher(engine, max_queue_rows=100, observer=counted)
        first = await arrive(batcher.infer(rows(0)))
        await engine.has_started()
        with pytest.raises(DeadlineExceeded, match="the deadline passed"):
            await batcher.infer(rows(1), deadline=soon(0.2))
        engine.let_go.release(2)
        await asyncio.gather(*first)
        await batcher.close()
        assert engine.batches == [[0]]
        assert counted.reasons == ["deadline_passed"]

    run(test())


@pytest.mark.parametrize("form", ["arrays", "bytes"])
def test_who_leaves_a_prepared_batch_costs_no_run(form):
    """Five of eight go after their batch was put together and before it runs: the other three run, padded to four."""

    async def test():
        engine, counted, desk = Held(), Counted(), Desk()
        batcher = Batcher(engine, max_queue_rows=100, observer=counted)
        (first,) = await arrive(batcher.infer(rows(0)))
        await engine.has_started()
        answers: list[int] = []
        waiting = [
            Raw(desk, n)
            if form == "bytes"
            else Called(rows(n), lambda batch, start: answers.append(int(batch.outputs["echo"][start])))
            for n in range(1, 9)
        ]
        for request in waiting:
            batcher.submit(request)
        for request in waiting[1:6]:
            request.cancel()
        engine.let_go.release(2)
        await first
        await batcher.close()
        assert [batch[:3] for batch in engine.batches[1:]] == [[1, 7, 8]]
        assert len(engine.batches[1]) == 4
        assert (desk.calls, answers) == (([[[1], [7], [8]]], []) if form == "bytes" else ([], [1, 7, 8]))
        assert counted.reasons == ["cancelled"] * 5

    run(test())


def test_who_would_be_answered_too_late_costs_no_run():
    """A run that cannot end before the deadline is not begun for it, though the deadline has not passed yet."""

    async def test():
        engine, counted = Held(), Counted()
        batcher = Batcher(engine, max_queue_rows=100, observer=counted)
        first = await arrive(batcher.infer(rows(0)))
        await engine.has_started()
        late, patient = await arrive(batcher.infer(rows(1), deadline=soon(PATIENCE)), batcher.infer(rows(2)))
        # Since it was let in, a run has become that slow.
        batcher._latency = batcher._queue._latency = LatencyModel(dict.fromkeys(BUCKETS, 60.0))
        engine.let_go.release(2)
        with pytest.raises(DeadlineExceeded):
            await late
        assert echoed(await patient) == [2]
        await asyncio.gather(*first)
        assert engine.batches == [[0], [2]]
        assert counted.reasons == ["deadline_passed"]
        await batcher.close()

    run(test())


def test_a_batch_is_no_larger_than_its_members_deadlines_allow():
    """Two rows that have time would make it a run of ten seconds; they leave with the next batch instead."""

    async def test():
        engine = Held()
        engine.bucket_seconds = {1: 0.001, 2: 0.001, 4: 0.001, 8: 10.0}
        batcher = Batcher(engine, max_queue_rows=100, inline_seconds=0.0)
        first = await arrive(batcher.infer(rows(0)))
        await engine.has_started()
        hurried = [batcher.infer(rows(n), deadline=soon(PATIENCE)) for n in range(1, 5)]
        later = await arrive(*hurried, batcher.infer(rows(5)), batcher.infer(rows(6)))
        engine.let_go.release(10)
        answers = await asyncio.gather(*first, *later)
        assert [echoed(answer) for answer in answers] == [[n] for n in range(7)]
        assert engine.batches == [[0], [1, 2, 3, 4], [5, 6]]
        await batcher.close()

    run(test())


def test_a_slow_spell_does_not_refuse_for_ever():
    """An idle engine is believed to be as fast as at load, so one disturbed run cannot shut out every later request."""

    async def test():
        engine = Echo(seconds=0.002)
        batcher = Batcher(engine, max_queue_rows=100)
        for bucket in BUCKETS:
            batcher._latency.finished(bucket, 60.0)
        assert echoed(await batcher.infer(rows(1), deadline=soon(1.0))) == [1]
        await batcher.close()

    run(test())


def test_close_answers_what_waits_and_refuses_what_comes():
    """A drain loses no request that was admitted."""

    async def test():
        engine = Held()
        batcher = Batcher(engine, max_queue_rows=100)
        tasks = await arrive(*(batcher.infer(rows(n)) for n in range(20)))
        await engine.has_started()
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(NotReady, match="shutting down"):
            await batcher.infer(rows(1))
        assert not closing.done()
        engine.let_go.release(10)
        await closing
        assert [echoed(answer) for answer in await asyncio.gather(*tasks)] == [[n] for n in range(20)]

    run(test())


def test_a_lost_device_is_reported_and_not_asked_again():
    """There is no point in running the members alone on a device that has gone."""

    class Lost(Echo):
        def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            self.batches.append([])
            raise DeviceLost("the device is gone")

    async def test():
        engine = Lost()
        said: list[DeviceLost] = []
        batcher = Batcher(engine, max_queue_rows=100, lost=said.append)
        outcomes = await asyncio.gather(*(batcher.infer(rows(n)) for n in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [DeviceLost] * 3
        assert len(engine.batches) == 1
        assert len(said) == 1

    run(test())


def test_callers_without_futures_share_one_batch_answer():
    """The low-level way: a receiver gets the whole batch and its place in it, and one that fails is alone."""

    async def test():
        seen: list[tuple[int, list[int]]] = []
        shared: set[int] = set()

        def answered(batch: BatchAnswer, start: int) -> None:
            seen.append((start, batch.outputs["echo"].tolist()))
            shared.add(id(batch))
            if start == 0:
                raise RuntimeError("this caller cannot take its answer")

        batcher = Batcher(Echo(), max_queue_rows=100)
        for numbers in ((1, 2), (3,), (4,)):
            batcher.submit(Called(rows(*numbers), answered))
        await batcher.close()
        assert seen == [(0, [1, 2, 3, 4]), (2, [1, 2, 3, 4]), (3, [1, 2, 3, 4])]
        assert len(shared) == 1

    run(test())


@pytest.mark.parametrize("inline_seconds", [0.001, 0.0], ids=["on the loop", "in the thread"])
def test_ten_thousand_random_requests_are_never_mixed_up(fashion_and_echo, inline_seconds):
    """Random sizes at random times through a real session that echoes each row's identity: no mismatch."""

    async def test():
        async with loaded(fashion_and_echo, inline_below_ms=inline_seconds * 1000) as models:
            batcher = models.registry.get("echo").batcher
            rng = np.random.default_rng(5)
            answered = 0

            async def client(requests: int) -> None:
                nonlocal answered
                for _ in range(requests):
                    count = int(rng.integers(1, 400)) if rng.random() < 0.02 else int(rng.integers(1, 9))
                    inputs = rng.integers(0, 2**62, (count, 4))
                    for _ in range(int(rng.integers(0, 3))):
                        await asyncio.sleep(0)
                    answer = await batcher.infer({"identity": inputs}, deadline=soon(30))
                    assert np.array_equal(answer.outputs["echo"], inputs)
                    answered += 1

            await asyncio.gather(*(client(100) for _ in range(50)))
            assert answered == 5_000

    asyncio.run(asyncio.wait_for(test(), 60))


def test_what_the_service_asks_itself_is_counted_apart():
    """A batch that a client shares with a check counts the client's rows; refusals of checks are no client's."""

    async def test():
        counted = Counted()
        batcher = Batcher(Echo(), max_queue_rows=12, observer=counted)
        await asyncio.gather(batcher.infer(rows(1, 2)), batcher.infer(rows(3), source=CANARY))
        await batcher.infer(rows(*range(10, 20)), source=CANARY)
        await batcher.infer(rows(4))
        assert counted.batches == [(2, 3), (0, 0), (0, 0), (1, 1)]
        assert counted.checks == [{CANARY: 1}, {CANARY: 8}, {CANARY: 2}, {}]
        waiting = asyncio.gather(
            batcher.infer(rows(5)), batcher.infer(rows(*range(12)), source=CANARY), return_exceptions=True
        )
        assert isinstance((await waiting)[1], Overloaded)
        assert counted.reasons == []
        waiting = asyncio.gather(batcher.infer(rows(5)), batcher.infer(rows(*range(12))), return_exceptions=True)
        assert isinstance((await waiting)[1], Overloaded)
        assert counted.reasons == ["queue_full"]
        await batcher.close()

    run(test())


def test_batch_sizes_that_are_proved_later_are_used_from_then_on():
    """Also by requests that wait; what was learnt of the others stays."""

    async def test():
        engine = Held()
        engine.buckets, engine.bucket_seconds = (1,), {1: 1.0}
        batcher = Batcher(engine, max_queue_rows=100)
        first, *others = await arrive(*(batcher.infer(rows(n)) for n in range(9)))
        await engine.has_started()
        engine.buckets, engine.bucket_seconds = BUCKETS, dict.fromkeys(BUCKETS, 1.0)
        batcher.take_buckets()
        for _ in range(9):
            engine.let_go.release()
        answers = await asyncio.gather(first, *others)
        assert [echoed(answer) for answer in answers] == [[n] for n in range(9)]
        assert len(engine.batches[0]) == 1
        assert max(len(batch) for batch in engine.batches) >= 4
        assert (await asyncio.gather(batcher.infer(rows(*range(8)))))[0].batch_rows == 8

    run(test())
