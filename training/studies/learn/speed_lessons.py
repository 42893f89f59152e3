"""Lessons about how fast and where to: convergence, learning rates, batch sizes, on a network that learns without BN.

A control that does not learn shows nothing, so most of them train the network 784-256-10 with ReLU.
"""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from ...drawing import BLUE, ORANGE, SKY, canvas, draw_runs
from ..arms import Arm
from .lesson import Figures, Finding, Lesson, Reading, Setting
from .trained import CHANCE, SAME, compared, draw_arms, mean_of, measure_arms, measuring, table

SWEEP_ROWS, SWEEP_EPOCHS = 2_048, 4
RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SIZES = (2, 4, 8, 32, 128, 512)
RATE_OF_64 = 0.05  # at other sizes in proportion, so that an epoch goes as far
LEARNT, LEARNS = 0.8, 0.7  # test accuracy that counts as having learnt, and as learning at all
NORMS = {"torch": "BN", "none": "no norm"}
MLP_BN, MLP_NONE, BOOK_BN, BOOK_NONE = "MLP, BN", "MLP, no norm", "LeNet, BN", "LeNet, no norm"


def _converging(network: str, norm: str, epochs: int, rate: float) -> Arm:
    return Arm(
        name=f"converge-{network}-{norm}",
        network=network,
        options={"norm": norm, "epochs": epochs, "batch_size": 64, "optimizer": "adam", "learning_rate": rate,
                 "schedule": "linear"},
        train_rows=4_000,
        epoch_rows=1_000,
    )  # fmt: skip


CONVERGING = {
    MLP_BN: _converging("mlp", "torch", 15, 0.001),
    MLP_NONE: _converging("mlp", "none", 15, 0.001),
    BOOK_BN: _converging("lenet", "torch", 15, 0.01),
    BOOK_NONE: _converging("lenet", "none", 15, 0.003),
}


def sweep(name: str, values: tuple[float, ...]) -> dict[str, Arm]:
    """Return the ReLU network with and without norms at each of `values`, of learning rate or batch size."""
    arms = {}
    for norm, label in NORMS.items():
        for value in values:
            size, rate = (64, value) if name == "rates" else (int(value), RATE_OF_64 * value / 64)
            arms[f"{label}, {value:g}"] = Arm(
                name=f"{name}-{norm}-{value:g}",
                network="mlp",
                options={"norm": norm, "epochs": SWEEP_EPOCHS, "batch_size": size, "learning_rate": rate},
                train_rows=SWEEP_ROWS,
                epoch_rows=512,
            )
    return arms


def read_convergence(figures: Figures) -> Reading:
    """Return which converges sooner, and how far apart they end, of both networks."""
    findings = []
    for norm, none in ((MLP_BN, MLP_NONE), (BOOK_BN, BOOK_NONE)):
        first, other = mean_epoch(figures, norm), mean_epoch(figures, none)
        findings.append(
            Finding(f"epochs until the test accuracy is {LEARNT}, {norm} and without", f"{first:.1f}, {other:.1f}",
                    "sooner with BN", first < other)
        )  # fmt: skip
        said = "final accuracy is generally unchanged"
        findings.append(compared(figures, norm, none, said, lambda away: abs(away) < SAME))
    return table(figures, findings)


def mean_epoch(figures: Figures, label: str) -> float:
    """Return the mean first epoch with `LEARNT` on the test; a run that never had it counts one more."""
    firsts = [
        next((at for at, value in enumerate(run["curve"], start=1) if value >= LEARNT), len(run["curve"]) + 1)
        for run in figures["arms"][label]
    ]
    return sum(firsts) / len(firsts)


def measure_rates(setting: Setting) -> dict[str, Any]:
    """Return what each learning rate gives with and without norms."""
    return {"values": list(RATES), **measure_arms(sweep("rates", RATES), setting)}


def measure_sizes(setting: Setting) -> dict[str, Any]:
    """Return what each batch size gives with and without norms."""
    return {"values": list(SIZES), **measure_arms(sweep("batch-size", SIZES), setting)}


def by_value(figures: Figures, key: str = "test") -> Mapping[str, list[float]]:
    """Return the mean of `key` at each value of a sweep, with norms and without."""
    return {
        label: [mean_of(figures, f"{label}, {value:g}", key) for value in figures["values"]] for label in NORMS.values()
    }


def read_rates(figures: Figures) -> Reading:
    """Return the largest rate at which each learns, and the best of each."""
    means = by_value(figures)
    largest = {
        label: max((rate for rate, value in zip(figures["values"], values, strict=True) if value > LEARNS), default=0)
        for label, values in means.items()
    }
    best = {label: max(values) for label, values in means.items()}
    return table(
        figures,
        [
            Finding(f"largest rate with a test accuracy above {LEARNS}, BN and without",
                    f"{largest['BN']:g}, {largest['no norm']:g}", "larger rates work with BN",
                    largest["BN"] > largest["no norm"]),
            Finding("best test accuracy over the rates, BN and without", f"{best['BN']:.4f}, {best['no norm']:.4f}",
                    "at least as good", best["BN"] > best["no norm"] - SAME),
        ],
    )  # fmt: skip


def read_sizes(figures: Figures) -> Reading:
    """Return what the smallest batch costs with norms and without, and whether the control learns everywhere."""
    means = by_value(figures)
    lost = {label: max(values) - values[0] for label, values in means.items()}
    return table(
        figures,
        [
            Finding("control without BN, least over the sizes", f"{min(means['no norm']):.4f}", "learns at every size",
                    min(means["no norm"]) > 5 * CHANCE),
            Finding("test accuracy lost at a batch of 2, BN and without", f"{lost['BN']:.4f}, {lost['no norm']:.4f}",
                    "batch size matters more with BN", lost["BN"] > lost["no norm"] + SAME),
            Finding("BN minus none at the largest batch", f"{means['BN'][-1] - means['no norm'][-1]:+.4f}",
                    "BN works where batches are large", means["BN"][-1] > means["no norm"][-1] - SAME),
        ],
    )  # fmt: skip


def draw_sweep(figures: Figures) -> Figure:
    """Return test and train accuracy over the values of a sweep."""
    figure, (test, train) = canvas(2)
    values = figures["values"]
    for cell, key, what in ((test, "test", "test accuracy"), (train, "train_accuracy", "train accuracy")):
        for (label, colour), kind in zip((("BN", BLUE), ("no norm", ORANGE)), ("BN", "no norm"), strict=True):
            draw_runs(cell, values, _by_seed(figures, label, key), colour, kind)
        cell.set(xscale="log", ylabel=what)
        cell.set_xticks(values, [f"{value:g}" for value in values])
        cell.minorticks_off()
    draw_runs(test, values, _by_seed(figures, "BN", "test_running"), SKY, "BN, running statistics")
    for cell in (test, train):
        cell.set_xlabel("learning rate" if 0.03 in values else "batch size")
    test.legend(fontsize=7)
    return figure


def _by_seed(figures: Figures, label: str, key: str) -> list[list[float]]:
    columns = [figures["arms"][f"{label}, {value:g}"] for value in figures["values"]]
    return [[run.get(key, 0.1) for run in runs] for runs in zip(*columns, strict=True)]


CONVERGENCE = Lesson(
    "convergence", "with BN it converges sooner, and the final accuracy is generally unchanged",
    measuring(CONVERGING), read_convergence, draw_arms, seeds=5,
)  # fmt: skip
LEARNING_RATES = Lesson(
    "learning-rates", "larger learning rates work with BN", measure_rates, read_rates, draw_sweep, seeds=5
)
BATCH_SIZE = Lesson(
    "batch-size", "BN works where batches are large enough, and batch size matters more than without",
    measure_sizes, read_sizes, draw_sweep, seeds=5,
)  # fmt: skip
