"""Cases trained one after another or side by side, and a study that is continued."""

import dataclasses
import signal

import pytest
import torch

from foldserve.training.errors import ConfigError
from foldserve.training.studies.arms import Arm, Case, cases_of
from foldserve.training.studies.runner import measure_cases
from foldserve.training.studies.store import Store
from tests.support.measurements import ORIGIN

CPU = torch.device("cpu")
SHORT = {"epochs": 2, "batch_size": 64, "learning_rate": 0.5}
ARM = Arm(name="short", options=SHORT)
OTHER = {**ORIGIN, "revision": "another+dirty"}


def test_an_interrupted_study_goes_on_with_what_is_missing(tmp_path, made_up):
    """Ctrl-C after the first case keeps it; the second call trains the other two alone."""
    arm = dataclasses.replace(ARM, options={**SHORT, "epochs": 1})
    store, cases, lines = Store(tmp_path / "runs.jsonl"), cases_of([arm], 3), []

    def interrupt_after_one(line):
        lines.append(line)
        if line.startswith("1/3"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        measure_cases(cases, store, CPU, lambda: made_up, ORIGIN, report=interrupt_after_one)
    assert list(store.read()) == ["short/0"]
    assert measure_cases(cases, store, CPU, lambda: made_up, OTHER, report=lines.append) == 2
    assert list(store.read()) == ["short/0", "short/1", "short/2"]
    assert sum(line.startswith(("1/2", "2/2")) for line in lines) == 2
    assert [measured["origin"] for measured in store.read().values()] == [ORIGIN, OTHER, OTHER]


def test_nothing_to_train_is_said_and_needs_no_data(tmp_path, made_up):
    """Where every case is measured, the data are not even loaded."""
    store, lines = Store(tmp_path / "runs.jsonl"), []
    cases = [Case(dataclasses.replace(ARM, options={**SHORT, "epochs": 1}), 0)]
    assert measure_cases(cases, store, CPU, lambda: made_up, ORIGIN, report=lines.append) == 1
    assert measure_cases(cases, store, CPU, lambda: pytest.fail("loaded"), OTHER, report=lines.append) == 0
    assert lines[-1].startswith("nothing to train: ")
    assert store.read()["short/0"]["origin"] == ORIGIN


def test_figures_of_another_recipe_are_not_taken_for_this_one(tmp_path, made_up):
    """The same name with other options is refused, and the message says which option."""
    store = Store(tmp_path / "runs.jsonl")
    arm = dataclasses.replace(ARM, options={**SHORT, "epochs": 1})
    measure_cases([Case(arm, 0)], store, CPU, lambda: made_up, ORIGIN, report=lambda _: None)
    with pytest.raises(ConfigError, match="short/0 was measured with epochs 1, now it is 2"):
        measure_cases([Case(ARM, 0)], store, CPU, lambda: made_up, ORIGIN, report=lambda _: None)


@pytest.mark.slow
def test_side_by_side_gives_the_same_figures(tmp_path, made_up):
    """Two processes measure what one measures."""
    arm = dataclasses.replace(ARM, options={**SHORT, "epochs": 1})
    cases = cases_of([arm], 2)
    alone, together = Store(tmp_path / "alone.jsonl"), Store(tmp_path / "together.jsonl")
    for store, jobs in ((alone, 1), (together, 2)):
        measure_cases(cases, store, CPU, lambda: made_up, ORIGIN, jobs=jobs, report=lambda _: None)
    for key, measured in alone.read().items():
        other = together.read()[key]
        assert measured["test_accuracy"] == other["test_accuracy"]
        assert measured["epochs"][0]["loss"] == other["epochs"][0]["loss"]
