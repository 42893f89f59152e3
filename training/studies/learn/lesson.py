"""What a lesson is: a claim, a measurement, what follows from its figures, and a picture of them.

Figures are plain JSON values. Table, findings and picture are made of them alone, so that a report can be held to its
figures and drawn anew without measuring again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from foldserve import patience

from ...dataset import FashionMNIST

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """How much is measured, and with what.

    Attributes:
        seeds: repetitions of what depends on chance.
        load: gives Fashion-MNIST; called by lessons that need it.
        store: file in which finished trainings are kept, so that an interrupted lesson goes on.
        command: that is typed for this, for the record.
        jobs: trainings side by side.
        quick: whether as little is trained as shows that everything runs.
        tell: takes a line of progress.
    """

    seeds: int
    load: Callable[[], FashionMNIST]
    store: Path
    command: str
    jobs: int = 1
    quick: bool = False
    tell: Callable[[str], None] = patience.tell


@dataclass(frozen=True)
class Finding:
    """One number beside what was said of it.

    Attributes:
        what: is measured.
        measured: in words.
        said: by the text, or by a formula.
        agrees: whether the one is the other.
    """

    what: str
    measured: str
    said: str
    agrees: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Reading:
    """What follows from figures: findings, and a table for people."""

    findings: Sequence[Finding]
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()


@dataclass(frozen=True)
class Lesson:
    """One claim and how it is shown.

    Attributes:
        name: what is typed.
        says: the claim, in our words.
        measure: gives the figures.
        read: what follows from figures.
        draw: a picture of figures; None where numbers say it all.
        seeds: repetitions when none are asked for; 0 where nothing depends on chance.
    """

    name: str
    says: str
    measure: Callable[[Setting], dict[str, Any]]
    read: Callable[[Figures], Reading]
    draw: Callable[[Figures], Figure] | None = None
    seeds: int = 0
