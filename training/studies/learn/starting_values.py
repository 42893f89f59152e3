"""The lesson `starting-values`: what the moving statistics start from, and how soon that is forgotten.

The statistics take no part in training, so networks that differ in them alone have the same weights, bit for bit, and
what they started from is still there with weight 0.9 to the number of steps.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from ...dataset import Tensors, scale_pixels
from ...drawing import CYCLE, canvas, draw_runs
from ...epoch import epoch_order
from ...fit import evaluate
from ...model import lenet
from ...statistics import population_statistics
from ..tables import Spread
from .lesson import Figures, Finding, Lesson, Reading, Setting

STARTS = ("mean 0, variance 1", "the test set's", "plain mean, gain 1/k")
EVALUATED = (1, 2, 5, 10, 20, 40, 80)
BATCH, RATE, TEST_ROWS = 256, 1.0, 4_000
DECAY = 0.9


def twins(seed: int, test_images: Tensor) -> dict[str, nn.Sequential]:
    """Return the book's network once for each of `STARTS`: the same weights, other moving statistics.

    Args:
        seed: of the weights.
        test_images: (N, 1, 28, 28) uint8, whose statistics the second one starts from.
    """
    torch.manual_seed(seed)
    network = lenet()
    made = {name: copy.deepcopy(network) for name in STARTS}
    population_statistics(made[STARTS[1]], test_images)
    for norm in _norms(made[STARTS[2]]):
        norm.momentum = None
    return made


def train_twins(made: dict[str, nn.Sequential], data: Tensors, seed: int, evaluated: tuple[int, ...]) -> dict[str, Any]:
    """Train all alike, and return test accuracies by start, and the share of the start that is left, by step.

    Returns:
        `accuracy`: for each start one value for each step of `evaluated`; `left`: likewise, of the first two networks'
        first norms the distance of their moving means over what it was at first.
    """
    order = epoch_order(len(data.train_labels), seed, 1)
    optimizers = [torch.optim.SGD(network.parameters(), lr=RATE) for network in made.values()]
    accuracy: dict[str, list[float]] = {name: [] for name in made}
    first, left = _distance(made), []
    for step in range(1, max(evaluated) + 1):
        rows = order[torch.arange((step - 1) * BATCH, step * BATCH) % len(order)]
        for network, optimizer in zip(made.values(), optimizers, strict=True):
            loss = F.cross_entropy(network.train()(scale_pixels(data.train_images[rows])), data.train_labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if step in evaluated:
            left.append(_distance(made) / first)
            for name, network in made.items():
                accuracy[name].append(evaluate(network, data.test_images[:TEST_ROWS], data.test_labels[:TEST_ROWS]))
    return {"accuracy": accuracy, "left": left}


def measure(setting: Setting) -> dict[str, Any]:
    """Return for each seed what `train_twins` gives; nothing else is shared between seeds."""
    data = setting.load().on(torch.device("cpu"))
    evaluated = EVALUATED[:3] if setting.quick else EVALUATED
    runs = []
    for seed in range(setting.seeds):
        runs.append(train_twins(twins(seed, data.test_images[:TEST_ROWS]), data, seed, evaluated))
        setting.tell(f"seed {seed} done")
    return {"steps": list(evaluated), "runs": runs}


def read(figures: Figures) -> Reading:
    """Return how much of the start is left, beside 0.9^k, and what each start gives early and late."""
    steps, runs = figures["steps"], figures["runs"]
    away = max(abs(left - DECAY**step) for run in runs for step, left in zip(steps, run["left"], strict=True))
    mean = {name: [Spread.of(run["accuracy"][name][at] for run in runs) for at in range(len(steps))] for name in STARTS}
    early = max(range(len(steps)), key=lambda at: mean[STARTS[1]][at].mean - mean[STARTS[0]][at].mean)
    gained = [mean[STARTS[1]][at].mean - mean[STARTS[0]][at].mean for at in range(len(steps))]
    findings = [
        Finding("share of the start left: largest distance from 0.9^k", f"{away:.1e}", "0.9^k", away < 1e-4),
        Finding(f"test accuracy gained by the test set's, largest (step {steps[early]})", f"{gained[early]:+.4f}",
                "a better start", gained[early] > 0),
        Finding(f"the same at step {steps[-1]}", f"{gained[-1]:+.4f}", "forgotten", abs(gained[-1]) < 0.005),
    ]  # fmt: skip
    rows = [(name, *(f"{each.mean:.3f} ± {each.sd:.3f}" for each in mean[name])) for name in STARTS]
    return Reading(findings, ("start", *(f"step {step}" for step in steps)), rows)


def draw(figures: Figures) -> Figure:
    """Return accuracies by step for each start, and what is left of a start."""
    figure, (accuracy, left) = canvas(2)
    steps, runs = figures["steps"], figures["runs"]
    for name, colour in zip(STARTS, CYCLE, strict=False):
        draw_runs(accuracy, steps, [run["accuracy"][name] for run in runs], colour, name)
    accuracy.set(xlabel="step", ylabel="test accuracy, evaluation mode", xscale="log")
    accuracy.legend(fontsize=7)
    left.plot(
        range(1, max(steps) + 1), [DECAY**step for step in range(1, max(steps) + 1)], color="black", label="0.9^k"
    )
    for run in runs:
        left.plot(steps, run["left"], "o", color=CYCLE[1], markersize=4)
    left.plot([], [], "o", color=CYCLE[1], label="measured, every seed")
    left.set(xlabel="step k", ylabel="share of the start that is left", yscale="log")
    left.legend(fontsize=7)
    return figure


def _norms(network: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]


def _distance(made: dict[str, nn.Sequential]) -> float:
    """Return how far the moving means of the first norms of the first two networks are apart, in float64."""
    one, other = (_norms(made[name])[0].running_mean for name in STARTS[:2])
    assert one is not None
    assert other is not None
    return float(torch.linalg.vector_norm(one.double() - other.double()))


STARTING_VALUES = Lesson(
    "starting-values",
    "a test set's mean and variance can be where the moving statistics start",
    measure,
    read,
    draw,
    seeds=5,
)
