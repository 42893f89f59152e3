"""The reports on made-up measurements: every file, every gate, every answer, and what is said of a cut study."""

import argparse
import csv
import io
import json

import pytest

from foldserve.training.errors import ConfigError
from foldserve.training.studies import best, circles_report, compare, plan
from foldserve.training.studies.arms import cases_of
from foldserve.training.studies.compare_answers import scatter_answer, speed_answer, sweep_answer
from foldserve.training.studies.compare_report import report_files
from foldserve.training.studies.options import check_options
from foldserve.training.studies.published import gates
from foldserve.training.studies.selection import CANDIDATES
from foldserve.training.studies.tables import Spread, csv_bytes, json_bytes, markdown_table

ORIGIN = {
    "command": "python -m training compare",
    "revision": "unknown",
    "environment": {
        "python": "3.11",
        "packages": {"torch": "2", "numpy": "2"},
        "cpu": "any",
        "cpu_count": 2,
        "gpu": None,
    },
}
STUDIES = plan.studies(8)
CASES = plan.in_turns(STUDIES.values())


def measured_as(case, *, loss=0.27, train=0.901, running=0.82, population=0.887, diverged=None):
    """Return a measurement of `case` whose last epoch has these figures; statistics differ a little by seed."""
    recipe = case.arm.recipe(case.seed)
    has_norms = recipe.norm != "none"
    step = (case.seed % 8 - 3.5) / 100
    epochs = [
        {
            "epoch": epoch,
            "loss": loss + 0.3 * (1 - epoch / recipe.epochs),
            "train_accuracy": train - 0.2 * (1 - epoch / recipe.epochs),
            "test_accuracy": running + step,
            **({"population_accuracy": population + step / 10} if has_norms else {}),
        }
        for epoch in range(1, recipe.epochs + 1)
    ]
    tests = {"running": running + step, "population": population + step / 10} if has_norms else {"none": running}
    kind = "population" if has_norms else "none"
    shares = {f"sigmoid{layer}": 0.01 * layer for layer in range(1, 5)}
    found = {"arm": case.arm.name, "seed": case.seed, "recipe": recipe.as_dict(), "epochs": epochs, "seconds": 1.0}
    found |= {"train_rows": 60_000, "diverged": diverged, "saturated": {"before": shares, "after": shares}}
    if diverged:
        return found | {"epochs": []}
    return found | {"test_accuracy": tests, "train_accuracy": {kind: tests[kind] + 0.02}}


def whole_study():
    """Return measurements of every case: like the published ones, without norms slow, and divergence at rate 10."""
    found = {}
    for case in CASES:
        is_none = case.arm.recipe(0).norm == "none"
        is_broken = case.arm.name == "lr-none-10"
        found[case.key] = measured_as(
            case,
            loss=1.9 if is_none else 0.27,
            train=0.5 if is_none else 0.901,
            diverged="the loss became nan in epoch 1 at step 3 of 235; lower --lr" if is_broken else None,
        )
    return found


def test_a_whole_study_gives_every_file():
    """Tables in Markdown, figures as CSV and JSON, and eight pictures that the report shows."""
    files = report_files(CASES, whole_study(), ORIGIN)
    pictures = {name for name in files if name.endswith(".png")}
    text = files["README.md"].decode()
    assert len(pictures) == 8
    assert all(files[name].startswith(b"\x89PNG") and f"({name})" in text for name in pictures)
    assert len(list(csv.DictReader(io.StringIO(files["runs.csv"].decode())))) == len(CASES)
    assert json.loads(files["figures.json"])["planned"] == len(CASES)
    assert "not measured yet" not in text
    assert "the loss became nan" in text
    assert "A batch of 1 is refused: *--batch-size 1 with --norm torch" in text


def test_a_cut_study_says_what_is_missing():
    """One arm alone: the others are named as not measured, and no question is answered."""
    arm = STUDIES["seeds"].arms[0]
    some = {case.key: measured_as(case) for case in cases_of([arm], 3)}
    text = report_files(CASES, some, ORIGIN)["README.md"].decode()
    assert f"3 of {len(CASES)} trainings are measured" in text
    assert "not measured yet" in text
    assert text.count("It waits for trainings that are not measured yet.") == 2
    assert "| **no** |" in text  # three seeds are too few for the gates


def seeds_with(**changes):
    return [measured_as(case, **changes) for case in cases_of([plan.TORCH], 8)]


def test_gates_pass_for_figures_like_the_published_ones():
    """Seven gates, all passed by eight seeds whose statistics scatter ten times less once recomputed."""
    found = gates(seeds_with())
    assert len(found) == 7
    assert all(gate.is_passed for gate in found)


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"loss": 0.29}, "mean final loss"),
        ({"train": 0.91}, "mean final train accuracy"),
        ({"loss": 0.29}, "at most one seed in ten"),
        ({"population": 0.87}, "at least 0.875 in every seed"),
        ({"running": 0.9}, "its mean above"),
    ],
)
def test_each_gate_fails_for_its_reason(change, asked):
    """A figure beyond its bound, and the gate that says so is not passed."""
    failed = [gate.asked for gate in gates(seeds_with(**change)) if not gate.is_passed]
    assert any(asked in each for each in failed)


def test_gates_need_eight_seeds_and_a_smaller_spread():
    """Seven are too few, one that diverged counts against, and equal spreads are not halved."""
    assert not gates(seeds_with()[:7])[0].is_passed
    broken = [*seeds_with()[:7], measured_as(cases_of([plan.TORCH], 8)[7], diverged="nan")]
    assert not gates(broken)[0].is_passed
    same = seeds_with()
    for run in same:
        run["test_accuracy"]["population"] = run["test_accuracy"]["running"] + 0.06
    assert [gate.asked for gate in gates(same) if not gate.is_passed][-1] == "its standard deviation at most half"


def test_answers_follow_the_figures():
    """Yes and no both come out of the same sentences when the figures are exchanged."""
    arms = {}
    for run in whole_study().values():
        arms.setdefault(run["arm"], []).append(run)
    assert speed_answer(arms).startswith("Yes.")
    assert "never in 10 epochs" in speed_answer(arms)
    assert scatter_answer(arms).startswith("Because they are taken with running statistics")
    swept = sweep_answer(arms, "lr-{norm}-{value}", plan.LEARNING_RATES)
    assert "without BN it learns at 0.1, 0.3, 1, 3 and not at 10." in swept
    assert sweep_answer({}, "lr-{norm}-{value}", plan.LEARNING_RATES) == ""
    exchanged = {**arms, plan.TORCH.name: arms[plan.NO_NORM.name], plan.NO_NORM.name: arms[plan.TORCH.name]}
    assert speed_answer(exchanged).startswith("Not by this measure.")
    for run in (*arms[plan.TORCH.name], *arms[plan.SCRATCH.name]):
        run["test_accuracy"]["population"] = run["test_accuracy"]["running"]
    assert scatter_answer(arms).startswith("Not by the running statistics alone")


def test_the_report_on_best_ranks_candidates_and_judges_the_goal():
    """The held-out accuracy alone ranks; the mean over seeds meets the goal or misses it."""
    candidates, chosen = cases_of(CANDIDATES, 1), cases_of([best.BEST], 10)
    found = {case.key: measured_as(case, population=0.88 + 0.002 * at) for at, case in enumerate(candidates)}
    found |= {case.key: measured_as(case, population=0.91) for case in chosen}
    files = best.report_files([*candidates, *chosen], found, ORIGIN)
    text = files["README.md"].decode()
    assert "is reached (0.90" in text
    assert "n = 10" in text
    few = {case.key: found[case.key] for case in chosen[:3]}
    assert "not judged before 10 seeds" in best.report_files(chosen, few, ORIGIN)["README.md"].decode()
    first = text.split("held-out accuracy |")[1].splitlines()[2]
    assert f"{0.88 + 0.002 * (len(candidates) - 1) - 0.0035:.4f}" in first
    assert files["best.png"].startswith(b"\x89PNG")
    assert "No seed is finished yet." in best.report_files(candidates, found, ORIGIN)["README.md"].decode()


def test_circles_report_has_tables_and_pictures(tmp_path):
    """Two seeds of a few steps leave every file, and a single seed is refused."""
    circles_report.report(tmp_path, 2, steps=10, tell=lambda _: None)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "curves.png",
        "data.png",
        "figures.json",
        "regions.png",
        "runs.csv",
    }
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 1 + 8
    with pytest.raises(ConfigError, match="--seeds 1"):
        circles_report.report(tmp_path, 1)


def test_report_only_trains_nothing(tmp_path, capsys):
    """The command writes a report on an empty store, with empty pictures and tables, and says where."""
    parser = argparse.ArgumentParser()
    compare.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["compare", "--report-only", "--out", str(tmp_path), "--device", "cpu"])
    arguments.run(arguments)
    assert "README.md" in capsys.readouterr().out
    assert not (tmp_path / "runs.jsonl").exists()
    assert f"0 of {len(CASES)} trainings are measured" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("flag", ["seeds", "jobs"])
def test_counts_below_one_are_refused(flag):
    """The message names the flag."""
    arguments = argparse.Namespace(**{"seeds": 1, "jobs": 1, "device": "cpu", flag: 0})
    with pytest.raises(ConfigError, match=f"--{flag} 0: expected at least 1"):
        check_options(arguments)


def test_spread_of_a_sample():
    """Mean, deviation with divisor n - 1, range; one value has no deviation and none is refused."""
    spread = Spread.of([3.0, 1.0, 2.0])
    assert (spread.n, spread.mean, spread.sd, spread.least, spread.most) == (3, 2.0, 1.0, 1.0, 3.0)
    assert Spread.of([5.0]).sd == 0.0
    assert spread.text(1) == "2.0 ± 1.0 [1.0, 3.0]"
    with pytest.raises(ConfigError, match="no values"):
        Spread.of([])


def test_tables_are_well_formed():
    """Markdown has a line of marks; CSV takes the columns of all rows; JSON refuses what is no number."""
    assert markdown_table(("a", "b"), [(1, 2)]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"
    assert csv_bytes([{"a": 1}, {"b": 2}]) == b"a,b\n1,\n,2\n"
    with pytest.raises(ValueError, match="JSON"):
        json_bytes(float("nan"))
