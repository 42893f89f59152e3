"""The two questions that readers of the book leave open, answered from what was measured and from nothing else."""

from collections.abc import Sequence
from typing import Any

from . import plan, published
from .compare_plots import CHANCE_LOSS, ByArm, finished, served_accuracy
from .tables import Spread

LEARNT = 0.8  # train accuracy of an epoch that counts as having learnt
LEARNS = 0.9  # of the loss of a network that gives every class the same probability
WAITING = "It waits for trainings that are not measured yet.\n"


def speed_finding(arms: ByArm) -> str:
    """Return Markdown: epochs until the network has learnt with and without norms, and each at its best rate."""
    groups = [
        ("BN at learning rate 1.0", finished(arms.get(plan.TORCH.name, ()))),
        ("the same body without BN at 1.0", finished(arms.get(plan.NO_NORM.name, ()))),
        ("the book's LeNet without BN at 0.9", finished(arms.get(plan.PLAIN.name, ()))),
    ]
    if not all(runs for _, runs in groups):
        return WAITING
    reached = [f"{name}: {_epochs_text(runs)} (n = {len(runs)})" for name, runs in groups]
    losses = [Spread.of(run["epochs"][0]["loss"] for run in runs).mean for _, runs in groups]
    with_norm, without = _epochs_to_learn(groups[0][1]), _epochs_to_learn(groups[1][1])
    verdict = "Yes" if with_norm < without else "Not by this measure"
    return (
        f"{verdict}. The first epoch with a train accuracy of {LEARNT}: {'; '.join(reached)}. Mean loss of the first "
        f"epoch: {losses[0]:.3f}, {losses[1]:.3f} and {losses[2]:.3f} in the same order.\n\n{_best_rates(arms)}"
    )


def scatter_finding(arms: ByArm) -> str:
    """Return Markdown: spread with running and with population statistics, and the odd batch first and last."""
    groups = [(arm, finished(arms.get(arm.name, ()))) for arm in (plan.TORCH, plan.SCRATCH, plan.TAIL_LAST)]
    if any(len(runs) < 2 for _, runs in groups):
        return WAITING
    torch, scratch, last = (_statistics(runs) for _, runs in groups)
    running, population = (_spread(groups[0][1], kind) for kind in ("running", "population"))
    is_cause = population.sd < running.sd / 2 and population.mean > running.mean
    verdict = (
        "Because they are taken with running statistics, which lag behind weights that move fast"
        if is_cause
        else "Not by the running statistics alone"
    )
    return (
        f"{verdict}. The same weights give {torch}, the odd batch first. Published with running statistics: "
        f"{published.TORCH.test_accuracy.text(3)} (n = {published.TORCH.n}). Hand-written norms, from the same initial "
        f"weights and in the same order of images, give {scratch}.\n\n"
        f"As in the book, with the odd batch of 96 as an epoch's last step, it is {last}.\n"
    )


def sweep_finding(arms: ByArm, names: str, values: Sequence[float]) -> str:
    """Return Markdown: at which of `values` the network learns with norms and without; empty when none is measured.

    Args:
        arms: measurements by arm.
        names: of the arms with `{norm}` and `{value}` for what varies.
        values: of the sweep.
    """
    parts = []
    for norm, name in (("torch", "with BN"), ("none", "without BN")):
        runs = [(value, run) for value in values for run in arms.get(names.format(norm=norm, value=f"{value:g}"), ())]
        learnt = [f"{value:g}" for value, run in runs if _learns(run)]
        others = [f"{value:g}" for value, run in runs if not _learns(run)]
        if runs:
            not_there = f" and not at {', '.join(others)}" if others else ""
            parts.append(f"{name} it learns at {', '.join(learnt)}{not_there}" if learnt else f"{name} at none of them")
    return f"{'; '.join(parts)}. To learn is to end with a loss under {LEARNS:.0%} of chance's.\n" if parts else ""


def _learns(run: Any) -> bool:
    return not run["diverged"] and run["epochs"][-1]["loss"] < LEARNS * CHANCE_LOSS


def _statistics(runs: Sequence[Any]) -> str:
    running, population = _spread(runs, "running"), _spread(runs, "population")
    return f"{running.text()} with running and {population.text()} with population statistics (n = {running.n})"


def _spread(runs: Sequence[Any], kind: str) -> Spread:
    return Spread.of(run["test_accuracy"][kind] for run in runs)


def _epochs_to_learn(runs: Sequence[Any]) -> float:
    """Return the mean first epoch with a train accuracy of `LEARNT`; a run that never had it counts one epoch more."""
    return Spread.of(_first_epoch(run) for run in runs).mean


def _epochs_text(runs: Sequence[Any]) -> str:
    never = sum(_first_epoch(run) > len(run["epochs"]) for run in runs)
    if never == len(runs):
        return f"never in {len(runs[0]['epochs'])} epochs"
    return f"{_epochs_to_learn(runs):.1f}" + (f", {never} runs never" if never else "")


def _first_epoch(run: Any) -> int:
    reached = (record["epoch"] for record in run["epochs"] if record["train_accuracy"] >= LEARNT)
    return int(next(reached, len(run["epochs"]) + 1))


def _best_rates(arms: ByArm) -> str:
    """Return a sentence on each kind of network at the learning rate that suits it best in the sweep."""
    parts = []
    for norm, name in (("torch", "with BN"), ("none", "without")):
        runs = [(rate, run) for rate in plan.LEARNING_RATES for run in finished(arms.get(f"lr-{norm}-{rate:g}", ()))]
        if not runs:
            return ""
        rate, best = min(runs, key=lambda pair: pair[1]["epochs"][-1]["loss"])
        parts.append(
            f"{name} {rate:g}, loss {best['epochs'][-1]['loss']:.3f} and test accuracy {served_accuracy(best):.3f}"
        )
    return f"Each at the rate that suits it best, after {plan.SWEEP_EPOCHS} epochs: {'; '.join(parts)}.\n"
