"""Choose the batch sizes that a session may run: those whose answers do not depend on the rest of the batch.

A kernel may add in another order for another batch size, so the same image can get other last bits in another batch.
That is measured at load, on the golden inputs at several positions of every bucket, and only buckets that agree byte
for byte are served. Knows arrays and a function that runs them; no sessions.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..tensors import Array, content
from .throttle import pause

_log = logging.getLogger(__name__)

Run = Callable[[Mapping[str, Array]], dict[str, Array]]

# A batch that runs longer than this gains no throughput worth its wait; larger buckets are not tried.
LONGEST_RUN_SECONDS = 0.25
# Above this length a larger bucket has to make a row cheaper by so much: to try it costs time, and memory for good.
SHORT_RUN_SECONDS = 0.03
_LEAST_GAIN = 0.1
# What a shorter one has to gain where each costs memory and is tried beside requests; what one batch costs beside.
_LEAST_SHORT_GAIN, _HAND_OVER_SECONDS = 0.05, 100e-6
_SHIFTS = 3
# A bucket is timed at least and at most so often, and not for longer than this once it has been timed often enough.
_FEWEST_RUNS, _MOST_RUNS, _TIMED_SECONDS = 3, 7, 0.005


@dataclass(frozen=True)
class Profile:
    """What was measured at load.

    `buckets` of those that were `tried` are served; `answers` holds the golden answers of each of them, rows in golden
    order. `seconds` is the median time of one run. `largest_deviation` compares all buckets that were tried with the
    first: the largest |difference| of a float output relative to its largest |value|. Those that are `pending` may be
    tried while this one answers; what they may cost goes by `cpu_seconds` of one run of those that were tried.
    """

    buckets: tuple[int, ...]
    batch_invariant: bool
    largest_deviation: float
    seconds: Mapping[int, float]
    answers: Mapping[int, Mapping[str, Array]]
    tried: tuple[int, ...] = ()
    pending: tuple[int, ...] = ()
    cpu_seconds: Mapping[int, float] = field(default_factory=dict)


def first_profile(run: Run, inputs: Mapping[str, Array], candidates: Sequence[int]) -> Profile:
    """Run the smallest candidate alone on every golden row; the others are left pending.

    For models whose run is long: their proof is the measurement too.

    Args:
        run: exactly one batch of the given size, with no padding of its own.
        inputs: golden inputs, the same number of rows in each.
        candidates: rising batch sizes.
    """
    bucket, times = candidates[0], Times()
    answers, is_steady = _answers(times.of(run), inputs, bucket, is_short=False)
    seconds, cpu_seconds = {bucket: times.median()}, {bucket: times.least_cpu()}
    return Profile((bucket,), is_steady, 0.0, seconds, {bucket: answers}, (bucket,), tuple(candidates[1:]), cpu_seconds)


def profile_buckets(
    run: Run,
    inputs: Mapping[str, Array],
    candidates: Sequence[int],
    known_seconds: Mapping[int, float] | None = None,
    *,
    is_brief: bool = False,
) -> Profile:
    """Run every candidate on the golden inputs and choose those that agree byte for byte.

    The buckets that agree with the first (bucket 1, usually) are served; if that one stands alone and is short, the
    largest set that agrees among itself is, and smaller batches are padded up to it. When not even one bucket gives
    the same answer twice, all are served and the profile says that answers vary.

    Args:
        run: exactly one batch of the given size, with no padding of its own.
        inputs: golden inputs, the same number of rows in each.
        candidates: rising batch sizes.
        known_seconds: how long buckets take that need not be timed again.
        is_brief: have each golden row answered once by every bucket: that its place changes nothing is known.
    """
    answers: dict[int, dict[str, Array]] = {}
    seconds: dict[int, float] = {}
    steady: list[int] = []
    shortest = 0.0
    for bucket in candidates:
        if shortest > LONGEST_RUN_SECONDS:
            _log.info("buckets from %d on left out: a run of fewer rows takes %.2f s", bucket, LONGEST_RUN_SECONDS)
            break
        known = (known_seconds or {}).get(bucket)
        times = _times(run, inputs, bucket) if known is None else [known]
        taken, shortest = median(times), min(times)
        if not is_worth(seconds, bucket, taken):
            _log.info("buckets from %d on left out: a row is not cheaper in them", bucket)
            break
        seconds[bucket] = taken
        answers[bucket], is_steady = _answers(
            run, inputs, bucket, is_short=taken <= SHORT_RUN_SECONDS, is_brief=is_brief
        )
        if is_steady:
            steady.append(bucket)
    is_first_short = seconds[candidates[0]] <= SHORT_RUN_SECONDS
    served = _agreeing(answers, steady, may_pad=is_first_short) or tuple(answers)
    return Profile(
        buckets=served,
        batch_invariant=bool(steady),
        largest_deviation=max(deviation(answers[candidates[0]], other) for other in answers.values()),
        seconds={bucket: seconds[bucket] for bucket in served},
        answers={bucket: answers[bucket] for bucket in served},
        tried=tuple(answers),
    )


def with_bucket(profile: Profile, run: Run, inputs: Mapping[str, Array], taken: float | None = None) -> Profile:
    """Try the first bucket that is pending; returns the profile with it, or without it.

    It is served if it gives the very bytes that are served now. The sizes behind it are pending no more once a row is
    not cheaper in it, or its run is long.

    Args:
        profile: of what answers now, with a bucket pending.
        run: exactly one batch of the given size.
        inputs: golden inputs, the same number of rows in each.
        taken: seconds of one run of the bucket, known to be worth having; None has it timed.
    """
    bucket, others = profile.pending[0], profile.pending[1:]
    if taken is None:
        times = Times()
        _times(times.of(run), inputs, bucket)
        taken, cpu_seconds = times.median(), {**profile.cpu_seconds, bucket: times.least_cpu()}
        least = min(times.seconds)
        does_gain = is_cheaper(cpu_seconds, bucket) or is_cheaper({**profile.seconds, bucket: least}, bucket)
        if least > LONGEST_RUN_SECONDS or not does_gain:
            _log.info("buckets from %d on left out: a row is not cheaper in them", bucket)
            return replace(profile, pending=())
        profile = replace(profile, cpu_seconds=cpu_seconds)
    answers, is_steady = _answers(run, inputs, bucket, is_short=False)
    first = profile.answers[profile.buckets[0]]
    largest = max(profile.largest_deviation, deviation(first, answers))
    profile = replace(profile, pending=others, tried=(*profile.tried, bucket), largest_deviation=largest)
    if not is_steady or any(content(answers[name]) != content(array) for name, array in first.items()):
        _log.info("bucket %d left out: it gives other bytes", bucket)
        return profile
    return replace(
        profile,
        buckets=(*profile.buckets, bucket),
        seconds={**profile.seconds, bucket: taken},
        answers={**profile.answers, bucket: answers},
    )


def is_cheaper(seconds: Mapping[int, float], bucket: int) -> bool:
    """Return whether a row takes less time in a bucket than in any smaller one.

    Args:
        seconds: of one run of each: by the clock, which sees threads that wait for one another, or of the processor,
            which does not see neighbours on the same cores.
        bucket: rows.
    """
    cheapest = min(_row_seconds(rows, each) for rows, each in seconds.items() if rows < bucket)
    least = _LEAST_GAIN if seconds[bucket] > SHORT_RUN_SECONDS else _LEAST_SHORT_GAIN
    return _row_seconds(bucket, seconds[bucket]) <= (1 - least) * cheapest


class Times:
    """How long the runs of a function took, by the clock and in CPU time of the whole process."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def of(self, run: Run) -> Run:
        """Return the function with its times taken."""

        def timed(batch: Mapping[str, Array]) -> dict[str, Array]:
            started, cpu = time.perf_counter(), time.process_time()
            outputs = run(batch)
            self.cpu_seconds.append(time.process_time() - cpu)
            self.seconds.append(time.perf_counter() - started)
            return outputs

        return timed

    def median(self) -> float:
        """Return the usual seconds of a run."""
        return median(self.seconds)

    def least_cpu(self) -> float:
        """Return the CPU seconds of the run that took the fewest: what disturbs a run can only add to them."""
        return min(self.cpu_seconds)


def _row_seconds(rows: int, run_seconds: float) -> float:
    return (run_seconds + _HAND_OVER_SECONDS) / rows


def is_worth(seconds: Mapping[int, float], bucket: int, taken: float) -> bool:
    """Return whether a bucket is worth having beside smaller ones: its run is short, or a row in it is cheaper.

    Args:
        seconds: of one run of each smaller bucket.
        bucket: rows.
        taken: seconds of one run of it.
    """
    cheapest = min((each / rows for rows, each in seconds.items()), default=float("inf"))
    return taken <= SHORT_RUN_SECONDS or taken / bucket <= (1 - _LEAST_GAIN) * cheapest


def _answers(
    run: Run, inputs: Mapping[str, Array], bucket: int, *, is_short: bool, is_brief: bool = False
) -> tuple[dict[str, Array], bool]:
    """Golden answers of one bucket, and whether every position and every neighbour gave the same bytes.

    Each run takes the golden rows in a circle from another start, so that every position of the bucket is used and
    every row meets several positions and neighbours.
    """
    rows = len(next(iter(inputs.values())))
    answers: dict[str, Array] = {}
    is_known, is_steady = np.zeros(rows, np.bool_), True
    for shift in range(0, rows, bucket) if is_brief else _shifts(bucket, rows, is_short=is_short):
        order = (np.arange(bucket) + shift) % rows
        started = time.perf_counter()
        outputs = run({name: np.ascontiguousarray(array[order]) for name, array in inputs.items()})
        pause(time.perf_counter() - started)
        repeated = is_known[order]
        for name, array in outputs.items():
            kept = answers.setdefault(name, np.full((rows, *array.shape[1:]), _nothing(array), array.dtype))
            is_steady = is_steady and content(kept[order[repeated]]) == content(array[repeated])
            kept[order] = array
            is_steady = is_steady and content(kept[order]) == content(array)  # a row may stand in a batch twice
        is_known[order] = True
    return answers, is_steady


def _nothing(array: Array) -> Any:
    """Return what stands where no answer is yet."""
    return b"" if array.dtype == object else 0


def _shifts(bucket: int, rows: int, *, is_short: bool) -> Sequence[int]:
    """Where the runs of a bucket start in the golden rows; of long runs each row is in one, and a few are in two."""
    if bucket >= rows:
        return [shift * rows // _SHIFTS for shift in range(_SHIFTS)]
    if not is_short:
        return [*range(0, rows, bucket), 0 if bucket == 1 else 1]
    # Of one row each runs twice, or an engine that never repeats itself would look steady.
    return range(2 * rows if bucket == 1 else rows)


def _agreeing(answers: Mapping[int, Mapping[str, Array]], steady: Sequence[int], *, may_pad: bool) -> tuple[int, ...]:
    """The set with the first bucket if it has others in it, else the largest set (of the largest buckets on a tie).

    Where lone rows may not be padded, since a run is long, it is the set with the first bucket in any case.
    """
    sets: dict[bytes, list[int]] = {}
    for bucket in steady:
        sets.setdefault(b"".join(content(array) for array in answers[bucket].values()), []).append(bucket)
    if not sets:
        return ()
    first = next(iter(sets.values()))
    if first[0] == next(iter(answers)) and (len(first) > 1 or not may_pad):
        return tuple(first)
    largest = max(sets.values(), key=lambda agreeing: (len(agreeing), agreeing[-1]))
    return tuple(largest)


def deviation(first: Mapping[str, Array], other: Mapping[str, Array]) -> float:
    """Return how far the float outputs of two runs are apart, relative to the largest value of each."""
    largest = 0.0
    for name, expected in first.items():
        if np.issubdtype(expected.dtype, np.floating) and expected.size:
            scale = float(np.abs(expected).max()) or 1.0
            largest = max(largest, float(np.abs(other[name].astype(np.float64) - expected).max()) / scale)
    return largest


def golden_batch(inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """A batch of `rows` golden rows, taken in a circle."""
    return {name: np.resize(array, (rows, *array.shape[1:])) for name, array in inputs.items()}


def median(values: Sequence[float]) -> float:
    """Return the median of some numbers; numpy's imports its masked arrays, a twentieth of all that a start does."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def median_seconds(run: Run, inputs: Mapping[str, Array], bucket: int) -> float:
    """Median seconds of one run of `bucket` golden rows."""
    return median(_times(run, inputs, bucket))


def answers_agree(one: Run, other: Run, inputs: Mapping[str, Array], bucket: int) -> bool:
    """Whether two ways to run `bucket` golden rows give the same bytes."""
    batch = golden_batch(inputs, bucket)
    first, second = one(batch), other(batch)
    return all(content(array) == content(second[name]) for name, array in first.items())


def _times(run: Run, inputs: Mapping[str, Array], bucket: int) -> list[float]:
    batch = golden_batch(inputs, bucket)
    times: list[float] = []
    while len(times) < _FEWEST_RUNS or (len(times) < _MOST_RUNS and sum(times) < _TIMED_SECONDS):
        started = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - started)
        if times[-1] > LONGEST_RUN_SECONDS:
            break
    return times
