"""Work that takes a core for long, as decoding a picture does: admitted, queued and run in threads of its own.

Like a batch, it has to be worth its time: what could not be ready by its deadline is refused at once, what nobody waits
for any more is left out, and at most so many bytes and pixels are in it. The threads do not hold up the end of the
process. Knows neither HTTP nor pictures.
"""

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import DeadlineExceeded, NotReady, Overloaded

T = TypeVar("T")

_SAFE_SHARE = 0.7  # of the time that is left may be promised, as for batches
_FIRST_SECONDS = 20e-9  # a pixel, before any was measured
_PIXELS_OF_A_JOB = 65_536  # that take as long as what every job does, whatever its size
_MUCH_PIXELS = 4_000_000  # whose memory the C library keeps for itself
_REMEMBERED_PIXELS = 200_000_000  # measured before that count half


class Job:
    """One piece of work.

    Attributes:
        pixels: what it is expected to cost.
        size: bytes that are held for it.
        is_over: it is settled, or was given up.
        beats: how often the work has said that it goes on.
        last_beat: when it last did, on the clock of `time.perf_counter`.
    """

    def __init__(
        self, work: Callable[["Job"], Any], pixels: int, size: int, deadline: float, is_gone: Callable[[], bool]
    ) -> None:
        self.work = work
        self._is_gone = is_gone
        self.pixels = pixels
        self.size = size
        self.deadline = deadline
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.is_over = False
        self.beats = 0
        self.last_beat = time.perf_counter()

    @property
    def is_left(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.is_over or self._is_gone() or time.perf_counter() > self.deadline

    def beat(self) -> None:
        """Say that the work goes on.

        Raises:
            DeadlineExceeded: nobody waits for it any more.
        """
        self.beats += 1
        self.last_beat = time.perf_counter()
        if self.is_left:
            raise DeadlineExceeded("the deadline passed while a picture was decoded")

    def settle(self, result: Any, error: BaseException | None) -> None:
        """Tell who waits; on the loop."""
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class WorkQueue:
    """Jobs before a few threads, first come first served.

    Args:
        threads: that run jobs.
        max_bytes: of all jobs that wait; more are refused.
        max_pixels: of all jobs that run; a job with more runs alone.
        refused: called with the reason of each refusal.
        prepare: called in each thread before its first job, whose time it is no part of.
        tidy: called in a thread once nothing is left to do after much work, such as what gives memory back.
    """

    def __init__(
        self,
        threads: int,
        max_bytes: int,
        max_pixels: int,
        refused: Callable[[str], None],
        prepare: Callable[[], None] | None = None,
        tidy: Callable[[], None] | None = None,
    ) -> None:
        self._thread_count = threads
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._refused = refused
        self._prepare = prepare
        self._tidy = tidy
        self._untidy_pixels = 0
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._condition = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._measured = _Speed()
        self._is_closed = False

    async def run(
        self, work: Callable[[Job], T], *, pixels: int, size: int, deadline: float, is_gone: Callable[[], bool]
    ) -> T:
        """Return what the work returns, which runs in a thread and gets its job.

        Args:
            work: calls `Job.beat` from time to time.
            pixels: what it is expected to cost.
            size: bytes that it holds meanwhile.
            deadline: on the clock of `time.perf_counter`.
            is_gone: whether its client has gone; called in any thread.

        Raises:
            Overloaded: it could not be done by the deadline, or too much waits.
            DeadlineExceeded: the deadline passed before it was done.
            NotReady: the queue is closed.
        """
        job = Job(work, max(pixels, 1), size, deadline, is_gone)
        with self._condition:
            self._admit(job)
            self._waiting.append(job)
            self._start_thread()
            self._condition.notify()
        timer = job.loop.call_later(max(0.0, deadline - time.perf_counter()), self._expire, job)
        try:
            result: T = await job.future
            return result
        except DeadlineExceeded:
            self._refused("cancelled" if is_gone() else "deadline_passed")
            raise
        finally:
            timer.cancel()
            job.is_over = True

    def running(self) -> dict[str, int]:
        """How often each running job has said that it goes on, for the watchdog."""
        return {f"decoder {id(job):x}": job.beats for job in list(self._running)}

    def stands_still(self, seconds: float) -> bool:
        """Return whether a job has not said for so long that it goes on."""
        return any(time.perf_counter() - job.last_beat > seconds for job in list(self._running))

    def close(self) -> None:
        """Refuse new jobs, and end those that wait or run as soon as they look."""
        with self._condition:
            self._is_closed = True
            for job in (*self._waiting, *self._running):
                job.is_over = True
            self._condition.notify_all()

    def _admit(self, job: Job) -> None:
        if self._is_closed:
            self._refused("closed")
            raise NotReady("the service is shutting down; ask again")
        waiting = [other for other in self._waiting if not other.is_left]
        held = sum(other.size for other in waiting)
        if waiting and held + job.size > self._max_bytes:
            self._refused("queue_full")
            raise Overloaded(f"pictures: {held} bytes wait to be decoded, at most {self._max_bytes} may: try again")
        ahead = sum(self._measured.seconds(other.pixels) for other in (*waiting, *self._running))
        free = len(self._running) + len(waiting) < self._thread_count
        expected = 0.0 if free else ahead / self._thread_count + self._measured.seconds(job.pixels)
        left = max(0.0, job.deadline - time.perf_counter())
        safe = left * _SAFE_SHARE
        if expected > safe or not left:
            self._refused("deadline_ahead")
            times = f"{expected * 1e3:.0f} ms, and the deadline leaves {left * 1e3:.0f} ms"
            message = f"decoding the pictures would take {times}, of which {_SAFE_SHARE:.0%} may be promised"
            raise Overloaded(f"{message}: ask again, or allow more time", math.ceil(max(0.0, expected - safe)))

    def _start_thread(self) -> None:
        if len(self._threads) < min(self._thread_count, len(self._waiting) + len(self._running)):
            thread = threading.Thread(target=self._work, name=f"decoder-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _expire(self, job: Job) -> None:
        job.is_over = True
        job.settle(None, DeadlineExceeded("the deadline passed before the pictures were decoded"))

    def _next(self) -> Job | None:
        """Return the job that runs now, None when the queue is closed; waits for one, and for its pixels."""
        with self._condition:
            while True:
                while self._waiting and self._waiting[0].is_left:
                    self._tell(self._waiting.popleft(), None, DeadlineExceeded("nobody waits for the picture any more"))
                running = sum(job.pixels for job in self._running)
                if self._waiting and (not running or running + self._waiting[0].pixels <= self._max_pixels):
                    self._waiting[0].last_beat = time.perf_counter()
                    self._running.append(self._waiting[0])
                    return self._waiting.popleft()
                if self._is_closed and not self._waiting:
                    return None
                self._condition.wait()

    def _work(self) -> None:
        if self._prepare is not None:
            self._prepare()
        while (job := self._next()) is not None:
            started, result, error = time.perf_counter(), None, None
            try:
                result = job.work(job)
            except BaseException as err:
                error = err
            seconds = time.perf_counter() - started
            with self._condition:
                self._running.remove(job)
                if error is None:
                    self._measured.add(job.pixels, seconds)
                self._untidy_pixels += job.pixels
                self._condition.notify_all()
            self._tell(job, result, error)
            del job, result, error
            self._tidy_up()

    def _tidy_up(self) -> None:
        """Tidy up behind much work, in a pause of it."""
        with self._condition:
            if self._tidy is None or self._waiting or self._running or self._untidy_pixels < _MUCH_PIXELS:
                return
            self._untidy_pixels = 0
        self._tidy()

    @staticmethod
    def _tell(job: Job, result: Any, error: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            job.loop.call_soon_threadsafe(job.settle, result, error)


class _Speed:
    """How long jobs take, from those that were measured, each counted by its pixels: small ones say little of large."""

    def __init__(self) -> None:
        self._pixels = float(_REMEMBERED_PIXELS) / 100
        self._seconds = self._pixels * _FIRST_SECONDS

    def add(self, pixels: int, seconds: float) -> None:
        """Take a measurement."""
        self._pixels += pixels + _PIXELS_OF_A_JOB
        self._seconds += seconds
        if self._pixels > _REMEMBERED_PIXELS:
            self._pixels, self._seconds = self._pixels / 2, self._seconds / 2

    def seconds(self, pixels: int) -> float:
        """Return what a job of so many pixels is expected to take."""
        return self._seconds / self._pixels * (pixels + _PIXELS_OF_A_JOB)
