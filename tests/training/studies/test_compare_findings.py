"""The findings follow the figures."""

from foldserve.training.studies import plan
from foldserve.training.studies.compare_findings import scatter_finding, speed_finding, sweep_finding
from tests.support.measurements import whole_study


def test_answers_follow_the_figures():
    """Yes and no both come out of the same sentences when the figures are exchanged."""
    arms = {}
    for run in whole_study().values():
        arms.setdefault(run["arm"], []).append(run)
    assert speed_finding(arms).startswith("Yes.")
    assert "never in 10 epochs" in speed_finding(arms)
    assert scatter_finding(arms).startswith("Because they are taken with running statistics")
    swept = sweep_finding(arms, "lr-{norm}-{value}", plan.LEARNING_RATES)
    assert "without BN it learns at 0.1, 0.3, 1, 3 and not at 10." in swept
    assert sweep_finding({}, "lr-{norm}-{value}", plan.LEARNING_RATES) == ""
    exchanged = {**arms, plan.TORCH.name: arms[plan.NO_NORM.name], plan.NO_NORM.name: arms[plan.TORCH.name]}
    assert speed_finding(exchanged).startswith("Not by this measure.")
    for run in (*arms[plan.TORCH.name], *arms[plan.SCRATCH.name]):
        run["test_accuracy"]["population"] = run["test_accuracy"]["running"]
    assert scatter_finding(arms).startswith("Not by the running statistics alone")
