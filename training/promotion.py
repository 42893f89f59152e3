"""Whether a new version may go live by itself: not where it is worse than the newest, beyond noise, on the same data.

The test is McNemar's, exact and one-sided: of the examples on which just one of two models is right, the older one is
right on so many that chance would do it less than once in a hundred times. Source: McNemar 1947, Psychometrika 12.
Used by `publish` and by `train`; the service obeys what the manifest says.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.01


@dataclass(frozen=True, kw_only=True)
class Change:
    """How a new version compares with an older one on the same examples.

    Attributes:
        version: number of the older one.
        before: share of right answers of the older one.
        after: share of right answers of the new one.
        lost: examples that only the older one gets right.
        won: examples that only the new one gets right.
    """

    version: int
    before: float
    after: float
    lost: int
    won: int

    @property
    def probability(self) -> float:
        """Of so many losses or more, if each of these examples were lost or won by the toss of a coin."""
        number = self.lost + self.won
        return float(sum(math.comb(number, k) for k in range(self.lost, number + 1)) / 2**number)

    @property
    def is_worse(self) -> bool:
        """True where chance does not explain the losses."""
        return self.lost > self.won and self.probability < LEVEL

    def __str__(self) -> str:
        return (
            f"accuracy {self.after:.4f}, version {self.version} had {self.before:.4f} on the same data: "
            f"{self.lost} examples became wrong, {self.won} right (McNemar's exact test: p = {self.probability:.2g})"
        )


def compare(version: int, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Change:
    """Return how two versions compare, from whether each is right on each of the same examples, (N,) each."""
    return Change(
        version=version,
        before=float(before.mean()),
        after=float(after.mean()),
        lost=int((before & ~after).sum()),
        won=int((after & ~before).sum()),
    )


def promotion_of(change: Change | None, *, is_wanted: bool) -> dict[str, Any]:
    """Return the manifest's `promotion`, empty where there is nothing against going live.

    Args:
        change: against the newest version; None where nothing can be compared.
        is_wanted: the publisher said `--promote`.
    """
    if change is None or not change.is_worse:
        return {}
    reason = f"worse than the version before: {change}"
    return {"promotion": {"promoted": is_wanted, "reason": f"{reason}; --promote was given" if is_wanted else reason}}
