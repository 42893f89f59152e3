"""Rows held out of a training set: a share of each class, by a seed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError


def held_out(
    labels: NDArray[np.int64], share: float, seed: int, flag: str, class_names: Sequence[str]
) -> NDArray[np.bool_]:
    """Return which rows are held out, (N,): of each class the share, rounded, but one at least and not all.

    Args:
        labels: (N,) class ids.
        share: above 0 and below 1.
        seed: another one holds out other rows.
        flag: that gave the share, for messages.
        class_names: index = class id, for messages.

    Raises:
        DatasetError: a class has only one row, or the share is out of its range; every such class is named.
    """
    if not 0 < share < 1:
        raise DatasetError(f"{flag} {share}: expected a share above 0 and below 1, or the path of a set of its own")
    chosen = np.zeros(len(labels), dtype=np.bool_)
    classes, counts = np.unique(labels, return_counts=True)
    if (counts < 2).any():
        lonely = ", ".join(class_names[number] for number in classes[counts < 2])
        raise DatasetError(
            f"{flag} {share}: too few images to hold some out of each class ({lonely}); add images, or give a set of "
            f"its own with {flag}"
        )
    generator = np.random.default_rng(seed)
    for number, count in zip(classes, counts, strict=True):
        rows = generator.permutation(np.flatnonzero(labels == number))
        chosen[rows[: min(max(1, round(share * int(count))), int(count) - 1)]] = True
    return chosen
