"""Threads that share out the rows of a batch: each computes its own rows on one core, and they meet where sums join.

PyTorch's own threads share out every operation instead, and wait for each other after each of them: on operations of a
tenth of a millisecond the waiting costs more than the second core gives. It knows nothing of what is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

# A part of a batch of 256 then has 32 rows, some two milliseconds of work between eight meetings of a step. More cores
# than two were not measured.
MOST = 8

Part = TypeVar("Part")
Result = TypeVar("Result")


class WorkerThreads:
    """As many threads as PyTorch may use, the calling one among them; outside `open()` there is the calling one alone.

    Args:
        count: of threads; by default what `torch.get_num_threads()` says when they are opened, and at most `MOST`.
    """

    def __init__(self, count: int | None = None) -> None:
        self._wanted = count
        self._others: ThreadPoolExecutor | None = None
        self.count = 1

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the threads inside the block, where PyTorch's own operations take one thread each."""
        threads = torch.get_num_threads()
        count = self._wanted or min(threads, MOST)
        torch.set_num_threads(1)
        try:
            if count == 1:
                yield
                return
            with ThreadPoolExecutor(count - 1, "training", _set_up_thread) as self._others:
                self.count = count
                yield
        finally:
            self._others, self.count = None, 1
            torch.set_num_threads(threads)

    def map(self, work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        """Return `work` of each part, in their order; the calling thread does the first. No gradient is recorded."""
        with torch.no_grad():
            if self._others is None:
                return [work(part) for part in parts]
            pending = [self._others.submit(work, part) for part in parts[1:]]
            return [work(parts[0]), *(future.result() for future in pending)]


def _set_up_thread() -> None:
    """Set what PyTorch keeps for each thread; how it rounds and flushes, a thread has from the one that began it."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
