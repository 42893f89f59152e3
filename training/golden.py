"""Golden answers: a few real images and what the unfolded network gives for them in float64, rounded once.

`foldserve.format.golden` writes them into the manifest and compares with them; this module chooses the images and says
what the answers are. It runs no network.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foldserve.format.errors import GoldenError
from foldserve.format.golden import Golden

from .errors import VerifyError

ROWS = 16
MOST_BYTES = 1 << 20  # of the images together: a manifest is read by people, and sent about
TOLERANCE: Mapping[str, float] = {"cpu": 1e-5, "cuda": 1e-4}  # of the largest |value| of each float output
# Below this gap between the two best logits, relative to the largest, another machine might rightly name another class.
DECISIVE_MARGIN = 1e-3


def choose(labels: NDArray[np.int64], logits: NDArray[np.float64], rows: int = ROWS) -> NDArray[np.int64]:
    """Return ascending indices of `rows` images with clear answers, every class of `labels` among them if they suffice.

    Args:
        labels: (N,) true classes.
        logits: (N, classes) of the float64 oracle.
        rows: how many; fewer where fewer have a clear answer. Where none has one, any images: their scores prove
            something still.
    """
    candidates = np.flatnonzero(are_clear(logits))
    if not candidates.size:
        candidates = np.arange(len(labels))
    _, first = np.unique(labels[candidates], return_index=True)
    chosen = candidates[first][:rows]
    rest = np.setdiff1d(candidates, chosen)[: rows - chosen.size]
    return np.sort(np.concatenate([chosen, rest]))


def unclear_classes(labels: NDArray[np.int64], logits: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the classes of `labels` of which no image has a clear answer, ascending."""
    unclear: NDArray[np.int64] = np.setdiff1d(labels, labels[are_clear(logits)])
    return unclear


def are_clear(logits: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which rows of `logits` every machine names alike, (N,)."""
    clear: NDArray[np.bool_] = margins(logits) > DECISIVE_MARGIN * np.abs(logits).max()
    return clear


def margins(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the gap between the largest and the second largest of each row of `logits`, (N,)."""
    ordered = np.sort(logits, axis=1)
    gap: NDArray[np.float64] = ordered[:, -1] - ordered[:, -2]
    return gap


def expected_outputs(logits: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    """Return what a served model should give for the oracle's float64 `logits`, each value rounded once.

    Returns:
        `logits` and `probabilities` float32 (N, classes), `class_id` int64 (N, 1).
    """
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return {
        "logits": logits.astype(np.float32),
        "probabilities": (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32),
        "class_id": logits.argmax(axis=1)[:, np.newaxis].astype(np.int64),
    }


def check(golden: Golden, outputs: Mapping[str, NDArray[Any]], provider: str = "cpu") -> dict[str, float]:
    """Return the largest relative deviation of each float output in `outputs` from its golden answer.

    Raises:
        VerifyError: an answer is missing, or is off by more than the tolerance of `provider`.
    """
    try:
        return golden.check(outputs, provider)
    except GoldenError as err:
        raise VerifyError(f"golden answers: {err}") from err
