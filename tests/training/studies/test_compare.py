"""The command `compare` without a training: what it writes, what it keeps, and how it ends."""

import json
import shutil
from pathlib import Path

import pytest

from foldserve.training import command
from foldserve.training.studies.compare_report import report_files
from foldserve.training.studies.store import Store
from tests.support.measurements import CASES, ORIGIN, whole_study

COMMITTED = Path(__file__).parents[3] / "docs/results"


def compare(folder, *flags):
    return command.main(["compare", "--device", "cpu", "--out", str(folder), *flags])


def stored(folder, measured):
    """Leave `measured` in a store as `compare` does."""
    store = Store(folder / "runs.jsonl")
    store.path.write_text("".join(json.dumps({"key": key, **run}) + "\n" for key, run in measured.items()))
    return store


def test_report_only_trains_nothing(tmp_path, capsys):
    """The command writes a report on an empty store, with empty pictures and tables, and says where."""
    assert compare(tmp_path, "--report-only") == 0
    assert "README.md" in capsys.readouterr().out
    assert not (tmp_path / "runs.jsonl").exists()
    assert f"0 of {len(CASES)} trainings are measured" in (tmp_path / "README.md").read_text()


def test_figures_keep_the_command_revision_and_machine_that_made_them(tmp_path):
    """A report that is written anew, with other flags, by another revision, states what each training had."""
    measured = whole_study()
    other = {**ORIGIN, "revision": "f" * 40 + "+dirty", "command": "foldserve compare --seeds 8 --jobs 2 --compile"}
    for key in list(measured)[:3]:
        measured[key]["origin"] = other
    stored(tmp_path, measured)
    assert compare(tmp_path, "--report-only") == 0
    text = (tmp_path / "README.md").read_text()
    assert "- 3 by `foldserve compare --seeds 8 --jobs 2 --compile` at revision ffffffffffff+dirty; Python 3.11" in text
    assert f"- {len(measured) - 3} by `{ORIGIN['command']}` at revision unknown" in text
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["origins"] == [{**ORIGIN, "figures": len(measured) - 3}, {**other, "figures": 3}]


def test_a_whole_study_is_not_trained_again_and_its_report_stands(tmp_path, capsys, monkeypatch):
    """It says so, needs no data, and touches no file."""
    monkeypatch.setattr("foldserve.training.studies.compare.load", lambda folder: pytest.fail("loaded"))
    stored(tmp_path, whole_study())
    before = (tmp_path / "runs.jsonl").read_bytes()
    assert compare(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "nothing to train" in printed
    assert "14 of 14 gates passed" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["runs.jsonl"]
    assert (tmp_path / "runs.jsonl").read_bytes() == before


@pytest.mark.parametrize("study", ["compare"])
def test_an_edited_figure_of_the_published_study_turns_its_gates_red(tmp_path, capsys, study):
    """The committed figures pass their gates without a training; one loss or accuracy edited, and the command fails."""
    shutil.copy(COMMITTED / study / "runs.jsonl", tmp_path)
    arguments = [study, "--device", "cpu", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    assert "nothing to train" in capsys.readouterr().out
    store = Store(tmp_path / "runs.jsonl")
    key = {"compare": "seeds-torch/3", "best": "best/3"}[study]
    edited = store.read()[key]
    edited["epochs"][-1]["loss"] = 0.9
    edited["test_accuracy"]["population"] = 0.5
    store.add(key, edited)
    assert command.main(arguments) == 1
    assert "gates failed" in capsys.readouterr().err


@pytest.mark.parametrize("study", ["compare", "best"])
def test_the_published_report_is_the_one_of_the_published_trainings(study):
    """Text and figures follow from runs.jsonl alone: made anew they are what is committed."""
    from foldserve.training.studies import best
    from foldserve.training.studies.arms import cases_of
    from foldserve.training.studies.selection import CANDIDATES

    measured = Store(COMMITTED / study / "runs.jsonl").read()
    cases = [*cases_of(CANDIDATES, 1), *cases_of([best.BEST], 10)]
    files = report_files(CASES, measured) if study == "compare" else best.report_files(cases, measured)
    for name in ("README.md", "figures.json", "runs.csv"):
        assert files[name].decode() == (COMMITTED / study / name).read_text(), name
