"""Variants of the book's network trained over seeds, measured alike, and kept as mean and deviation: for many lessons.

What is trained and measured is the business of `arms`, `measurement` and `runner`; this makes a lesson's figures of it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from ...dataset import FashionMNIST
from ...drawing import CYCLE, canvas, draw_runs, draw_strip
from ..arms import Arm, cases_of
from ..runner import measure_cases
from ..selection import first_rows
from ..store import Store
from ..tables import Spread, origin
from .lesson import Figures, Finding, Reading, Setting

ROWS, TEST_ROWS = 6_000, 3_000  # of Fashion-MNIST, the first: a training takes seconds
SAME = 0.01  # of test accuracy: what 3,000 test images can hardly tell apart
QUICK_ROWS = 1_024
CHANCE = 0.1
COLUMNS = ("variant", "n", "loss", "train accuracy", "test, population", "test, running")

Arms = Mapping[str, Arm]  # by what a table calls it


def book_arm(network: str, norm: str = "torch") -> Arm:
    """Return the book's recipe for one of the networks of `arms`, on few images in small batches: 1,128 steps.

    Args:
        network: its name there.
        norm: of the recipe; `none` where the network brings other norms, or has none.
    """
    return Arm(
        name=f"book-{network}-{norm}",
        network=network,
        options={"norm": norm, "batch_size": 32, "epochs": 6},
        train_rows=ROWS,
        epoch_rows=1_000,
    )


def measure_arms(arms: Arms, setting: Setting) -> dict[str, Any]:
    """Return under `arms` what each seed of each arm gave, and under `runs_made_by` what made each of them.

    Raises:
        TrainingError: as the trainings do; finished ones are kept.
    """
    chosen = {label: arm.shortened(epochs=1, rows=QUICK_ROWS) if setting.quick else arm for label, arm in arms.items()}
    cases = cases_of(chosen.values(), setting.seeds)
    store = Store(setting.store)
    measure_cases(
        cases,
        store,
        torch.device("cpu"),
        lambda: _with_fewer_tests(setting.load()),
        origin(setting.command),
        jobs=setting.jobs,
        report=setting.tell,
    )
    measured = store.read()
    return {
        "arms": {
            label: [_kept(measured[f"{arm.name}/{seed}"]) for seed in range(setting.seeds)]
            for label, arm in chosen.items()
        },
        "runs_made_by": [measured[case.key]["origin"] for case in cases],
    }


def measuring(arms: Arms) -> Callable[[Setting], dict[str, Any]]:
    """Return a lesson's `measure` that trains `arms` and nothing else."""
    return lambda setting: measure_arms(arms, setting)


def rows_of(figures: Figures) -> list[tuple[object, ...]]:
    """Return a row of `COLUMNS` for each arm."""
    rows: list[tuple[object, ...]] = []
    for label, runs in figures["arms"].items():
        whole = [run for run in runs if not run["diverged"]]
        if not whole:
            rows.append((label, f"0 of {len(runs)}", *["diverged"] * 4))
            continue
        rows.append(
            (
                label,
                len(whole),
                _short([run["loss"] for run in whole], 3),
                _short([run["train_accuracy"] for run in whole]),
                _short([run["test"] for run in whole]),
                _short([run["test_running"] for run in whole]) if "test_running" in whole[0] else "",
            )
        )
    return rows


def mean_of(figures: Figures, label: str, key: str = "test") -> float:
    """Return the mean of `key` over the seeds of an arm; a run that diverged counts as chance."""
    return spread_of(figures, label, key).mean


def spread_of(figures: Figures, label: str, key: str = "test") -> Spread:
    """Return the spread of `key` over the seeds of an arm; a run that diverged counts as chance."""
    return Spread.of(CHANCE if run["diverged"] else run[key] for run in figures["arms"][label])


def difference(figures: Figures, label: str, other: str, key: str = "test") -> Spread:
    """Return the spread over the seeds of an arm's `key` minus another's, each seed with its own pair."""
    pairs = zip(figures["arms"][label], figures["arms"][other], strict=True)
    values = [[CHANCE if run["diverged"] else run[key] for run in pair] for pair in pairs]
    return Spread.of(one - two for one, two in values)


def compared(figures: Figures, label: str, other: str, said: str, agrees: Callable[[float], bool]) -> Finding:
    """Return the finding that an arm's test accuracy minus another's is as `agrees` wants its mean."""
    spread = difference(figures, label, other)
    return Finding(
        f"test accuracy, {label} minus {other}", f"{spread.mean:+.4f} ± {spread.sd:.4f}", said, agrees(spread.mean)
    )


def table(figures: Figures, findings: Sequence[Finding]) -> Reading:
    """Return `findings` beside the table of all arms."""
    return Reading(findings, COLUMNS, rows_of(figures))


def draw_arms(figures: Figures) -> Figure:
    """Return the test accuracy over the epochs, and of every seed at the end."""
    figure, (curves, seeds) = canvas(2, width=5.4)
    groups = []
    for (label, runs), colour in zip(figures["arms"].items(), (*CYCLE, "black"), strict=False):
        whole = [run for run in runs if not run["diverged"]]
        if whole:
            draw_runs(curves, range(1, len(whole[0]["curve"]) + 1), [run["curve"] for run in whole], colour, label)
            groups.append((label.replace(" ", "\n"), [run["test"] for run in whole], colour))
    curves.set(xlabel="epoch", ylabel="test accuracy")
    curves.legend(fontsize=7, loc="best")
    draw_strip(seeds, groups)
    seeds.set(ylabel="test accuracy after the last epoch")
    seeds.tick_params(axis="x", labelsize=7)
    return figure


def _with_fewer_tests(dataset: FashionMNIST) -> FashionMNIST:
    return dataclasses.replace(
        first_rows(dataset, ROWS),
        test_images=dataset.test_images[:TEST_ROWS],
        test_labels=dataset.test_labels[:TEST_ROWS],
    )


def _kept(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a lesson keeps of a measurement; `test` is with population statistics where there are norms."""
    kept = {"seed": run["seed"], "diverged": run["diverged"]}
    if run["diverged"]:
        return kept
    test, last = run["test_accuracy"], run["epochs"][-1]
    kept |= {
        "loss": last["loss"],
        "train_accuracy": next(iter(run["train_accuracy"].values())),
        "test": test.get("population", test.get("none")),
        "curve": [epoch.get("population_accuracy", epoch["test_accuracy"]) for epoch in run["epochs"]],
        "losses": [epoch["loss"] for epoch in run["epochs"]],
    }
    return kept | ({"test_running": test["running"]} if "running" in test else {})


def _short(values: Sequence[float], digits: int = 4) -> str:
    spread = Spread.of(values)
    return f"{spread.mean:.{digits}f} ± {spread.sd:.{digits}f}"
