"""Whether the class that a classifier names itself is the one of its largest score, which is what is served.

Exporters of scikit-learn's write both. A support vector machine names the class that most pairs vote for, and its
scores are of pairs or of distances: their largest may be another class, of two classes even the other one throughout.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import ConfigError
from .network import Array
from .reference import Answers

_NAMES = ("label", "output_label", "class", "class_id", "predicted_class")
_NEAR = 1e-5  # of the largest score: nearer ones may be told apart either way


def check_own_classes(answers: Answers, scores: str, classes: Sequence[str] | None) -> None:
    """Raise ConfigError where a network's own class is another one than that of its largest score.

    It has to be so in float64 as in the network's own precision: of two classes the runtime names some wrongly itself.

    Args:
        answers: of the network.
        scores: the output that the task is about, (N, C).
        classes: as the graph names them, in the order of the scores; None: by their numbers.
    """
    values = answers.deployed[scores].reshape(len(answers.rows), -1)
    ordered = np.sort(values, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > _NEAR * np.abs(values).max()
    known = list(classes) if classes is not None else [str(number) for number in range(values.shape[1])]
    for name, own in answers.deployed.items():
        named, exactly = (_classes_named(name, given, known) for given in (own, answers.oracle[name]))
        if named is None or exactly is None:
            continue
        differ = np.flatnonzero((named != values.argmax(axis=1)) & (exactly == named) & clear)
        if differ.size:
            row = int(differ[0])
            raise ConfigError(
                f"output {name!r} names class {known[named[row]]!r} for example {row}, and the largest of {scores!r} is"
                f" that of {known[values[row].argmax()]!r} ({differ.size} of {len(values)} examples): these scores do "
                "not say which class it is, as of a support vector machine; export another classifier, or publish the "
                "scores as they are with --task tensors"
            )


def _classes_named(name: str, own: Array, known: Sequence[str]) -> Array | None:
    """Return class ids (N,) of an output that names a class for each row; None where it is something else."""
    if own.dtype.kind in "fcb" or own.size != len(own) or (own.dtype.kind in "iu" and name not in _NAMES):
        return None
    ids = {text: number for number, text in enumerate(known)}
    found = [ids.get(text.decode() if isinstance(text, bytes) else str(text), -1) for text in own.reshape(-1).tolist()]
    return np.array(found) if min(found) >= 0 else None
