"""The two circles: the smallest experiment that shows what batch normalization does, and the cleanest test of it.

Full batches leave no noise between what a norm sees in training and what it averages, so after enough steps its
evaluation mode must compute what its training mode does. Data and training; the report is `circles_report`.
"""

import copy
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ConfigError
from ..model import mlp

POINTS = 2000
NOISE = 0.1  # standard deviation of what is added to each coordinate
FACTOR = 0.4  # radius of the inner circle; the outer one has 1
TEST_SHARE = 0.3
DATA_SEED = 42
SIZES = (2, 64, 32, 2)
LEARNING_RATE = 0.1
STEPS = 500
LEARNT = 0.95  # test accuracy that counts as having learnt the circles


@dataclass(frozen=True, eq=False)
class Circles:
    """Points (N, 2) float32 with class 0 for the outer and 1 for the inner circle (N,) int64, split."""

    train_points: Tensor
    train_labels: Tensor
    test_points: Tensor
    test_labels: Tensor


@dataclass(eq=False)
class CirclesTraining:
    """One training on the circles.

    Attributes:
        network: as it ended, in evaluation mode.
        losses: train-mode loss of each step, before its update.
        eval_losses: after 0, 1, ... steps the loss over the training points in evaluation mode.
        test_accuracies: likewise over the test points.
        kept: a copy of the network after each of the steps that were to be kept.
        train_mode_loss: over the training points after the last step, normalised by the batch.
    """

    network: nn.Sequential
    losses: list[float] = field(default_factory=list)
    eval_losses: list[float] = field(default_factory=list)
    test_accuracies: list[float] = field(default_factory=list)
    kept: dict[int, nn.Sequential] = field(default_factory=dict)
    train_mode_loss: float = float("nan")

    @property
    def mode_gap(self) -> float:
        """Return the last evaluation-mode loss over the train-mode loss of the same weights, minus 1."""
        return self.eval_losses[-1] / self.train_mode_loss - 1

    @property
    def steps_to_learn(self) -> int | None:
        """Return after how many steps the test accuracy first reached `LEARNT`, or None."""
        reached = (step for step, accuracy in enumerate(self.test_accuracies) if accuracy >= LEARNT)
        return next(reached, None)


def make_circles(
    points: int = POINTS, *, noise: float = NOISE, factor: float = FACTOR, seed: int = DATA_SEED
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return points (N, 2) on two circles around 0 and their class (N,): 0 outer, 1 inner.

    The same numbers in the same order as scikit-learn's function of this name with `random_state=seed`.

    Raises:
        ConfigError: fewer than 4 points, a negative noise, or a factor outside [0, 1).
    """
    if points < 4 or noise < 0 or not 0 <= factor < 1:
        raise ConfigError(
            f"circles of {points} points, noise {noise}, factor {factor}: expected at least 4, at least 0, and [0, 1)"
        )
    outer = points // 2
    angles = [np.linspace(0, 2 * np.pi, count, endpoint=False) for count in (outer, points - outer)]
    rings = [np.column_stack([np.cos(turn), np.sin(turn)]) for turn in angles]
    placed = np.concatenate([rings[0], rings[1] * factor])
    labels = np.repeat(np.array([0, 1]), (outer, points - outer))
    generator = np.random.RandomState(seed)
    order = np.arange(points)
    generator.shuffle(order)
    return placed[order] + generator.normal(scale=noise, size=placed.shape), labels[order]


def split(points: NDArray[np.float64], labels: NDArray[np.int64], *, seed: int = DATA_SEED) -> Circles:
    """Return the data with 30 % of it kept for the test, as scikit-learn's `train_test_split(random_state=seed)`."""
    order = np.random.RandomState(seed).permutation(len(labels))
    tests = int(np.ceil(TEST_SHARE * len(labels)))
    parts = [
        (torch.as_tensor(points[rows], dtype=torch.float32), torch.as_tensor(labels[rows]))
        for rows in (order[tests:], order[:tests])
    ]
    return Circles(*parts[0], *parts[1])


def circles(seed: int = DATA_SEED) -> Circles:
    """Return the data of the experiment: 1,400 points to train on and 600 to test with."""
    return split(*make_circles(seed=seed), seed=seed)


def build(norm: str, seed: int) -> nn.Sequential:
    """Return the untrained 2-64-32-2 network with PyTorch's default weights, as the commentary has it.

    The random state is left as it was.

    Raises:
        ConfigError: another norm than `torch`, `scratch` or `none`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return mlp(SIZES, norm=norm, xavier=False)


def train(network: nn.Sequential, data: Circles, *, steps: int = STEPS, keep: Collection[int] = ()) -> CirclesTraining:
    """Train `network` in place by plain gradient descent over all training points, and return what was measured.

    Args:
        network: in any mode.
        data: to train on and to test with.
        steps: how many.
        keep: after which steps a copy of the network is kept.
    """
    training = CirclesTraining(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE)
    for step in range(steps):
        _evaluate(training, data, step in keep)
        loss = F.cross_entropy(network.train()(data.train_points), data.train_labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        training.losses.append(loss.item())
    training.train_mode_loss = _train_mode_loss(network, data)
    _evaluate(training, data, steps in keep)
    return training


@torch.no_grad()
def _evaluate(training: CirclesTraining, data: Circles, keeps: bool) -> None:
    network = training.network.eval()
    if keeps:
        training.kept[len(training.losses)] = copy.deepcopy(network)
    training.eval_losses.append(F.cross_entropy(network(data.train_points), data.train_labels).item())
    correct = network(data.test_points).argmax(1) == data.test_labels
    training.test_accuracies.append(correct.float().mean().item())


@torch.no_grad()
def _train_mode_loss(network: nn.Sequential, data: Circles) -> float:
    """Return the loss normalised by the batch; the statistics that the forward pass moves are a copy's."""
    return F.cross_entropy(copy.deepcopy(network).train()(data.train_points), data.train_labels).item()
