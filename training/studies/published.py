"""What others published of the book's recipe, to lay under our curves, and the gates that our runs must pass.

The distributions are over every distinct run in the public history of the book's own notebooks (learning rate
1.0, 10 epochs, batches of 256, average pooling); n, mean and range of the last epoch. A published test accuracy is with
running statistics.

Source: Zhang et al., Dive into Deep Learning, section 8.5, rebuilt notebooks of 2021 to 2023.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import GateError
from .tables import Spread, markdown_table


@dataclass(frozen=True)
class Published:
    """A distribution of published runs: test accuracy after the last epoch, and its mean by epoch."""

    n: int
    test_accuracy: Spread
    test_by_epoch: tuple[float, ...]


SCRATCH = Published(
    n=83,
    test_accuracy=Spread(83, 0.811, 0.069, 0.571, 0.885),
    test_by_epoch=(0.712, 0.752, 0.770, 0.797, 0.798, 0.808, 0.812, 0.822, 0.832, 0.811),
)
TORCH = Published(
    n=85,
    test_accuracy=Spread(85, 0.824, 0.050, 0.619, 0.887),
    test_by_epoch=(0.724, 0.761, 0.779, 0.793, 0.804, 0.813, 0.813, 0.815, 0.834, 0.824),
)
PLAIN = Published(
    n=181,
    test_accuracy=Spread(181, 0.803, 0.016, 0.752, 0.828),
    test_by_epoch=(0.133, 0.524, 0.659, 0.706, 0.736, 0.755, 0.771, 0.785, 0.795, 0.804),
)

LOSS_OF_EVERY_SEED = (0.255, 0.285)
TRAIN_ACCURACY_OF_EVERY_SEED = (0.895, 0.906)
MEAN_LOSS = (0.262, 0.276)
MEAN_TRAIN_ACCURACY = (0.898, 0.904)
LEAST_POPULATION_ACCURACY = 0.875
FEWEST_SEEDS = 8


@dataclass(frozen=True)
class Gate:
    """One condition on the seeds of a recipe, what was measured, and whether that is as it should be.

    `is_passed` is None with too few seeds to say.
    """

    condition: str
    measured: str
    is_passed: bool | None


def check_gates(gates: Mapping[str, Sequence[Gate]]) -> None:
    """Print how many of the gates of each arm passed; with too few seeds none is judged.

    Raises:
        GateError: one failed; the message names each.
    """
    listed = [(arm, gate) for arm, each in gates.items() for gate in each]
    failed = [f"{arm}: {gate.condition} ({gate.measured})" for arm, gate in listed if gate.is_passed is False]
    if failed:
        raise GateError(f"{len(failed)} of {len(listed)} gates failed:\n" + "\n".join(failed))
    passed = sum(gate.is_passed is True for _, gate in listed)
    print(f"{passed} of {len(listed)} gates passed, {len(listed) - passed} not judged (too few seeds)")


def gates_table(gates: Mapping[str, Sequence[Gate]]) -> str:
    """Return the gates of each arm as a Markdown table."""
    words = {True: "yes", False: "**no**", None: "not judged"}
    lines = [
        (f"{arm}: {gate.condition}", gate.measured, words[gate.is_passed])
        for arm, each in gates.items()
        for gate in each
    ]
    return markdown_table(("gate", "measured", "passed"), lines)


def gates(runs: Sequence[Mapping[str, Any]]) -> list[Gate]:
    """Return every gate for the runs of one arm; with fewer than `FEWEST_SEEDS` runs none is judged."""
    whole = [run for run in runs if not run["diverged"]]
    none_diverged = Gate("no seed diverged", f"{len(whole)} of {len(runs)}", len(whole) == len(runs))
    if len(whole) < 2:
        return [none_diverged] if len(runs) >= FEWEST_SEEDS else [replace(none_diverged, is_passed=None)]
    loss = [run["epochs"][-1]["loss"] for run in whole]
    accuracy = [run["epochs"][-1]["train_accuracy"] for run in whole]
    running = Spread.of(run["test_accuracy"]["running"] for run in whole)
    population = Spread.of(run["test_accuracy"]["population"] for run in whole)
    outside = sum(
        not (_is_inside(one, LOSS_OF_EVERY_SEED) and _is_inside(other, TRAIN_ACCURACY_OF_EVERY_SEED))
        for one, other in zip(loss, accuracy, strict=True)
    )
    results = [
        none_diverged,
        _mean_gate("mean final loss", loss, MEAN_LOSS),
        _mean_gate("mean final train accuracy", accuracy, MEAN_TRAIN_ACCURACY),
        Gate(
            f"at most one seed in ten with loss outside {LOSS_OF_EVERY_SEED[0]} to {LOSS_OF_EVERY_SEED[1]} or train "
            f"accuracy outside {TRAIN_ACCURACY_OF_EVERY_SEED[0]} to {TRAIN_ACCURACY_OF_EVERY_SEED[1]}",
            f"{outside} of {len(whole)}",
            outside <= max(1, len(whole) // 10),
        ),
        Gate(
            f"test accuracy with population statistics at least {LEAST_POPULATION_ACCURACY} in every seed",
            f"least {population.least:.4f}",
            population.least >= LEAST_POPULATION_ACCURACY,
        ),
        Gate(
            "its mean above that with running statistics",
            f"{population.mean:.4f} against {running.mean:.4f}",
            population.mean > running.mean,
        ),
        Gate(
            "its standard deviation at most half",
            f"{population.sd:.4f} against {running.sd:.4f}",
            _is_halved(population, running),
        ),
    ]
    return results if len(runs) >= FEWEST_SEEDS else [replace(gate, is_passed=None) for gate in results]


def _mean_gate(name: str, values: Sequence[float], bounds: tuple[float, float]) -> Gate:
    mean = Spread.of(values).mean
    return Gate(f"{name} from {bounds[0]} to {bounds[1]}", f"{mean:.4f}", _is_inside(mean, bounds))


def _is_inside(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= value <= bounds[1]


def _is_halved(population: Spread, running: Spread) -> bool:
    return population.n > 1 and population.sd <= running.sd / 2
