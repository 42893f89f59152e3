"""The pictures of the circles: the data, loss and accuracy with and without norms, and where the networks decide."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from ..drawing import BLUE, GREY, ORANGE, canvas, draw_runs, to_png
from .circles import Circles, CirclesTraining

COLOURS = {"torch": BLUE, "none": ORANGE}
NAMES = {"torch": "with BN", "none": "without BN"}
EDGE = 1.6  # of the pictures, in units of the outer radius
GRID = 200  # points a side at which a network is evaluated


def data_png(data: Circles) -> bytes:
    """Return a PNG of the points, train and test side by side."""
    figure, axes = canvas(2, width=4, height=4)
    parts = (("train", data.train_points, data.train_labels), ("test", data.test_points, data.test_labels))
    for each, (name, points, labels) in zip(axes, parts, strict=True):
        _scatter(each, points.numpy(), labels.numpy())
        each.set(title=f"{name}, {len(labels):,} points", xlabel="x₁", ylabel="x₂")
    axes[0].legend(loc="upper right")
    return to_png(figure)


def curves_png(trainings: Mapping[str, Sequence[CirclesTraining]]) -> bytes:
    """Return a PNG of train-mode loss, evaluation-mode loss and test accuracy over the steps, a line for each seed."""
    figure, axes = canvas(3)
    titles = ("loss, training mode", "loss on the training points, evaluation mode", "test accuracy")
    for each, title, name in zip(axes, titles, ("losses", "eval_losses", "test_accuracies"), strict=True):
        for norm, runs in trainings.items():
            lines = [getattr(run, name) for run in runs]
            draw_runs(each, range(len(lines[0])), lines, COLOURS[norm], NAMES[norm])
        each.set(xlabel="step", title=title)
    for each in axes[:2]:
        each.set(yscale="log", ylabel="cross-entropy")
    axes[2].set(ylim=(0.4, 1.02))
    axes[2].legend(loc="lower right")
    return to_png(figure)


def regions_png(trainings: Mapping[str, CirclesTraining], data: Circles) -> bytes:
    """Return a PNG of the probability of the inner circle over the plane, with the test points.

    A row for each step whose networks were kept, a column for each network.
    """
    steps = list(next(iter(trainings.values())).kept)
    figure, axes = canvas(len(trainings), len(steps), width=4.4, height=4)
    line = np.linspace(-EDGE, EDGE, GRID)
    cells = [(step, norm, training) for step in steps for norm, training in trainings.items()]
    for each, (step, norm, training) in zip(axes, cells, strict=True):
        shares = inner_probability(training.kept[step], line)
        picture = each.contourf(line, line, shares, np.linspace(0, 1, 11), cmap="PuOr_r", alpha=0.5)
        each.contour(line, line, shares, [0.5], colors="black", linewidths=1)
        _scatter(each, data.test_points.numpy(), data.test_labels.numpy(), size=5)
        accuracy = training.test_accuracies[step]
        each.set(title=f"step {step}, {NAMES[norm]}: test {accuracy:.4f}", xlabel="x₁", ylabel="x₂")
    figure.colorbar(picture, ax=axes, label="probability of the inner circle")
    return to_png(figure)


@torch.no_grad()
def inner_probability(network: nn.Module, line: np.ndarray) -> np.ndarray:
    """Return the probability of class 1 at every point of `line` × `line`, (N, N) with the first axis upwards."""
    across, up = np.meshgrid(line, line)
    points = torch.as_tensor(np.column_stack([across.ravel(), up.ravel()]), dtype=torch.float32)
    probability: Tensor = network.eval()(points).softmax(1)[:, 1]
    return probability.numpy().reshape(across.shape)


def _scatter(axes: Axes, points: np.ndarray, labels: np.ndarray, size: float = 6) -> None:
    for label, colour, name in ((0, GREY, "outer"), (1, BLUE, "inner")):
        chosen = points[labels == label]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=size, color=colour, edgecolors="white", linewidths=0.2, label=name)
    axes.set(aspect="equal", xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE))
