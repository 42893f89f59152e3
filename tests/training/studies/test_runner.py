"""Cases trained one after another or side by side, and a study that is continued."""

import dataclasses
import signal

import pytest
import torch

from foldserve.training.errors import ConfigError
from foldserve.training.studies.arms import Arm, Case, cases_of
from foldserve.training.studies.runner import measure_cases
from foldserve.training.studies.store import Store

CPU = torch.device("cpu")
SHORT = {"epochs": 2, "batch_size": 64, "learning_rate": 0.5}
ARM = Arm(name="short", options=SHORT)


def test_an_interrupted_study_goes_on_with_what_is_missing(tmp_path, made_up):
    """Ctrl-C after the first case keeps it; the second call trains the other two alone."""
    arm = dataclasses.replace(ARM, options={**SHORT, "epochs": 1})
    store, cases, lines = Store(tmp_path / "runs.jsonl"), cases_of([arm], 3), []

    def interrupt_after_one(line):
        lines.append(line)
        if line.startswith("1/3"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        measure_cases(cases, store, CPU, made_up, report=interrupt_after_one)
    assert list(store.read()) == ["short/0"]
    found = measure_cases(cases, store, CPU, made_up, report=lines.append)
    assert list(found) == ["short/0", "short/1", "short/2"]
    assert sum(line.startswith(("1/2", "2/2")) for line in lines) == 2


def test_figures_of_another_recipe_are_not_taken_for_this_one(tmp_path, made_up):
    """The same name with other options is refused, and the message says which option."""
    store = Store(tmp_path / "runs.jsonl")
    arm = dataclasses.replace(ARM, options={**SHORT, "epochs": 1})
    measure_cases([Case(arm, 0)], store, CPU, made_up, report=lambda _: None)
    with pytest.raises(ConfigError, match="short/0 was measured with epochs 1, now it is 2"):
        measure_cases([Case(ARM, 0)], store, CPU, made_up, report=lambda _: None)


@pytest.mark.slow
def test_side_by_side_gives_the_same_figures(tmp_path, made_up):
    """Two processes measure what one measures."""
    arm = dataclasses.replace(ARM, options={**SHORT, "epochs": 1})
    cases = cases_of([arm], 2)
    alone = measure_cases(cases, Store(tmp_path / "alone.jsonl"), CPU, made_up, report=lambda _: None)
    together = measure_cases(cases, Store(tmp_path / "together.jsonl"), CPU, made_up, jobs=2, report=lambda _: None)
    for key, found in alone.items():
        assert found["test_accuracy"] == together[key]["test_accuracy"]
        assert found["epochs"][0]["loss"] == together[key]["epochs"][0]["loss"]
