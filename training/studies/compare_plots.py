"""The pictures of `compare`, one function each: from measurements to a PNG.

Each takes measurements by arm and draws what there is, so that a report on an unfinished study can be made too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..drawing import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    add_legend,
    canvas,
    draw_runs,
    draw_strip,
    to_png,
)
from . import plan, published

Runs = Sequence[Mapping[str, Any]]
ByArm = Mapping[str, Runs]
CHANCE_LOSS = float(np.log(10))  # of a network that gives every class the same probability


def curves_png(arms: ByArm) -> bytes:
    """Return loss, train and test accuracy over the epochs over the published bands: the book's recipe."""
    figure, (loss, train, test) = canvas(3)
    loss.axhspan(*published.LOSS_OF_EVERY_SEED, color=GREY, alpha=0.25, label="published, last epoch")
    train.axhspan(*published.TRAIN_ACCURACY_OF_EVERY_SEED, color=GREY, alpha=0.25, label="published, last epoch")
    for each, name, style in ((published.TORCH, "PyTorch's BN", "--"), (published.SCRATCH, "BN by hand", ":")):
        epochs = range(1, len(each.test_by_epoch) + 1)
        test.plot(
            epochs, each.test_by_epoch, color=GREY, linestyle=style, label=f"published mean, {name}, n = {each.n}"
        )
        test.vlines(len(epochs), each.test_accuracy.least, each.test_accuracy.most, color=GREY, alpha=0.3, linewidth=6)
    for arm, colour, name in ((plan.TORCH, BLUE, "PyTorch's BN"), (plan.SCRATCH, ORANGE, "BN by hand")):
        for axes, key in ((loss, "loss"), (train, "train_accuracy"), (test, "test_accuracy")):
            _draw(axes, arms, arm.name, key, colour, name)
    _draw(test, arms, plan.TORCH.name, "population_accuracy", GREEN, "PyTorch's BN, population statistics")
    for axes, title in ((loss, "train loss"), (train, "train accuracy"), (test, "test accuracy")):
        axes.set(xlabel="epoch", title=title)
        add_legend(axes)
    return to_png(figure)


def statistics_png(arms: ByArm) -> bytes:
    """Return the test accuracy of every seed with running and with population statistics, tail first and last."""
    named = (
        (plan.TORCH, "BN of PyTorch,\nodd batch first"),
        (plan.SCRATCH, "BN by hand,\nodd batch first"),
        (plan.TAIL_LAST, "BN of PyTorch,\nodd batch last"),
    )
    figure, (axes,) = canvas(1, width=8.5, height=4)
    groups = []
    for arm, name in named:
        whole = finished(arms.get(arm.name, ()))
        for kind, colour in (("running", BLUE), ("population", GREEN)) if whole else ():
            values = [run["test_accuracy"][kind] for run in whole]
            groups.append((f"{name}\n{kind}, n = {len(values)}", values, colour))
    draw_strip(axes, groups)
    span = published.TORCH.test_accuracy
    axes.axhspan(span.mean - span.sd, span.mean + span.sd, color=GREY, alpha=0.25, label="published mean ± sd, running")
    axes.axhline(
        published.LEAST_POPULATION_ACCURACY, color="black", linewidth=1, linestyle="--", label="gate, population"
    )
    axes.tick_params(axis="x", labelsize=7)
    axes.set(ylabel="test accuracy", ylim=(None, axes.get_ylim()[1] + 0.015))  # room for the legend over the points
    add_legend(axes)
    return to_png(figure)


def without_png(arms: ByArm) -> bytes:
    """Return loss and test accuracy with and without norms: like for like, and as in the book."""
    figure, (loss, test) = canvas(2)
    epochs = range(1, len(published.PLAIN.test_by_epoch) + 1)
    test.plot(
        epochs, published.PLAIN.test_by_epoch, color=GREY, linestyle="--", label="published mean of the book's LeNet"
    )
    for arm, colour, name in (
        (plan.TORCH, BLUE, "with BN, lr 1.0"),
        (plan.NO_NORM, ORANGE, "same body without BN, lr 1.0"),
        (plan.PLAIN, RED, "the book's LeNet without BN, lr 0.9"),
    ):
        _draw(loss, arms, arm.name, "loss", colour, name)
        _draw(test, arms, arm.name, "population_accuracy" if arm is plan.TORCH else "test_accuracy", colour, name)
    loss.set(xlabel="epoch", title="train loss")
    test.set(xlabel="epoch", title="test accuracy (with BN: population statistics)")
    add_legend(loss)
    add_legend(test)
    return to_png(figure)


def learning_rates_png(arms: ByArm) -> bytes:
    """Return last loss and test accuracy over the learning rate, with and without norms."""
    budget = f"{plan.SWEEP_EPOCHS} epochs"
    return _sweep_png(arms, "lr-{norm}-{value:g}", plan.LEARNING_RATES, "learning rate", budget)


def batch_sizes_png(arms: ByArm) -> bytes:
    """Return last loss and test accuracy over the batch size, with and without norms."""
    budget = f"{plan.SWEEP_EPOCHS} epochs of {plan.BATCH_SWEEP_ROWS:,} images"
    return _sweep_png(arms, "batch-{norm}-{value:g}", plan.BATCH_SIZES, "batch size", budget)


def variants_png(arms: ByArm) -> bytes:
    """Return loss and test accuracy over the epochs of everything that changes one thing about the norms."""
    figure, (loss, test) = canvas(2, width=5.2)
    for (arm, name), colour in zip(VARIANTS, CYCLE, strict=False):
        _draw(loss, arms, arm.name, "loss", colour, name)
        key = "test_accuracy" if arm.options.get("norm") == "none" else "population_accuracy"
        _draw(test, arms, arm.name, key, colour, name)
    loss.axhline(CHANCE_LOSS, color="black", linestyle=":", linewidth=1)
    loss.set(xlabel="epoch", title="train loss (dotted: every class alike)")
    test.set(xlabel="epoch", title="test accuracy (with BN: population statistics)")
    add_legend(loss)
    return to_png(figure)


VARIANTS = (
    (plan.SHORT, "BN before the sigmoid"),
    (plan.NORM_AFTER, "BN after the sigmoid"),
    (plan.NOISY, "noise after every BN"),
    (plan.DROPOUT, "BN and dropout"),
    (plan.SHORT_NO_NORM, "no BN"),
    (plan.DROPOUT_NO_NORM, "dropout, no BN"),
)


def saturation_png(arms: ByArm) -> bytes:
    """Return the share of saturated sigmoids in each layer, before and after training, with and without norms."""
    figure, axes = canvas(2)
    named = (
        (plan.TORCH, BLUE, "with BN"),
        (plan.NO_NORM, ORANGE, "same body without BN"),
        (plan.PLAIN, RED, "book's LeNet"),
    )
    for each, when in zip(axes, ("before", "after"), strict=True):
        for place, (arm, colour, name) in enumerate(named):
            whole = finished(arms.get(arm.name, ()))
            layers = list(whole[0]["saturated"][when]) if whole else []
            shares = [100 * np.mean([run["saturated"][when][layer] for run in whole]) for layer in layers]
            each.bar(np.arange(len(layers)) + 0.27 * (place - 1), shares, 0.25, color=colour, label=name)
            if layers:
                each.set_xticks(range(len(layers)), layers)
        each.set(title=f"{when} training", ylabel="saturated sigmoids, %")
    add_legend(axes[0])
    return to_png(figure)


def gap_png(arms: ByArm) -> bytes:
    """Return train minus test accuracy of every seed, both in evaluation mode with the statistics that are served."""
    figure, (axes,) = canvas(1, width=5.5)
    groups = []
    for arm, name, colour in (
        (plan.TORCH, "BN of PyTorch", BLUE),
        (plan.SCRATCH, "BN by hand", PURPLE),
        (plan.NO_NORM, "same body\nwithout BN", ORANGE),
        (plan.PLAIN, "book's LeNet", RED),
    ):
        whole = finished(arms.get(arm.name, ()))
        if whole:
            groups.append((f"{name}\nn = {len(whole)}", [100 * gap(run) for run in whole], colour))
    draw_strip(axes, groups)
    axes.set(ylabel="train minus test accuracy, points")
    return to_png(figure)


def gap(run: Mapping[str, Any]) -> float:
    """Return train minus test accuracy in evaluation mode."""
    kind = "population" if "population" in run["train_accuracy"] else "none"
    return float(run["train_accuracy"][kind] - run["test_accuracy"][kind])


def served_accuracy(run: Mapping[str, Any]) -> float:
    """Return the test accuracy with population statistics, or that of a network without norms."""
    accuracies = run["test_accuracy"]
    return float(accuracies["population"] if "population" in accuracies else accuracies["none"])


def finished(runs: Runs) -> list[Mapping[str, Any]]:
    """Return the runs that did not diverge."""
    return [run for run in runs if not run["diverged"]]


def _draw(axes: Axes, arms: ByArm, arm: str, key: str, colour: str, name: str) -> None:
    whole = [run for run in finished(arms.get(arm, ())) if all(key in record for record in run["epochs"])]
    if whole:
        numbers = [record["epoch"] for record in whole[0]["epochs"]]
        draw_runs(axes, numbers, [[record[key] for record in run["epochs"]] for run in whole], colour, name)
        axes.locator_params(axis="x", integer=True)


def _sweep_png(arms: ByArm, names: str, values: Sequence[float], what: str, budget: str) -> bytes:
    """Return last loss and test accuracy over `values`; a run that diverged is a cross at chance."""
    figure, (loss, accuracy) = canvas(2)
    for norm, colour, label in (("torch", BLUE, "with BN"), ("none", ORANGE, "without BN")):
        runs = [(value, run) for value in values for run in arms.get(names.format(norm=norm, value=value), ())]
        whole = [(value, run) for value, run in runs if not run["diverged"]]
        broken = [value for value, run in runs if run["diverged"]]
        if whole:
            places = [value for value, _ in whole]
            loss.plot(places, [run["epochs"][-1]["loss"] for _, run in whole], "o-", color=colour, label=label)
            accuracy.plot(places, [served_accuracy(run) for _, run in whole], "o-", color=colour)
        if broken:
            cross: dict[str, Any] = {"color": colour, "markersize": 9, "label": f"{label}: diverged"}
            loss.plot(broken, [CHANCE_LOSS] * len(broken), "x", **cross)
            accuracy.plot(broken, [0.1] * len(broken), "x", **cross)
    loss.axhline(CHANCE_LOSS, color="black", linestyle=":", linewidth=1)
    accuracy.axhline(0.1, color="black", linestyle=":", linewidth=1)
    loss.set(title=f"train loss after {budget}", xscale="log", xlabel=what)
    accuracy.set(title="test accuracy (with BN: population statistics)", xscale="log", xlabel=what, ylim=(0, 1))
    add_legend(loss)
    return to_png(figure)
