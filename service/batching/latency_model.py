"""Expected seconds of work before an engine: one run of each bucket, measured at load and kept up to date.

The batcher consults it before it promises an answer. Knows numbers, no requests.
"""

import time
from bisect import bisect_left
from collections.abc import Collection, Mapping

# A promise uses at most this much of the time that is left. Under overload the queue is always as long as admission
# lets it be: without a margin every accepted request would be answered at its deadline, half of them just after it.
SAFE_SHARE = 0.7
# What one more batch costs besides its run: a turn of the loop, the call into the engine, caches gone cold. That is
# a third of this on an idle machine, but with two workers under load, batches cut to save less made answers 7 % dearer.
_BATCH_SECONDS = 100e-6
# Short runs are preferred where they hold this many rows, and a row costs at most so many times what it costs in longer
# ones, its share of the batch included: what a run in the worker thread gains is lost in handing it over. One worker
# with 128 callers answers 25,000 a second so, and 19,000 otherwise.
_NEARLY, _ENOUGH_ROWS = 1.25, 8
# Weight of the newest run. About ten runs change the mind; one that was disturbed does not.
_WEIGHT = 0.2
# A bucket whose runs take this many times as long as at load counts as slow.
_SLOW = 1.25


class LatencyModel:
    """Expected seconds of the work that waits for an engine.

    Args:
        measured: seconds of one run of each bucket, as measured at load.
        short_seconds: runs that are shorter are short.
    """

    def __init__(self, measured: Mapping[int, float], short_seconds: float = 0.0) -> None:
        self._short_seconds = short_seconds
        self._expected: dict[int, float] = {}
        self._slow: set[int] = set()
        self._busy_until = 0.0
        self.measure(measured)

    def measure(self, measured: Mapping[int, float]) -> None:
        """Take over the seconds of one run of each bucket; what is expected of those that were known stays."""
        self._measured = dict(measured)
        self._expected = {bucket: self._expected.get(bucket, seconds) for bucket, seconds in measured.items()}
        self._buckets = sorted(measured)
        self._largest = self._buckets[-1]
        # An idle engine can promise any one batch to a request that has this long, without a closer look.
        self.easy_seconds = max(measured.values()) / SAFE_SHARE
        self._short = frozenset(bucket for bucket, seconds in measured.items() if seconds < self._short_seconds)
        self._first_rows = _first_rows(measured)
        self._most_rows = _most_rows(measured, self._short)

    def bucket_seconds(self, bucket: int) -> float:
        """Expected seconds of one run of `bucket`."""
        return self._expected[bucket]

    def bucket_for(self, rows: int) -> int:
        """The smallest bucket that holds `rows`, or the largest there is."""
        return self._buckets[bisect_left(self._buckets, min(rows, self._largest))]

    def rows_to_take(self, waiting: int) -> int:
        """How many of the rows that wait make the next batch, if all are to be answered soonest.

        All of them, unless their bucket is much larger and two smaller ones are measured to take less time than it, or
        runs that are short take them about as fast.
        """
        return self._first_rows[min(waiting, self._most_rows)]

    def is_short(self, bucket: int) -> bool:
        """Whether a run of `bucket` is short on a device that is as fast as it was at load."""
        return bucket in self._short

    def can_promise(self, seconds: float, left: float) -> bool:
        """Whether work of `seconds` can be promised when `left` seconds are left until its deadline."""
        return seconds <= left * SAFE_SHARE

    def run_seconds(self, rows: int) -> float:
        """Seconds that a batch of `rows`, or the largest if they are more, needs at least."""
        bucket = self.bucket_for(rows)
        return min(self._expected[bucket], self._measured[bucket])

    def safe_rows(self, left: float) -> int:
        """The largest batch that can be promised when `left` seconds are left; 0 when not even the smallest can."""
        return max((bucket for bucket in self._buckets if self.can_promise(self.run_seconds(bucket), left)), default=0)

    def busy_seconds(self) -> float:
        """Expected seconds until the running batch ends; 0 when none runs."""
        return max(0.0, self._busy_until - time.perf_counter())

    def started(self, bucket: int) -> None:
        """A run of `bucket` starts now."""
        self._busy_until = time.perf_counter() + self._expected[bucket]

    def finished(self, bucket: int, seconds: float) -> None:
        """A run of `bucket` took `seconds`."""
        self._expected[bucket] += _WEIGHT * (seconds - self._expected[bucket])
        self._busy_until = 0.0
        if self._expected[bucket] > _SLOW * self._measured[bucket]:
            self._slow.add(bucket)
        if self._slow:
            self._recover(seconds / self._measured[bucket])

    def seconds_for(self, rows: int, *, is_idle: bool) -> float:
        """Expected seconds until `rows` rows, which include all that wait before them, have been answered.

        An idle engine is believed to be as fast as it was at load, should it have been slower since: were it not,
        one disturbed run could have every later request refused and nothing would ever correct that.
        """
        seconds = self._total(self._expected, rows)
        if is_idle:
            return min(seconds, self._total(self._measured, rows))
        return seconds + self.busy_seconds()

    def _total(self, seconds: Mapping[int, float], rows: int) -> float:
        full, rest = divmod(rows, self._largest)
        return full * seconds[self._largest] + (seconds[self.bucket_for(rest)] if rest else 0.0)

    def _recover(self, slowness: float) -> None:
        """Believe of slow buckets, too, what the last run showed of the device.

        A bucket that is thought too slow is not run, and nothing else would ever correct that: after a moment in which
        the process got no processor, a service would refuse a part of its load for good.
        """
        for bucket in tuple(self._slow):
            too_much = self._expected[bucket] - self._measured[bucket] * slowness
            self._expected[bucket] -= _WEIGHT * max(0.0, too_much)
            if self._expected[bucket] <= _SLOW * self._measured[bucket]:
                self._slow.remove(bucket)


def _first_rows(seconds: Mapping[int, float]) -> list[int]:
    """Return for each number of waiting rows, 0 to the largest bucket, how many the fastest way takes first."""
    buckets = sorted(seconds)
    first, fastest = [0], [0.0]
    for rows in range(1, buckets[-1] + 1):
        best, cost = rows, seconds[buckets[bisect_left(buckets, rows)]]
        for bucket in reversed(buckets[: bisect_left(buckets, rows)]):
            split = seconds[bucket] + _BATCH_SECONDS + fastest[rows - bucket]
            if split < cost:
                best, cost = bucket, split
        first.append(best)
        fastest.append(cost)
    return first


def _most_rows(seconds: Mapping[int, float], short: Collection[int]) -> int:
    """Return the rows of the largest short run where that costs no more for each row than longer runs do, or nearly."""
    row_seconds = {bucket: (run_seconds + _BATCH_SECONDS) / bucket for bucket, run_seconds in seconds.items()}
    most = max(short, default=0)
    is_enough = most >= _ENOUGH_ROWS and row_seconds[most] <= _NEARLY * min(row_seconds.values())
    return most if is_enough else max(seconds)
