"""What is measured of one training, on made-up data."""

import pytest
import torch
from torch import nn

from foldserve.training.studies.arms import Arm, Case
from foldserve.training.studies.measurement import measure, saturated
from foldserve.training.studies.runner import summary

CPU = torch.device("cpu")
SHORT = {"epochs": 2, "batch_size": 64, "learning_rate": 0.5}
ARM = Arm(name="short", options=SHORT)


def test_a_measurement_has_every_epoch_and_both_kinds_of_statistics(made_up):
    """The book's figures, the same weights judged twice, and the sigmoids of all four layers before and after."""
    found = measure(Case(ARM, 3), made_up, CPU)
    assert [record["epoch"] for record in found["epochs"]] == [1, 2]
    assert all(0 <= record["population_accuracy"] <= 1 for record in found["epochs"])
    assert set(found["test_accuracy"]) == {"running", "population"}
    assert found["test_accuracy"]["running"] == found["epochs"][-1]["test_accuracy"]
    assert set(found["train_accuracy"]) == {"population"}
    for when in ("before", "after"):
        assert list(found["saturated"][when]) == ["sigmoid1", "sigmoid2", "sigmoid3", "sigmoid4"]
    assert (found["seed"], found["recipe"]["seed"], found["train_rows"], found["diverged"]) == (3, 3, 352, None)


def test_measuring_twice_gives_the_same_figures_with_dropout_too(made_up):
    """The seed decides noise and dropout as well; only the clock differs."""
    arm = Arm(name="dropout", options={**SHORT, "epochs": 1}, network="dropout")
    first, second = (measure(Case(arm, 1), made_up, CPU) for _ in range(2))
    assert first["epochs"][0]["loss"] == second["epochs"][0]["loss"]
    assert first["test_accuracy"] == second["test_accuracy"]


def test_a_divergence_is_a_finding(made_up):
    """The measurement ends with the reason and without accuracies."""
    arm = Arm(name="too-fast", options={**SHORT, "learning_rate": 1e37, "norm": "none"})
    found = measure(Case(arm, 0), made_up, CPU)
    assert "the loss became" in found["diverged"]
    assert "test_accuracy" not in found
    assert "too-fast seed 0: the loss became" in summary(found)


def test_saturated_counts_the_flat_parts_of_a_sigmoid():
    """|x| = 4 is flat and 3 is not: of five values two."""
    network = nn.Sequential(nn.Flatten(), nn.Sigmoid())
    images = torch.zeros(1, 1, 1, 5)
    network[0] = nn.Sequential(nn.Flatten(), Fixed(torch.tensor([[-4.0, -3.0, 0.0, 3.0, 4.0]])))
    assert saturated(network, images)["1"] == pytest.approx(0.4)


class Fixed(nn.Module):
    """Answers the same whatever comes."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, _):
        return self.answer
