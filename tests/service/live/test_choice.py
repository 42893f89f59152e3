"""Which versions a model serves, from plain values: one row for each thing that decides."""

import pytest

from foldserve.service.artifacts.triton_config import VersionPolicy
from foldserve.service.live.choice import Choice, left_out
from foldserve.service.live.state import ModelState, Shadow

PINNED = ModelState(labels={"latest": 2})


@pytest.mark.parametrize(
    ("choice", "candidates"),
    [
        (Choice(ModelState(), (1, 2, 3)), [3, 2, 1]),
        (Choice(ModelState(), (1, 2, 3), now=2), [3, 2, 1]),
        (Choice(ModelState(), (1, 3), now=2), [3, 2, 1]),
        (Choice(ModelState(), (1, 2, 3), now=2, promotes_new=False), [2, 3, 1]),
        (Choice(ModelState(), (1, 2, 3), held_back={3}), [2, 1]),
        (Choice(PINNED, (1, 2, 3), now=3), [2, 3, 1]),
        (Choice(PINNED, (1, 2, 3), held_back={2}), [2, 3, 1]),
        (Choice(PINNED, (1, 2, 3), now=3, is_declared=True), [2, 3]),
        (Choice(ModelState(), (1, 2, 3), policy=VersionPolicy(only=(1,)), now=3), [3, 2, 1]),
    ],
)
def test_candidates_for_latest(choice, candidates):
    """The first of them that can be had is taken."""
    assert choice.candidates() == candidates


@pytest.mark.parametrize(
    ("choice", "loaded", "lost", "missing"),
    [
        (Choice(ModelState(), (1, 2, 3)), {}, {}, [3, 2, 1]),
        (Choice(ModelState(), (1, 2, 3), now=2), {2}, {}, [3]),
        (Choice(ModelState(), (1, 2, 3), now=2), {}, {2}, [3, 2]),
        (Choice(ModelState(labels={"stable": 1}), (1, 2, 3), now=3), {3}, {}, [1]),
        (Choice(ModelState(labels={"stable": 7}), (1, 2, 3), now=3), {3}, {}, []),
        (Choice(ModelState(loaded=(1,), shadow=Shadow(2, 0, 1)), (1, 2, 3), now=3), {3}, {}, [1, 2]),
        (Choice(ModelState(), (1, 2, 3), policy=VersionPolicy(newest=2), now=3), {3}, {}, [2]),
        (Choice(ModelState(is_unloaded=True), (1, 2, 3)), {}, {}, []),
    ],
)
def test_versions_to_load(choice, loaded, lost, missing):
    """Better ones than the one that serves, then what labels, operators, a comparison and the policy want."""
    assert choice.missing(loaded, lost) == missing


def test_latest_is_the_best_that_can_be_had_or_the_one_that_is_lost():
    """Nothing takes the place of a version that serves elsewhere until its files are back."""
    choice = Choice(ModelState(), (1, 2, 3), now=2)
    assert choice.latest({1, 2, 3}, {}) == 3
    assert choice.latest({1}, {2}) == 2
    assert choice.latest({1}, {3}) == 1
    assert choice.latest({}, {}) is None


def test_the_newest_versions_are_no_reason_to_leave_others_out():
    """A policy that names versions is."""
    policies = {"a": VersionPolicy(only=(1,)), "b": VersionPolicy(newest=1)}
    assert set(left_out({"a": [1, 2], "b": [1, 2]}, policies)) == {("a", 2)}
