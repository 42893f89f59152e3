"""Which classes a version gave to its clients, and how sure it was: where this changes, the world has, or the model.

Noted batch by batch and counted in bulk, when metrics are read. What the service asks itself is left out, together
with the rows of clients that shared such a batch.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ..metrics import PredictionMetrics
from ..tensors import Array, TensorSpec

MOST_CLASSES = 200  # of which each has a series of its own; a model with more has none for its classes

_SMALL = 4_096  # values of a batch that are kept as they are: reducing few costs a lone request more than keeping them
_MOST_NOTED = 256


def is_countable(outputs: Mapping[str, TensorSpec]) -> bool:
    """Whether each row has one class and a probability for each, both numbers."""
    probabilities, class_id = outputs["probabilities"], outputs["class_id"]
    shapes = len(probabilities.shape) == 2 and probabilities.shape[1] and class_id.shape[1:] in ((), (1,))
    return bool(shapes) and probabilities.dtype.kind == "f" and class_id.dtype.kind in "iu"


class Predictions:
    """The predictions of one version that classifies.

    Args:
        metrics: show them.
        class_names: index = class id; None shows the ids.
        classes: how many there are.
    """

    def __init__(self, metrics: PredictionMetrics, class_names: Sequence[str] | None, classes: int) -> None:
        self._metrics = metrics
        self._names = [str(number) for number in range(classes)] if class_names is None else list(class_names)
        self._class_ids: list[Array] = []
        self._confidences: list[Array] = []
        self._probabilities: list[Array] = []

    def note(self, outputs: Mapping[str, Array], rows: int) -> None:
        """Note the first rows of a batch.

        Args:
            outputs: `class_id` (N, 1) or (N,), integers, and `probabilities` (N, classes), which are not kept.
            rows: of clients; those behind them fill the batch.
        """
        probabilities = outputs["probabilities"][:rows]
        self._class_ids.append(outputs["class_id"][:rows].copy())
        if probabilities.size > _SMALL:
            self._confidences.append(probabilities.max(axis=-1))
        else:
            self._probabilities.append(probabilities.copy())
        if len(self._class_ids) >= _MOST_NOTED:
            self.count()

    def count(self) -> None:
        """Count what was noted."""
        if not self._class_ids:
            return
        noted, self._class_ids = self._class_ids, []
        sure, self._confidences = self._confidences, []
        small, self._probabilities = self._probabilities, []
        if small:
            sure.append(np.concatenate(small).max(axis=-1))
        confidences = np.concatenate([part.ravel() for part in sure]).astype(np.float64)
        self._metrics.confidences(confidences[np.isfinite(confidences)])
        if len(self._names) <= MOST_CLASSES:
            ids = np.concatenate([part.ravel() for part in noted])
            counts = np.bincount(ids[(ids >= 0) & (ids < len(self._names))])
            given: Counter[str] = Counter()
            for number in np.flatnonzero(counts).tolist():
                given[self._names[number]] += int(counts[number])
            self._metrics.classes(given)
