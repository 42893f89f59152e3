"""Which examples become golden answers: clear ones, of many classes, and no more than a manifest should carry."""

from collections.abc import Mapping

import numpy as np

from foldserve.format.tensors import tensor_bytes

from .network import Array, Feeds

ROWS = 16
_MOST_BYTES = 700_000  # of tensors, before base64; 1 MB in the manifest


def choose(expected: Mapping[str, Array], unsure: Array, feeds: Feeds, rows: Array) -> tuple[Array, tuple[str, ...]]:
    """Return ascending positions of the examples to keep, and a note where none of them has a clear class.

    Args:
        expected: outputs of the oracle.
        unsure: rows whose integers rounding might change, (N,) bool.
        feeds: what the manifest has to hold of the inputs, each (N, ...); nothing for pictures that are files.
        rows: indices of the examples.
    """
    clear = np.flatnonzero(~unsure)
    notes: tuple[str, ...] = ()
    if not clear.size:
        clear = np.arange(len(rows))
        notes = ("no example has a clear class: the golden answers hold scores and no whole numbers",)
    if "class_id" in expected:
        _, first = np.unique(expected["class_id"][clear, 0], return_index=True)
        order = np.concatenate([clear[first], np.delete(clear, first)])
    else:
        order = clear
    size = sum(_row_bytes(array) for array in (*feeds.values(), *expected.values()))
    most = max(1, min(ROWS, _MOST_BYTES // max(1, size)))
    return np.sort(order[:most]), notes


def _row_bytes(array: Array) -> int:
    """Return the bytes of a row, of the longest one where they hold texts."""
    if array.dtype != object:
        return array[:1].nbytes
    return max(len(tensor_bytes(array[row : row + 1])) for row in range(len(array)))
