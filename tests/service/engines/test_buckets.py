"""Which batch sizes are served, with engines whose answers depend on the batch in known ways."""

from collections.abc import Mapping

import numpy as np
import pytest

from foldserve.service.engines.buckets import answers_agree, profile_buckets

INPUTS = {"x": np.arange(1, 17, dtype=np.float32)[:, None]}
BUCKETS = (1, 2, 4, 8, 16, 32)


def profile(answer, buckets=BUCKETS, **known):
    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": answer(inputs["x"].copy())}

    return profile_buckets(run, INPUTS, buckets, **known)


def with_last_bit_where(condition):
    """An engine whose answers have another last bit in batches of which `condition` is true."""

    def answer(rows: np.ndarray) -> np.ndarray:
        return np.nextafter(rows, np.float32(1e9)) if condition(len(rows)) else rows

    return answer


def test_buckets_that_agree_are_all_served():
    """Nothing is left out without a reason, and the answers are in golden order."""
    result = profile(lambda rows: rows * 2)
    assert result.buckets == BUCKETS
    assert result.batch_invariant
    assert result.largest_deviation == 0
    assert set(result.seconds) == set(BUCKETS)
    for bucket in BUCKETS:
        assert (result.answers[bucket]["y"] == INPUTS["x"] * 2).all()


def test_a_bucket_that_differs_in_the_last_bit_is_not_served():
    """One bit in one bucket is enough, and the deviation says how far off it was."""
    result = profile(with_last_bit_where(lambda rows: rows == 8))
    assert result.buckets == (1, 2, 4, 16, 32)
    assert result.batch_invariant
    assert 0 < result.largest_deviation < 1e-6


def test_what_is_known_is_proved_once_more_and_no_oftener():
    """Every bucket answers every golden row once; one that gives other bytes is still found and left out."""
    seen: list[np.ndarray] = []

    def answer(rows: np.ndarray) -> np.ndarray:
        seen.append(rows.ravel())
        return with_last_bit_where(lambda many: many == 8)(rows)

    result = profile(answer, known_seconds=dict.fromkeys(BUCKETS, 1e-4), is_brief=True)
    assert result.buckets == (1, 2, 4, 16, 32)
    for bucket in BUCKETS:
        asked = np.concatenate([rows for rows in seen if len(rows) == bucket])
        assert set(asked) == set(INPUTS["x"].ravel())
        assert len(asked) == max(bucket, len(INPUTS["x"]))


def test_when_bucket_1_stands_alone_the_largest_agreeing_set_is_served():
    """A matrix times a vector may well be another kernel: lone rows are then padded to the next bucket."""
    result = profile(with_last_bit_where(lambda rows: rows == 1))
    assert result.buckets == (2, 4, 8, 16, 32)
    assert result.batch_invariant


def test_bucket_1_and_its_company_win_over_a_larger_set():
    """As long as bucket 1 is not alone, lone requests are not padded."""
    assert profile(with_last_bit_where(lambda rows: rows >= 4)).buckets == (1, 2)


def test_an_answer_that_depends_on_the_position_is_found():
    """The last row of a batch is computed by another code path in many kernels: every position is tried."""

    def answer(rows: np.ndarray) -> np.ndarray:
        if len(rows) == 32:
            rows[-1] = np.nextafter(rows[-1], np.float32(1e9))
        return rows

    assert profile(answer).buckets == (1, 2, 4, 8, 16)


def test_an_answer_that_depends_on_the_neighbours_is_found():
    """A bucket in which rows see one another is not served."""
    result = profile(lambda rows: rows + (np.float32(1e-3) * rows[0] if len(rows) == 4 else 0))
    assert result.buckets == (1, 2, 8, 16, 32)


def test_an_engine_that_never_repeats_itself_is_served_and_said_to_vary():
    """There is nothing to choose from, so the profile tells the truth instead."""
    calls = iter(range(10**6))
    result = profile(lambda rows: rows + np.float32(next(calls)))
    assert result.buckets == BUCKETS
    assert not result.batch_invariant
    assert result.largest_deviation > 0


def test_two_ways_to_run_are_compared_byte_for_byte():
    """More threads may only be used where no byte changes."""
    alike, other = ({"y": INPUTS["x"] * 2}, {"y": np.nextafter(INPUTS["x"] * 2, np.float32(1e9))})
    assert answers_agree(lambda batch: alike, lambda batch: dict(alike), INPUTS, 4)
    assert not answers_agree(lambda batch: alike, lambda batch: other, INPUTS, 4)


def measured(answer, seconds: Mapping[int, float]) -> tuple[tuple[int, ...], list[int]]:
    """The buckets that are served where runs take so many seconds, and the sizes of all runs."""
    sizes = []

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        sizes.append(len(inputs["x"]))
        return {"y": answer(inputs["x"].copy())}

    return profile_buckets(run, INPUTS, BUCKETS, dict(zip(BUCKETS, seconds, strict=True))).buckets, sizes


def same(rows: np.ndarray) -> np.ndarray:
    return rows


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((0.05, 0.10, 0.20, 0.40, 0.80, 1.60), (1,)),  # a row costs the same in any batch: a large convolution
        ((0.05, 0.08, 0.12, 0.23, 0.40, 0.80), (1, 2, 4)),  # cheaper by a tenth up to 4
        ((0.001, 0.002, 0.004, 0.008, 0.016, 0.029), BUCKETS),  # short: all are served as before
        ((0.02, 0.029, 0.06, 0.12, 0.24, 0.48), (1, 2)),
    ],
)
def test_long_buckets_are_left_out_unless_a_row_is_cheaper_in_them(seconds, expected):
    """What is left out is not run even once: it would take its time and its memory."""
    buckets, sizes = measured(same, seconds)
    assert buckets == expected
    assert max(sizes) == expected[-1]


def test_a_long_lone_run_is_never_padded():
    """Another kernel for one row costs a short model a padded batch, and a long one nothing."""
    lone = with_last_bit_where(lambda rows: rows == 1)
    assert measured(lone, (0.05, 0.06, 0.08, 0.11, 0.16, 0.24))[0] == (1,)
    assert measured(lone, (0.001, 0.002, 0.004, 0.008, 0.016, 0.029))[0] == (2, 4, 8, 16, 32)


def test_every_golden_row_is_in_a_long_run_and_some_are_in_two():
    """The proof is as whole as for short runs; only the repetitions are fewer."""
    buckets, sizes = measured(same, (0.05, 0.08, 0.12, 0.23, 0.40, 0.80))
    assert buckets == (1, 2, 4)
    assert [sizes.count(bucket) for bucket in buckets] == [17, 9, 5]
    calls = iter(range(10**6))
    varying = profile_buckets(lambda inputs: {"y": inputs["x"] + np.float32(next(calls))}, INPUTS, (1, 2), {1: 1, 2: 1})
    assert not varying.batch_invariant
