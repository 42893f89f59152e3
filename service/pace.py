"""How long will it take: the time of one run of each bucket, measured at load and kept up to date.

The batcher asks it before it promises an answer. Knows numbers, no requests.
"""

import time
from bisect import bisect_left
from collections.abc import Mapping

# Weight of the newest run. About ten runs change the mind; one that was disturbed does not.
_WEIGHT = 0.2


class Pace:
    """Expected seconds of the work that lies ahead of an engine.

    Args:
        measured: seconds of one run of each bucket, as measured at load.
    """

    def __init__(self, measured: Mapping[int, float]) -> None:
        self._measured = dict(measured)
        self._expected = dict(measured)
        self._buckets = sorted(measured)
        self._largest = self._buckets[-1]
        self._busy_until = 0.0

    def bucket_seconds(self, bucket: int) -> float:
        """Expected seconds of one run of `bucket`."""
        return self._expected[bucket]

    def started(self, bucket: int) -> None:
        """A run of `bucket` starts now."""
        self._busy_until = time.perf_counter() + self._expected[bucket]

    def finished(self, bucket: int, seconds: float) -> None:
        """A run of `bucket` took `seconds`."""
        self._expected[bucket] += _WEIGHT * (seconds - self._expected[bucket])
        self._busy_until = 0.0

    def seconds_for(self, rows: int, *, is_idle: bool) -> float:
        """Expected seconds until `rows` rows, which include all that wait before them, have been answered.

        An idle engine is believed to be as fast as it was at load, should it have been slower since: were it not,
        one disturbed run could have every later request refused and nothing would ever correct that.
        """
        full, rest = divmod(rows, self._largest)
        seconds = full * self._expected[self._largest]
        if rest:
            bucket = self._buckets[bisect_left(self._buckets, rest)]
            seconds += self._expected[bucket]
        if is_idle:
            return min(seconds, self._at_load(full, rest))
        return seconds + max(0.0, self._busy_until - time.perf_counter())

    def _at_load(self, full: int, rest: int) -> float:
        seconds = full * self._measured[self._largest]
        return seconds + (self._measured[self._buckets[bisect_left(self._buckets, rest)]] if rest else 0.0)
