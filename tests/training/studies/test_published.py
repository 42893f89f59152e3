"""The gates on made-up figures: each passes, and fails for its own reason."""

import pytest

from foldserve.training.studies import plan
from foldserve.training.studies.arms import cases_of
from foldserve.training.studies.published import gates
from tests.support.measurements import measured_as, seeds_with


def test_gates_pass_for_figures_like_the_published_ones():
    """Seven gates, all passed by eight seeds whose statistics scatter ten times less once recomputed."""
    found = gates(seeds_with())
    assert len(found) == 7
    assert all(gate.is_passed for gate in found)


@pytest.mark.parametrize(
    ("change", "condition"),
    [
        ({"loss": 0.29}, "mean final loss"),
        ({"train": 0.91}, "mean final train accuracy"),
        ({"loss": 0.29}, "at most one seed in ten"),
        ({"population": 0.87}, "at least 0.875 in every seed"),
        ({"running": 0.9}, "its mean above"),
    ],
)
def test_each_gate_fails_for_its_reason(change, condition):
    """A figure beyond its bound, and the gate that says so is not passed."""
    failed = [gate.condition for gate in gates(seeds_with(**change)) if not gate.is_passed]
    assert any(condition in each for each in failed)


def test_gates_need_eight_seeds_and_a_smaller_spread():
    """Seven are too few, one that diverged counts against, and equal spreads are not halved."""
    assert not gates(seeds_with()[:7])[0].is_passed
    broken = [*seeds_with()[:7], measured_as(cases_of([plan.TORCH], 8)[7], diverged="nan")]
    assert not gates(broken)[0].is_passed
    same = seeds_with()
    for run in same:
        run["test_accuracy"]["population"] = run["test_accuracy"]["running"] + 0.06
    assert [gate.condition for gate in gates(same) if not gate.is_passed][-1] == "its standard deviation at most half"
