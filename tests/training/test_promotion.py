"""When a new version may go live by itself: McNemar's test against coins that are really tossed."""

import numpy as np
import pytest

from foldserve.training.promotion import Change, compare, promotion_of


def change(lost: int, won: int) -> Change:
    return Change(version=1, before=0.9, after=0.8, lost=lost, won=won)


@pytest.mark.parametrize(("lost", "won"), [(9, 1), (6, 6), (30, 14), (3, 0)])
def test_the_probability_is_that_of_tossed_coins(lost: int, won: int) -> None:
    """A hundred thousand rounds of coins agree with the formula to their own noise."""
    tossed = np.random.default_rng(0).binomial(lost + won, 0.5, 100_000)
    assert change(lost, won).probability == pytest.approx(float((tossed >= lost).mean()), abs=0.006)


def test_what_chance_explains_is_promoted_and_what_it_does_not_waits() -> None:
    """Seven lost and none won is beyond noise, six is not; better is never held back; a word of the publisher wins."""
    assert promotion_of(change(6, 0), is_wanted=False) == {}
    assert promotion_of(change(0, 50), is_wanted=False) == {}
    assert promotion_of(None, is_wanted=False) == {}
    held = promotion_of(change(7, 0), is_wanted=False)["promotion"]
    assert held["promoted"] is False
    assert "McNemar" in held["reason"]
    assert promotion_of(change(7, 0), is_wanted=True)["promotion"]["promoted"] is True


def test_examples_are_compared_one_by_one() -> None:
    """Equal accuracies on different examples are losses and wins all the same."""
    before, after = np.array([True, True, False, False]), np.array([False, True, True, False])
    found = compare(3, before, after)
    assert (found.lost, found.won, found.before, found.after) == (1, 1, 0.5, 0.5)
