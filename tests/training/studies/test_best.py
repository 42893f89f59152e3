"""The report on the preset `best`."""

from foldserve.training.studies import best
from foldserve.training.studies.arms import cases_of
from foldserve.training.studies.selection import CANDIDATES
from tests.support.measurements import measured_as


def test_the_report_on_best_ranks_candidates_and_judges_the_goal():
    """The held-out accuracy alone ranks; the mean over seeds meets the goal or misses it."""
    candidates, chosen = cases_of(CANDIDATES, 1), cases_of([best.BEST], 10)
    found = {case.key: measured_as(case, population=0.88 + 0.002 * at) for at, case in enumerate(candidates)}
    found |= {case.key: measured_as(case, population=0.92) for case in chosen}
    files = best.report_files([*candidates, *chosen], found)
    text = files["README.md"].decode()
    assert "| yes |" in text
    assert "n = 10" in text
    few = {case.key: found[case.key] for case in chosen[:3]}
    assert "| not judged |" in best.report_files(chosen, few)["README.md"].decode()
    first = text.split("held out, running |")[1].splitlines()[2]
    assert f"{0.88 + 0.002 * (len(candidates) - 1) - 0.0035:.4f}" in first
    assert files["best.png"].startswith(b"\x89PNG")
    assert "No seed is finished yet." in best.report_files(candidates, found)["README.md"].decode()


def test_the_exported_statistics_are_chosen_on_images_held_out():
    """Better running statistics there fail the gate, whatever the test set says; equal ones leave the population's."""
    candidates = cases_of(CANDIDATES, 1)
    for running, kind, is_passed in ((0.80, "population", True), (0.885, "population", True), (0.95, "running", False)):
        measured = [measured_as(case) for case in candidates]
        for each in measured:
            each["test_accuracy"] = {"running": running, "population": 0.885}
        assert best.chosen_statistics(measured) == kind
        (gate,) = best.statistics_gates(measured)
        assert gate.is_passed is is_passed
    assert best.statistics_gates([]) == []
