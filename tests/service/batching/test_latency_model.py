"""How many rows make the next batch, against every way there is to share them out."""

import functools

import pytest

from foldserve.service.batching.latency_model import LatencyModel

BUCKETS = (1, 2, 4, 8, 16)
ONE_MORE_BATCH = 100e-6


def by_the_row(seconds: float) -> dict[int, float]:
    """A device that computes one row after the other."""
    return {bucket: bucket * seconds for bucket in BUCKETS}


def shared_out(latency: LatencyModel, rows: int) -> list[int]:
    """The batches in which so many rows are answered if no others arrive."""
    batches = []
    while rows:
        batches.append(latency.rows_to_take(rows))
        rows -= batches[-1]
    return batches


def seconds_of(batches: list[int], seconds: dict[int, float]) -> float:
    """What the batches take, each in the smallest bucket that holds it."""
    runs = sum(seconds[min(bucket for bucket in seconds if bucket >= rows)] for rows in batches)
    return runs + ONE_MORE_BATCH * (len(batches) - 1)


MEASURED = {
    "by the row": by_the_row(1e-3),
    "a device that does not mind": dict.fromkeys(BUCKETS, 1e-3),
    "a jump": {1: 1e-4, 2: 1.1e-4, 4: 1.2e-4, 8: 9e-4, 16: 1e-3},
    "a small network": {1: 23e-6, 2: 33e-6, 4: 55e-6, 8: 100e-6, 16: 180e-6},
    "a larger network": {1: 230e-6, 2: 330e-6, 4: 550e-6, 8: 1000e-6, 16: 1800e-6},
}


@pytest.mark.parametrize("name", MEASURED)
def test_no_other_way_to_share_out_the_rows_is_faster(name: str) -> None:
    """For every number of rows, the batches take as long as the fastest of all ways to cut that number."""
    seconds = MEASURED[name]

    @functools.cache
    def fastest(rows: int) -> float:
        ways = [seconds_of([rows], seconds)]
        ways += [seconds_of([first], seconds) + ONE_MORE_BATCH + fastest(rows - first) for first in range(1, rows)]
        return min(ways)

    latency = LatencyModel(seconds)
    for rows in range(1, BUCKETS[-1] + 1):
        assert seconds_of(shared_out(latency, rows), seconds) == pytest.approx(fastest(rows), rel=1e-9)


def test_buckets_are_filled_where_rows_cost_and_shared_where_they_do_not() -> None:
    """Nine rows fill a bucket of eight first, unless sixteen cost no more than eight do."""
    assert shared_out(LatencyModel(by_the_row(1e-3)), 9) == [8, 1]
    assert shared_out(LatencyModel(dict.fromkeys(BUCKETS, 1e-3)), 9) == [9]


def test_more_than_the_largest_bucket_is_as_much_as_it_holds() -> None:
    """However many rows wait, a batch is what one run can hold."""
    assert LatencyModel(by_the_row(1e-3)).rows_to_take(1_000) == 16


def test_a_bucket_that_was_slow_once_is_believed_again_when_others_are_fast() -> None:
    """Too slow to be run it would never be known again; where the others are slow as well, it stays slow."""
    seconds = by_the_row(1e-3)
    for slowness in (1, 50):
        latency = LatencyModel(seconds)
        latency.finished(16, 10.0)
        assert latency.bucket_seconds(16) > 1.0
        for _ in range(60):
            latency.finished(4, slowness * seconds[4])
        assert latency.bucket_seconds(16) == pytest.approx(slowness * seconds[16], rel=0.3)


def test_short_runs_are_preferred_where_long_ones_are_hardly_faster() -> None:
    """Sixteen rows are taken as eight and eight if only eight are short, unless sixteen together cost much less."""
    latency = LatencyModel(by_the_row(1e-3), short_seconds=0.01)
    assert [latency.is_short(bucket) for bucket in BUCKETS] == [True, True, True, True, False]
    assert shared_out(latency, 16) == [8, 8]
    assert shared_out(LatencyModel({**by_the_row(1e-3), 16: 8e-3}, short_seconds=0.01), 16) == [16]
    assert shared_out(LatencyModel(by_the_row(1.0), short_seconds=0.01), 16) == [16]  # none is short
    assert shared_out(LatencyModel(by_the_row(1e-3), short_seconds=0.003), 16) == [
        16
    ]  # two rows alone are, which is no batch
