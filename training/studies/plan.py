"""What `compare` trains: every arm of every question, with its seeds and epochs.

A table and nothing else: `compare` runs it, and the report reads the figures back by the names of the arms. Trainings
of the book's length give figures over seeds; a sweep shows where something breaks, which a few epochs do.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from .arms import Arm, Case, cases_of

LEARNING_RATES = (0.1, 0.3, 1.0, 3.0, 10.0)
BATCH_SIZES = (2, 8, 32, 128, 512)
SWEEP_EPOCHS = 2
BATCH_SWEEP_ROWS = 12_000  # a batch of 2 takes 100 times as long for an image as one of 256
BATCH_SWEEP_RATE = 0.1  # 1.0 is too much for any arm at a batch of 2
VARIANT_EPOCHS = 3
QUICK_ROWS = 2_560
QUICK_SEEDS = 2

TORCH = Arm(name="seeds-torch", options={"norm": "torch"})
SCRATCH = Arm(name="seeds-scratch", options={"norm": "scratch"})
TAIL_LAST = Arm(name="seeds-torch-tail-last", options={"norm": "torch", "tail": "last"})
NO_NORM = Arm(name="seeds-none", options={"norm": "none"})
PLAIN = Arm(name="seeds-plain", options={"norm": "none", "learning_rate": 0.9}, network="lenet-plain")

LEARNING_RATE_SWEEP = tuple(
    Arm(name=f"lr-{norm}-{rate:g}", options={"norm": norm, "learning_rate": rate, "epochs": SWEEP_EPOCHS})
    for rate in LEARNING_RATES
    for norm in ("torch", "none")
)
BATCH_SIZE_SWEEP = tuple(
    Arm(
        name=f"batch-{norm}-{size}",
        options={"norm": norm, "batch_size": size, "epochs": SWEEP_EPOCHS, "learning_rate": BATCH_SWEEP_RATE},
        train_rows=BATCH_SWEEP_ROWS,
    )
    for size in BATCH_SIZES
    for norm in ("torch", "none")
)
NOISY = Arm(name="variant-noisy", options={"epochs": VARIANT_EPOCHS}, network="noisy-norm")
NORM_AFTER = Arm(name="variant-norm-after", options={"epochs": VARIANT_EPOCHS}, network="norm-after")
DROPOUT = Arm(name="variant-dropout", options={"epochs": VARIANT_EPOCHS}, network="dropout")
DROPOUT_NO_NORM = Arm(
    name="variant-dropout-none", options={"epochs": VARIANT_EPOCHS, "norm": "none"}, network="dropout"
)
SHORT = Arm(name="variant-plain-norm", options={"epochs": VARIANT_EPOCHS})
SHORT_NO_NORM = Arm(name="variant-none", options={"epochs": VARIANT_EPOCHS, "norm": "none"})


@dataclass(frozen=True)
class Study:
    """Arms that answer one question, each over the same seeds."""

    arms: tuple[Arm, ...]
    seeds: int

    def cases(self) -> list[Case]:
        """Return its trainings, all arms of one seed before the next."""
        return cases_of(self.arms, self.seeds)


def studies(seeds: int) -> dict[str, Study]:
    """Return every study by name.

    Args:
        seeds: of the arms of the book's length whose spread is the question; the others take fewer.
    """
    return {
        "seeds": Study((TORCH, SCRATCH), seeds),
        "tail": Study((TAIL_LAST,), max(1, seeds // 2)),
        "without": Study((NO_NORM, PLAIN), max(1, seeds // 2)),
        "variants": Study((SHORT, NOISY, NORM_AFTER, DROPOUT, SHORT_NO_NORM, DROPOUT_NO_NORM), max(1, seeds // 8)),
        "learning-rates": Study(LEARNING_RATE_SWEEP, 1),
        "batch-sizes": Study(BATCH_SIZE_SWEEP, 1),
    }


def in_turns(planned: Iterable[Study]) -> list[Case]:
    """Return all cases with every study's first seed before any second one, so that a cut run has a bit of each."""
    cases = [case for study in planned for case in study.cases()]
    return sorted(cases, key=lambda case: case.seed)


def quickened(cases: Iterable[Case]) -> list[Case]:
    """Return the cases with one epoch on few rows: it shows that everything runs, not what is true."""
    return [Case(case.arm.shortened(epochs=1, rows=QUICK_ROWS), case.seed) for case in cases]
