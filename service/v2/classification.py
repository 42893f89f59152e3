"""The `classification` extension: the k largest values of each row, as text `value:index[:label]`.

Stands between a model's outputs and both response formats. Values are written with the fewest digits that give the
same float back.
"""

from collections.abc import Sequence

import numpy as np

from ..tensors import Array
from .datatypes import bytes_tensor


def classify(values: Array, classes: int, class_names: Sequence[str] | None) -> Array:
    """Return the largest values of each row in falling order, equal ones by rising index.

    Args:
        values: numbers, (rows, ...); the axes behind the first are taken as one.
        classes: how many; more than there are gives all.
        class_names: a name for each index, or None; left out when there are not as many as values in a row.

    Returns:
        `bytes` objects, shape (rows, min(classes, values in a row)).
    """
    rows = values.reshape(len(values), -1)
    count = min(classes, rows.shape[1])
    named = class_names if class_names is not None and len(class_names) == rows.shape[1] else None
    order = np.argsort(_falling(rows), axis=1, kind="stable")[:, :count]
    entries = [_entry(row[index], int(index), named) for row, best in zip(rows, order, strict=True) for index in best]
    return bytes_tensor(entries, (len(rows), count))


def _falling(rows: Array) -> Array:
    """Return keys that rise as the values fall; -x would wrap around for unsigned types and the smallest integer."""
    if np.issubdtype(rows.dtype, np.floating):
        return np.where(np.isnan(rows), np.inf, -rows)  # what is not a number comes last
    return np.invert(rows)  # all bits turned: -x - 1 for signed, max - x for unsigned


def _entry(value: np.generic, index: int, class_names: Sequence[str] | None) -> bytes:
    text = f"{value!s}:{index}"
    return (text if class_names is None else f"{text}:{class_names[index]}").encode()
