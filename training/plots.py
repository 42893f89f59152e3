"""The two pictures of a run: its curves, and which classes it takes for which.

Drawn after the last epoch from what the run has measured; nothing is computed here but a count of pairs.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .drawing import canvas, to_png
from .fit import EpochRecord

READABLE, LONGEST = 30, 24  # classes in a confusion matrix that names its classes; letters of a name


def confusion(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return how often true class (row) was predicted as class (column): (classes, classes).

    Args:
        labels: (N,) true classes.
        predicted: (N,) classes that the network predicted.
        classes: how many there are.
    """
    pairs = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return pairs.reshape(classes, classes).astype(np.int64)


def curves_png(epochs: Sequence[EpochRecord]) -> bytes:
    """Return a PNG of loss and of train and test accuracy over the epochs."""
    figure, (loss, accuracy) = canvas(2)
    numbers = [record.epoch for record in epochs]
    loss.plot(numbers, [record.loss for record in epochs], marker="o", markersize=3)
    loss.set(xlabel="epoch", ylabel="train loss", ylim=(0, None))
    accuracy.plot(numbers, [record.train_accuracy for record in epochs], marker="o", markersize=3, label="train")
    for part in ("test", "val"):
        values = [getattr(record, f"{part}_accuracy") for record in epochs]
        if None not in values:
            accuracy.plot(numbers, values, marker="o", markersize=3, label=f"{part}, running statistics")
    accuracy.set(xlabel="epoch", ylabel="accuracy", ylim=(None, 1))
    accuracy.legend(loc="lower right")
    for axes in (loss, accuracy):
        axes.locator_params(axis="x", integer=True)
    return to_png(figure)


def confusion_png(counts: NDArray[np.int64], class_names: Sequence[str]) -> bytes:
    """Return a PNG of `counts` (classes, classes); colour is the share of the true class.

    Names and numbers stand in it as far as they can be read: up to `READABLE` classes. Each takes milliseconds to lay
    out, and the numbers of a thousand classes would take longer than their training.
    """
    figure = Figure(figsize=(7.2, 6.6), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if len(class_names) > READABLE:
        return to_png(figure)
    ticks = range(len(class_names))
    names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in class_names]
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(ticks, names, parse_math=False)
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        text = str(counts[row, column])
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return to_png(figure)
