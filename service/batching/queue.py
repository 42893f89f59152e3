"""Requests that wait for an engine, oldest first, and the choice of those that make the next batch.

Between the batcher, which decides when and where a batch runs, and the latency model, which knows how long it takes.
Leaves out requests that were cancelled or could only be answered too late, and tells the latter.
"""

import time
from collections import deque
from collections.abc import Iterator

from ..errors import DeadlineExceeded
from .batch import Batch, Observer
from .latency_model import LatencyModel
from .request import CLIENT, Request


class Queue:
    """Requests that wait.

    Args:
        latency: how long runs take.
        largest: rows that one batch may have.
        observer: counts requests that get no run.
        is_free: rows of different requests may differ in their shape, and only equal ones share a batch.

    Attributes:
        rows: of all that wait.
        largest: as given.
    """

    def __init__(self, latency: LatencyModel, largest: int, observer: Observer, *, is_free: bool = False) -> None:
        self.rows = 0
        self._is_free = is_free
        self._latency = latency
        self.largest = largest
        self._observer = observer
        self._waiting: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._waiting)

    def append(self, request: Request) -> None:
        """Let a request wait after all others."""
        self._waiting.append(request)
        self.rows += request.rows

    def take(self) -> Batch | None:
        """Return the next batch: everything that waits, in order, up to the largest bucket.

        It is smaller where two smaller buckets are faster than the one that would hold all, and no larger than its
        members' deadlines allow.
        """
        requests: list[Request] = []
        waiting, left, rows = self._waiting, self.rows, 0
        limit = self._latency.rows_to_take(left)
        needs_a_look = time.perf_counter() + self._latency.busy_seconds() + self._latency.easy_seconds
        while waiting:
            request = waiting[0]
            if request.deadline < needs_a_look and not request.is_over:
                limit = min(limit, self._rows_in_time(request, left + rows))
            if request.is_over:
                if not request.is_expired and request.source == CLIENT:
                    self._observer.refused("cancelled")
            elif requests and (rows + request.rows > limit or (self._is_free and not _are_alike(request, requests[0]))):
                break
            else:
                requests.append(request)
                rows += request.rows
            waiting.popleft()
            left -= request.rows
        self.rows = left
        return Batch(requests, rows, self._latency.bucket_for(rows)) if requests else None

    def expire(self, request: Request) -> None:
        """Tell a request that its deadline has passed."""
        request.is_over = request.is_expired = True
        if request.source == CLIENT:
            self._observer.refused("deadline_passed")
        waited = time.perf_counter() - request.arrived
        request.failed(DeadlineExceeded(f"the deadline passed {waited * 1e3:.0f} ms after the request arrived"))

    def _rows_in_time(self, request: Request, rows: int) -> int:
        """Rows that a batch may have, of `rows` at most, so that a request in it is answered in time.

        One that would be too late even alone expires.
        """
        start = time.perf_counter() + self._latency.busy_seconds()
        if request.deadline >= start + self._latency.run_seconds(rows):
            return self.largest
        if start + self._latency.run_seconds(request.rows) > request.deadline:
            self.expire(request)
            return self.largest
        return max(request.rows, self._latency.safe_rows(request.deadline - start))


def _are_alike(one: Request, other: Request) -> bool:
    """Return whether the rows of two requests have the same shapes."""
    return all(array.shape[1:] == other.inputs[name].shape[1:] for name, array in one.inputs.items())
