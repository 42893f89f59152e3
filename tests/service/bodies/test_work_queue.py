"""Work for a core: admitted by deadline and size, and given up when nobody waits for it."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from foldserve.service.bodies.work_queue import Job, WorkQueue
from foldserve.service.errors import DeadlineExceeded, NotReady, Overloaded


@pytest.fixture
def queue() -> Iterator[SimpleNamespace]:
    """A queue of one thread, and a gate that its jobs wait at."""
    reasons: Counter[str] = Counter()
    held = WorkQueue(1, 1_000, 1_000, lambda reason: reasons.update([reason]))
    gate, started = threading.Event(), threading.Event()

    def wait(job: Job) -> str:
        started.set()
        while not gate.wait(0.005):
            job.beat()
        return "done"

    yield SimpleNamespace(queue=held, gate=gate, started=started, wait=wait, reasons=reasons)
    gate.set()
    held.close()


def run(queue: SimpleNamespace, work, *, pixels=1, size=1, seconds=60.0, is_gone=lambda: False) -> asyncio.Task:
    deadline = time.perf_counter() + seconds
    job = queue.queue.run(work, pixels=pixels, size=size, deadline=deadline, is_gone=is_gone)
    return asyncio.ensure_future(job)


async def hold(queue: SimpleNamespace, **options) -> asyncio.Task:
    """A job that runs until the gate opens."""
    task = run(queue, queue.wait, **options)
    await asyncio.to_thread(queue.started.wait, 60)
    return task


def test_jobs_run_in_their_order(queue):
    """First come, first served."""

    async def scenario() -> None:
        first = await hold(queue)
        order: list[int] = []
        others = [run(queue, lambda job, number=number: order.append(number)) for number in range(5)]
        await asyncio.sleep(0)
        queue.gate.set()
        assert await first == "done"
        await asyncio.gather(*others)
        assert order == list(range(5))

    asyncio.run(scenario())


def test_what_would_be_late_is_refused_at_once(queue):
    """Behind much work a short deadline is refused and a long one is not."""

    async def scenario() -> None:
        first = await hold(queue, pixels=100_000_000)  # two seconds by what is known of pixels
        with pytest.raises(Overloaded, match="decoding the pictures would take"):
            await run(queue, queue.wait, seconds=0.5)
        second = run(queue, queue.wait)
        await asyncio.sleep(0)
        queue.gate.set()
        assert [await first, await second] == ["done", "done"]
        assert queue.reasons == {"deadline_ahead": 1}

    asyncio.run(scenario())


def test_small_jobs_say_little_of_large_ones(queue):
    """What each job costs whatever its size is not taken for the price of its pixels."""

    async def scenario() -> None:
        for _ in range(20):
            await run(queue, lambda job: time.sleep(0.002), pixels=100)
        first = await hold(queue)
        large = run(queue, lambda job: "large", pixels=50_000_000, seconds=5)
        await asyncio.sleep(0)
        queue.gate.set()
        assert [await first, await large] == ["done", "large"]
        assert not queue.reasons

    asyncio.run(scenario())


def test_what_is_measured_counts(queue):
    """Once jobs have taken ten times as long as expected, one that could have been ready is refused."""

    async def scenario() -> None:
        for _ in range(3):
            await run(queue, lambda job: time.sleep(0.1), pixels=200_000)
        first = await hold(queue, pixels=200_000)
        with pytest.raises(Overloaded):
            await run(queue, queue.wait, pixels=10_000_000, seconds=1)
        queue.gate.set()
        await first

    asyncio.run(scenario())


def test_a_thread_is_made_ready_before_its_first_job():
    """What has to be imported first is not measured as the job's own time."""
    calls: list[str] = []

    async def scenario() -> None:
        prepared = WorkQueue(1, 1_000, 1_000, lambda reason: None, prepare=lambda: calls.append("prepare"))
        for _ in range(2):
            await run(SimpleNamespace(queue=prepared), lambda job: calls.append("job"))
        prepared.close()

    asyncio.run(scenario())
    assert calls == ["prepare", "job", "job"]


def test_it_is_tidied_up_behind_much_work_once_nothing_is_left_to_do(queue):
    """Neither between two jobs nor after a small one: what gives memory back takes milliseconds itself."""
    calls: list[str] = []
    tidied = threading.Event()

    def tidy() -> None:
        calls.append("tidy")
        tidied.set()

    async def scenario() -> None:
        queue.queue = WorkQueue(1, 1_000, 10_000_000, lambda reason: None, tidy=tidy)
        await run(queue, lambda job: calls.append("small"), pixels=1_000)
        first = await hold(queue, pixels=3_000_000)
        second = run(queue, lambda job: calls.append("large"), pixels=3_000_000)
        await asyncio.sleep(0)
        queue.gate.set()
        await asyncio.gather(first, second)
        await asyncio.to_thread(tidied.wait, 60)
        await run(queue, lambda job: calls.append("small"), pixels=1_000)
        queue.queue.close()

    asyncio.run(scenario())
    assert calls == ["small", "large", "tidy", "small"]


def test_bytes_that_wait_are_bounded(queue):
    """One request of any size may wait; together they keep to the limit."""

    async def scenario() -> None:
        first = await hold(queue)
        second = run(queue, queue.wait, size=2_000)
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2000 bytes wait to be decoded, at most 1000"):
            await run(queue, queue.wait, size=1)
        queue.gate.set()
        assert [await first, await second] == ["done", "done"]
        assert queue.reasons == {"queue_full": 1}

    asyncio.run(scenario())


def test_a_deadline_ends_the_wait_and_the_work(queue):
    """The one that runs and the one that waits are told when it passes; the thread is free again."""

    async def scenario() -> None:
        tasks = [await hold(queue, seconds=1)]
        tasks.append(run(queue, queue.wait, seconds=1))
        for task in tasks:
            with pytest.raises(DeadlineExceeded):
                await task
        assert await run(queue, lambda job: 7) == 7
        assert queue.reasons == {"deadline_passed": 2}

    asyncio.run(scenario())


def test_clients_that_have_gone_are_left_out(queue):
    """Their pictures are not decoded, and those that are being decoded are given up."""

    async def scenario() -> None:
        gone: list[int] = []
        first = await hold(queue, is_gone=lambda: bool(gone))
        ran: list[object] = []
        second = run(queue, ran.append, is_gone=lambda: bool(gone))
        await asyncio.sleep(0)
        gone.append(1)
        for task in (first, second):
            with pytest.raises(DeadlineExceeded):
                await task
        assert not ran
        assert queue.reasons == {"cancelled": 2}

    asyncio.run(scenario())


def test_pixels_that_are_decoded_at_once_are_bounded():
    """A large picture waits until the others leave room, and one above the limit runs alone."""
    most, now, lock = [0], [0], threading.Lock()

    def work(job: Job) -> None:
        with lock:
            now[0] += job.pixels
            most[0] = max(most[0], now[0])
        threading.Event().wait(0.01)
        with lock:
            now[0] -= job.pixels

    async def scenario() -> None:
        queue = SimpleNamespace(queue=WorkQueue(4, 1_000, 100, lambda reason: None))
        await asyncio.gather(*(run(queue, work, pixels=pixels) for pixels in (60, 60, 30, 10, 500, 90)))
        queue.queue.close()

    asyncio.run(scenario())
    assert most[0] == 500


def test_a_job_that_stands_still_is_seen(queue):
    """One that does not say that it goes on is noticed after a while."""

    async def scenario() -> None:
        is_open = threading.Event()
        task = run(queue, lambda job: (queue.started.set(), is_open.wait(60)))
        await asyncio.to_thread(queue.started.wait, 60)
        await asyncio.sleep(0.05)
        assert queue.queue.stands_still(0.02)
        assert list(queue.queue.running().values()) == [0]
        assert not queue.queue.stands_still(60)
        is_open.set()
        await task
        assert not queue.queue.running()

    asyncio.run(scenario())


def test_a_closed_queue_refuses_and_gives_up(queue):
    """What runs ends as soon as it looks."""

    async def scenario() -> None:
        task = await hold(queue)
        queue.queue.close()
        with pytest.raises(DeadlineExceeded):
            await task
        with pytest.raises(NotReady):
            await run(queue, queue.wait)

    asyncio.run(scenario())
