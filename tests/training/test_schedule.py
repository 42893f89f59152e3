"""The learning rate of each step, and which optimizer moves what."""

import pytest
import torch

from foldserve.training.config import Recipe
from foldserve.training.model import build
from foldserve.training.muon import Muon
from foldserve.training.schedule import hidden_matrices, learning_rate, optimizer_for, set_learning_rate

CPU = torch.device("cpu")


def test_constant_is_the_recipes_rate_at_every_step():
    """The book's recipe changes nothing on the way."""
    assert {learning_rate(Recipe(learning_rate=0.7), step, 40) for step in range(40)} == {0.7}


@pytest.mark.parametrize("steps", [1, 2, 7, 40, 235])
def test_linear_rises_to_the_rate_and_falls_to_almost_nothing(steps):
    """Every step moves the weights, the largest by the recipe's rate, and 0 would come one step after the last."""
    rates = [learning_rate(Recipe(learning_rate=0.5, schedule="linear"), step, steps) for step in range(steps)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.5)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] > 0
    assert peak <= 0.1 * steps
    falling = rates[peak:]
    differences = {round(before - after, 9) for before, after in zip(falling, [*falling[1:], 0.0], strict=True)}
    assert len(differences) == 1


def test_a_rate_in_a_tensor_is_changed_in_place():
    """A captured graph goes on reading the same memory."""
    parameter = torch.nn.Parameter(torch.ones(2))
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD([parameter], lr=rate)
    set_learning_rate(optimizer, 0.025)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.025)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("muon", Muon)])
def test_every_optimizer_moves_every_parameter_once(name, kind):
    """No weight is left out and none belongs to two groups."""
    network = build(Recipe())
    optimizer = optimizer_for(network, Recipe(optimizer=name), CPU)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert type(optimizer) is kind
    assert sorted(held) == sorted(map(id, network.parameters()))


def test_muon_takes_the_hidden_weights_and_adam_the_rest():
    """Both convolutions and two linear layers; the layer of the logits is not hidden."""
    network = build(Recipe())
    expected = [network.conv1.weight, network.conv2.weight, network.dense1.weight, network.dense2.weight]
    assert list(map(id, hidden_matrices(network))) == list(map(id, expected))
