"""Rows held out of a training set: a share of each class, by a seed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError


def held_out(labels: NDArray[Any], share: float, seed: int, flag: str) -> NDArray[np.bool_]:
    """Return which rows are held out, (N,): of each class the share, rounded, but one at least and not all.

    Args:
        labels: (N,) of any type.
        share: above 0 and below 1.
        seed: another one holds out other rows.
        flag: that gave the share, for messages.

    Raises:
        DatasetError: a class has only one row, or the share is out of its range; every such class is named.
    """
    if not 0 < share < 1:
        raise DatasetError(f"{flag} {share}: expected a share above 0 and below 1, or the path of a set of its own")
    chosen = np.zeros(len(labels), dtype=np.bool_)
    classes, counts = np.unique(labels, return_counts=True)
    if (counts < 2).any():
        lonely = ", ".join(str(name) for name in classes[counts < 2])
        raise DatasetError(
            f"{flag} {share}: too few images to hold some out of each class ({lonely}); add images, or give a set of "
            f"its own with {flag}"
        )
    generator = np.random.default_rng(seed)
    for name, count in zip(classes, counts, strict=True):
        rows = generator.permutation(np.flatnonzero(labels == name))
        chosen[rows[: min(max(1, round(share * int(count))), int(count) - 1)]] = True
    return chosen
