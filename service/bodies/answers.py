"""Outputs of a model -> the bytes of an answer to `POST /predict`, in the form of the model's task.

Pure functions, the counterpart of `predict_body`: no request, no framework.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from foldserve.format.task import CLASSIFY, EMBED, MULTILABEL, REGRESS, TENSORS, Task

from ..errors import EngineError, InvalidInput, ServiceError
from ..tensors import Array

Predictions = Iterable[dict[str, Any]]


def predictions_json(
    model: str,
    version: int,
    task: Task,
    class_names: Sequence[str] | None,
    outputs: Mapping[str, Array],
    top: int | None = None,
) -> bytes:
    """Return the answer for n rows as JSON.

    Args:
        model: its name.
        version: the version that gave the outputs.
        task: what the outputs mean.
        class_names: index = class id; None where the classes have no names.
        outputs: those that the task needs, each with n rows.
        top: give only so many classes, the most probable first; None gives the probabilities of all.

    Raises:
        EngineError: a probability is not a finite number.
        InvalidInput: another output is not one for these inputs; JSON cannot hold it.
    """
    predictions = list(predictions_of(model, task, class_names, outputs, top))
    answer = {"model": model, "version": version, "predictions": predictions}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)  # the shortest digits that give the same float32


def predictions_of(
    model: str, task: Task, class_names: Sequence[str] | None, outputs: Mapping[str, Array], top: int | None = None
) -> Predictions:
    """Return what is said of each row, in values that `orjson` writes; arguments and errors as above."""
    refusal = _NOT_ITS_FAULT.get(task.name, EngineError)
    readable = {name: _readable(model, name, array, refusal) for name, array in outputs.items()}
    names = _Names(class_names)
    if task.name == CLASSIFY:
        return _classified(names, readable["probabilities"], readable["class_id"], top)
    if task.name == MULTILABEL:
        return _labelled(names, readable["probabilities"], task.threshold, top)
    return _WRITERS[task.name](readable)


def _classified(names: "_Names", probabilities: Array, class_ids: Array, top: int | None) -> Predictions:
    for class_id, row in zip(class_ids.ravel().tolist(), probabilities, strict=True):
        head = {"class_id": class_id, "label": names[class_id], "confidence": row[class_id]}
        if top is None:
            yield {**head, "probabilities": row}
        else:
            best = np.argsort(-row, kind="stable")[:top]
            yield {**head, "top": [_entry(names, class_id, row) for class_id in best.tolist()]}


def _labelled(names: "_Names", probabilities: Array, threshold: float, top: int | None) -> Predictions:
    for row in probabilities:
        given = [class_id for class_id in np.argsort(-row, kind="stable").tolist() if row[class_id] >= threshold]
        yield {"labels": [_entry(names, class_id, row) for class_id in given[:top]]}


def _entry(names: "_Names", class_id: int, row: Array) -> dict[str, Any]:
    return {"class_id": class_id, "label": names[class_id], "probability": row[class_id]}


class _Names:
    """Class names by class id; None where there are no names."""

    def __init__(self, names: Sequence[str] | None) -> None:
        self._names = names

    def __getitem__(self, class_id: int) -> str | None:
        return None if self._names is None else self._names[class_id]


def _outputs(outputs: Mapping[str, Array]) -> Predictions:
    for row in zip(*outputs.values(), strict=True):
        yield {"outputs": {name: _plain(value) for name, value in zip(outputs, row, strict=True)}}


def _plain(value: Any) -> Any:
    """Return one row of an output in a type that `orjson` knows: texts as a list, and no C type beside the usual."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype == object else value
    return value if isinstance(value, np.floating) else getattr(value, "tolist", lambda: value)()


_WRITERS: Mapping[str, Callable[[Mapping[str, Array]], Predictions]] = {
    REGRESS: lambda outputs: ({"values": row.ravel()} for row in outputs["values"]),
    EMBED: lambda outputs: ({"embedding": row.ravel()} for row in outputs["embedding"]),
    TENSORS: _outputs,
}


# Probabilities are finite whatever is asked; other outputs may well be infinite for some inputs.
_NOT_ITS_FAULT: Mapping[str, type[ServiceError]] = dict.fromkeys((REGRESS, EMBED, TENSORS), InvalidInput)


def _readable(model: str, name: str, array: Array, refusal: type[ServiceError]) -> Array:
    """Return an output as JSON can hold it."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise refusal(
            f"model {model!r} gave {name} that are not finite numbers, which JSON cannot say: "
            f"/v2/models/{model}/infer gives them as binary data"
        )
    if array.dtype.kind in "OSU":
        texts = [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in array.ravel()]
        return np.array(texts, object).reshape(array.shape)
    return np.ascontiguousarray(array.astype(np.float32) if array.dtype == np.float16 else array)
