"""What `compare` trains: every arm of every question, with its number of seeds and epochs.

A table and nothing else: `compare` runs it and `report` reads the figures back by the same names.
"""

from dataclasses import dataclass

from training.studies.arms import Arm, Case, cases_of

SEEDS = (
    Arm(name="seeds-torch", options={"norm": "torch"}),
    Arm(name="seeds-scratch", options={"norm": "scratch"}),
)
SEEDS_TAIL_LAST = (Arm(name="seeds-torch-tail-last", options={"norm": "torch", "tail": "last"}),)


@dataclass(frozen=True)
class Study:
    """Arms that answer one question, each over the same seeds."""

    arms: tuple[Arm, ...]
    seeds: int

    def cases(self) -> list[Case]:
        """Return its trainings in the order in which they are best begun."""
        return cases_of(self.arms, self.seeds)
