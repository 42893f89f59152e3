"""The golden inputs of a version, as something to try it with: pictures as files, rows as `/predict` takes them."""

import asyncio
import base64
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import orjson

from foldserve.format.picture_types import picture_type
from foldserve.format.task import CLASSIFY

from ..bodies.answers import predictions_of
from ..live.model import Model
from ..tensors import Array

MOST_BYTES = 1 << 20  # of the inputs in one answer
TOP = 5


class SampleBook:
    """The samples of every version that somebody asked for, written once; a version that leaves takes its own along."""

    def __init__(self) -> None:
        self._written: WeakKeyDictionary[Model, bytes] = WeakKeyDictionary()

    async def of(self, model: Model) -> bytes:
        """Return the samples of a version, as JSON."""
        if model not in self._written:
            self._written[model] = await asyncio.to_thread(samples_json, model)
        return self._written[model]


def samples_json(model: Model) -> bytes:
    """Return as many golden inputs as fit into an answer, at least one where there are any, with their answers."""
    golden = model.artifact.golden
    samples: list[dict[str, Any]] = []
    if model.is_verified:
        expected = predictions_of(model.name, model.task, model.class_names, _outputs(model), TOP)
        samples = [sample | {"expected": said} for sample, said in zip(_fitting(model), expected, strict=False)]
    rows = golden.rows if model.is_verified else 0
    answer = {"model": model.name, "version": model.version, "rows": rows, "samples": samples}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _outputs(model: Model) -> dict[str, Array]:
    """Return the golden outputs; where none of them has a clear class, with the class that has the largest score."""
    outputs = dict(model.artifact.golden.outputs)
    if model.task.name == CLASSIFY and "class_id" not in outputs:
        outputs["class_id"] = outputs["probabilities"].argmax(axis=1)[:, np.newaxis]
    return outputs


def _fitting(model: Model) -> Iterator[dict[str, Any]]:
    """Yield golden inputs until an answer is full; the first one however large it is."""
    size = 0
    for row, sample in enumerate(_samples(model)):
        size += len(orjson.dumps(sample["instance"], option=orjson.OPT_SERIALIZE_NUMPY))
        if row and size > MOST_BYTES:
            return
        yield sample


def _samples(model: Model) -> Iterator[dict[str, Any]]:
    golden, recipe = model.artifact.golden, model.image
    if golden.files:
        yield from (_picture(file.name, file.content) for file in golden.files)
    elif recipe is not None:
        from foldserve.pictures.encode import as_png  # its library takes long to import

        for row, pixels in enumerate(golden.inputs[recipe.input]):
            yield _picture(f"golden-{row}.png", as_png(pixels, recipe))
    else:
        for row in range(golden.rows):
            yield {"name": f"golden-{row}", "media_type": None, "b64": None, "instance": _instance(model, row)}


def _picture(name: str, content: bytes) -> dict[str, Any]:
    """Return a picture as a file, and as an instance."""
    kind = picture_type(content)
    text = base64.b64encode(content).decode()
    return {"name": name, "media_type": kind, "b64": text, "instance": {"b64": text}}


def _instance(model: Model, row: int) -> Any:
    """Return a row as an instance of the body of `/predict`: named columns, named inputs, or the values alone."""
    values = {spec.name: _plain(model.artifact.golden.inputs[spec.name][row]) for spec in model.engine.inputs}
    if len(values) > 1:
        return values
    (only,) = values.values()
    columns = model.task.columns
    return only if columns is None else dict(zip(columns, only, strict=True))


def _plain(value: Array) -> Any:
    """Return the values of a row in types that `orjson` knows: of numbers it writes the shortest digits."""
    if value.dtype != object:
        return np.ascontiguousarray(value) if value.ndim else value
    return [text.decode(errors="replace") if isinstance(text, bytes) else text for text in value.ravel().tolist()]
