"""Finished runs taken into a study with their own figures."""

import pytest
import torch

from foldserve.training.errors import CheckpointError, ConfigError
from foldserve.training.pipeline import train
from foldserve.training.session import start
from foldserve.training.studies.adoption import adopt
from foldserve.training.studies.arms import Arm, Case
from foldserve.training.studies.measurement import measure
from tests.training.conftest import run_config

CPU = torch.device("cpu")
SHORT = {"epochs": 2, "batch_size": 64, "learning_rate": 0.5}
ARM = Arm(name="short", options=SHORT)


def finished_run(folder, dataset, recipe):
    """Leave what `train-and-export` leaves of a training, and return the training."""
    run = start(folder, run_config(recipe, dataset), CPU).run
    trained = train(recipe, dataset, CPU, run.append)
    run.write_weights(trained.weights)
    run.close()
    return trained


def test_a_finished_run_is_taken_in_with_its_own_figures(tmp_path, made_up):
    """What a study would measure of the same recipe is what it has of the run, but for the population's curve."""
    case = Case(ARM, 2)
    trained = finished_run(tmp_path / "run", made_up, ARM.recipe(2))
    found, adopted = adopt(tmp_path / "run", [Case(ARM, 1), case], made_up)
    measured = measure(case, made_up, CPU)
    assert found == case
    assert adopted["test_accuracy"] == measured["test_accuracy"] == dict(trained.test_accuracy)
    assert adopted["train_accuracy"] == measured["train_accuracy"]
    assert adopted["saturated"] == measured["saturated"]
    assert [record["loss"] for record in adopted["epochs"]] == [record["loss"] for record in measured["epochs"]]
    assert set(measured) - set(adopted) == set()


def test_a_run_of_another_recipe_or_an_unfinished_one_is_not_taken_in(tmp_path, made_up):
    """No case fits, and too few epochs: each is refused with the reason."""
    finished_run(tmp_path / "run", made_up, ARM.recipe(2))
    with pytest.raises(ConfigError, match="no training of this study has its recipe"):
        adopt(tmp_path / "run", [Case(ARM, 1)], made_up)
    metrics = tmp_path / "run" / "metrics.csv"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(CheckpointError, match="1 of 2 epochs"):
        adopt(tmp_path / "run", [Case(ARM, 2)], made_up)
