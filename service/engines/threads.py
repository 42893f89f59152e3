"""Find the buckets whose runs gain by more than one thread, without a byte of their answers changing.

Waking a thread costs more than it computes in a small batch, and less in a large one. Measured on two cores for a small
convolutional network: 36 against 68 microseconds for one row, 5.6 against 2.9 milliseconds for 256.
"""

import time
from collections.abc import Mapping, Sequence

from ..tensors import Array
from .buckets import LONGEST_RUN_SECONDS, Run, answers_agree, golden_batch, is_worth, median_seconds

# More threads are worth their wake-ups in runs of this length that they shorten by this factor.
_LEAST_SECONDS = 0.001
_LEAST_GAIN = 1.3
_RUNS = 3


def thread_gain(threaded: Run, inputs: Mapping[str, Array], bucket: int) -> tuple[float, float]:
    """Return how many threads share the work of a run, and its seconds, from a few runs on all threads.

    Counted in CPU time: of the whole process over that of the calling thread, which works along with the others. So a
    neighbour on the same cores seldom decides, and no other session is needed to compare with.
    """
    batch = golden_batch(inputs, bucket)
    threaded(batch)  # the first is longer
    gains, times = [], []
    for _ in range(_RUNS):
        started, process, thread = time.perf_counter(), time.process_time(), time.thread_time()
        threaded(batch)
        own = max(time.thread_time() - thread, 1e-9)
        gains.append((time.process_time() - process) / own)
        times.append(time.perf_counter() - started)
    return max(gains), min(times)


def does_pay(gain: float) -> bool:
    """Return whether so many threads sharing the work are worth their wake-ups."""
    return gain >= _LEAST_GAIN


def first_threaded_bucket(
    single: Run, threaded: Run, inputs: Mapping[str, Array], buckets: Sequence[int]
) -> tuple[int | None, Mapping[int, float]]:
    """Return the smallest bucket from which on all runs should take all threads, and the seconds that were measured.

    Args:
        single: runs a batch on one thread.
        threaded: runs it on all.
        inputs: golden inputs.
        buckets: batch sizes in rows, rising.

    Returns:
        None where one thread is better for all; the median seconds of those buckets that had to be timed and are
        worth having, each run as it is going to be.
    """
    on_one: dict[int, float] = {}
    on_all: dict[int, float] = {}
    for bucket in buckets:
        alone = None
        if not on_all:  # once it pays it pays for larger batches too
            alone = median_seconds(single, inputs, bucket)
            if alone < _LEAST_SECONDS:
                on_one[bucket] = alone
                continue
        seconds = median_seconds(threaded, inputs, bucket)
        if not is_worth(on_one | on_all, bucket, seconds if alone is None else min(alone, seconds)):
            break
        if alone is not None:
            on_one[bucket] = alone
        does_pay = bool(on_all) or on_one[bucket] >= _LEAST_GAIN * seconds
        if does_pay and answers_agree(single, threaded, inputs, bucket):
            on_all[bucket] = seconds
        else:
            on_all.clear()
            on_one[bucket] = median_seconds(single, inputs, bucket) if alone is None else alone
        if max(seconds, on_one.get(bucket, 0.0)) > LONGEST_RUN_SECONDS:
            break
    return min(on_all, default=None), on_one | on_all
