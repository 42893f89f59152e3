"""What the outputs of a model mean, which the graph's metadata states: it decides the form of an answer.

`foldserve.task` names the task, `foldserve.threshold` when a label of several is given, `foldserve.columns` the values
of a row. A graph that states no task classifies where it has labels, `probabilities` and `class_id`; else its outputs
are given as they are.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from .errors import FormatError
from .metadata import canonical_json, read_labels

TASK = "foldserve.task"
THRESHOLD = "foldserve.threshold"
COLUMNS = "foldserve.columns"

CLASSIFY, MULTILABEL, REGRESS, EMBED, TENSORS = "classify", "multilabel", "regress", "embed", "tensors"
# The outputs that a task needs; others may stand beside them.
OUTPUTS: Mapping[str, tuple[str, ...]] = {
    CLASSIFY: ("probabilities", "class_id"),
    MULTILABEL: ("probabilities",),
    REGRESS: ("values",),
    EMBED: ("embedding",),
    TENSORS: (),
}


@dataclass(frozen=True, slots=True)
class Task:
    """What a model does.

    Attributes:
        name: one of `OUTPUTS`.
        threshold: of `multilabel`, the least probability of a label that is given, 0 to 1.
        columns: names of the values of a row, for a model of one input; None where they have none.
    """

    name: str
    threshold: float = 0.5
    columns: tuple[str, ...] | None = None

    def as_metadata(self) -> dict[str, str]:
        """Return the entries of the graph's metadata that state it."""
        stated = {TASK: self.name}
        if self.name == MULTILABEL:
            stated[THRESHOLD] = canonical_json(self.threshold)
        if self.columns is not None:
            stated[COLUMNS] = canonical_json(self.columns)
        return stated


def read_task(metadata: Mapping[str, str], outputs: Collection[str]) -> Task:
    """Return what the outputs of a graph mean.

    Args:
        metadata: of the graph.
        outputs: names of its outputs.

    Raises:
        FormatError: the task is unknown or needs outputs that there are not, or an entry cannot be read.
    """
    name = metadata.get(TASK)
    if name is None:
        classifies = read_labels(metadata) is not None and set(OUTPUTS[CLASSIFY]) <= set(outputs)
        name = CLASSIFY if classifies else TENSORS
    if name not in OUTPUTS:
        raise FormatError(f"{TASK} is {name[:80]!r}, expected one of {', '.join(OUTPUTS)}")
    missing = [output for output in OUTPUTS[name] if output not in outputs]
    if missing:
        raise FormatError(f"{TASK} is {name!r}, which needs the output {missing[0]!r}; there are {sorted(outputs)}")
    return Task(name, _threshold(metadata), _columns(metadata))


def _threshold(metadata: Mapping[str, str]) -> float:
    try:
        value = json.loads(metadata.get(THRESHOLD, "0.5"))
    except (ValueError, RecursionError):
        value = None
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise FormatError(f"{THRESHOLD} is {metadata[THRESHOLD][:80]}, expected a number 0 to 1")
    return float(value)


def _columns(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    if COLUMNS not in metadata:
        return None
    try:
        names = json.loads(metadata[COLUMNS])
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise FormatError(f"{COLUMNS} is {metadata[COLUMNS][:80]}, expected an array of different names")
    return tuple(names)
