"""What the outputs of a network mean: the arithmetic of each task in float64, and which output it is about.

`served_graph` writes the same arithmetic into the graph; this is what the graph is compared with.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from foldserve.format.task import CLASSIFY, EMBED, MULTILABEL, REGRESS, TENSORS

from ..errors import ConfigError, VerifyError
from .network import Array

_USUAL_NAMES = ("logits", "scores", "probabilities", "probability", "out", "output_probability")
_SUM_TOLERANCE = 1e-5  # of probabilities: leaves of trees are stored in float32
RESULTS = {REGRESS: "values", EMBED: "embedding"}  # the one output of a task that changes no number


def scores_of(outputs: Mapping[str, Array], task: str, name: str | None = None) -> str | None:
    """Return the name of the output that `task` is about, None for `tensors`.

    Args:
        outputs: of the network, by name.
        task: one of `foldserve.format.task`.
        name: as the user gave it.

    Raises:
        ConfigError: there is no such output, or several, or it is not one row of numbers for each row.
    """
    if task == TENSORS:
        return None
    if name is not None and name not in outputs:
        raise ConfigError(f"output {name!r}: the network has {', '.join(outputs)}")
    floats = [key for key, value in outputs.items() if value.dtype.kind == "f" and value.ndim]
    usual = [key for key in (RESULTS.get(task), *_USUAL_NAMES) if key in floats]
    if name is None and len(floats) != 1 and not usual:
        raise ConfigError(
            f"task {task}: the network has outputs {', '.join(outputs)}; say which one with --scores NAME"
        )
    chosen = name or (usual or floats)[0]
    shape = outputs[chosen].shape
    if len(shape) > 2 and any(size != 1 for size in shape[2:]):
        raise ConfigError(
            f"task {task}: output {chosen!r} has shape {shape}, expected (rows, numbers); see --task tensors"
        )
    if task == CLASSIFY and (len(shape) < 2 or shape[1] < 2):
        raise ConfigError(
            f"task classify: output {chosen!r} has shape {shape}, expected one number for each of two classes or more; "
            "one number is --task multilabel (of one label) or --task regress"
        )
    return chosen


def are_probabilities(scores: Array, task: str, producer: str) -> bool:
    """Return whether a network's own scores are probabilities already, so that nothing has to be added.

    Args:
        scores: (N, C) of the float64 oracle.
        task: `classify`: every row sums to one; `multilabel`: what makes them gives nothing else.
        producer: the operation that makes them in the graph.
    """
    values = scores.reshape(len(scores), -1)
    within = bool((values >= 0).all() and (values <= 1 + _SUM_TOLERANCE).all())
    if task == CLASSIFY:
        return within and bool(np.allclose(values.sum(axis=1), 1.0, rtol=0, atol=_SUM_TOLERANCE))
    return within and producer in ("Sigmoid", "HardSigmoid", "Softmax")


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a network's outputs are for the task that is served.

    Attributes:
        task: one of `foldserve.format.task`.
        scores: the output that the task is about; None for `tensors`.
        is_probability: it holds probabilities already, so that nothing is added.
    """

    task: str
    scores: str | None
    is_probability: bool

    def expected(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return what the served graph has to answer, from the outputs of the unfolded network.

        Raises:
            VerifyError: a value is NaN or infinite.
        """
        if self.task == TENSORS or self.scores is None:
            found = {name: array for name, array in outputs.items() if array.dtype.kind in "fiub"}
        else:
            values = outputs[self.scores].astype(np.float64).reshape(len(outputs[self.scores]), -1)
            found = _of_task(values, self.task, self.is_probability)
        for name, array in found.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise VerifyError(f"output {name!r} of the unfolded network holds NaN or infinity on the examples")
        return found


def _of_task(values: Array, task: str, is_probability: bool) -> dict[str, Array]:
    if task in RESULTS:
        return {RESULTS[task]: values}
    if is_probability:
        found = {"probabilities": values}
    elif task == MULTILABEL:
        found = {"logits": values, "probabilities": 1 / (1 + np.exp(-values))}
    else:
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        found = {"logits": values, "probabilities": powers / powers.sum(axis=1, keepdims=True)}
    if task == CLASSIFY:
        found["class_id"] = values.argmax(axis=1)[:, np.newaxis].astype(np.int64)
    return found
