"""Outputs of a model -> the bytes of an answer over HTTP: JSON, or JSON followed by binary tensors.

The counterpart of `request`: pure functions, no framework. Data in JSON is flat and row-major; floats carry the
fewest digits that give the same float back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from ..errors import InvalidInput
from ..tensors import Array
from .checks import WantedOutput
from .classification import classify
from .datatypes import BYTES, datatype_of, tensor_to_bytes
from .request import InferRequest

JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class InferResponse:
    """The body of an answer; `header_length` is the length of its JSON, None when there is nothing behind it."""

    body: bytes
    header_length: int | None

    @property
    def content_type(self) -> str:
        """Media type of the body."""
        return JSON_TYPE if self.header_length is None else BINARY_TYPE


def format_response(
    model: str,
    version: int,
    request: InferRequest,
    outputs: Mapping[str, Array],
    class_names: Sequence[str] | None = None,
) -> InferResponse:
    """Return the answer to a request.

    Args:
        model: its name.
        version: the version that gave the outputs.
        request: which outputs are wanted, and how.
        outputs: each output of the model by name, as many rows as the request has.
        class_names: for `classification`.

    Raises:
        InvalidInput: an FP16 output is wanted as JSON, which has no such form,
            or an output wanted as JSON holds NaN or infinity, which JSON cannot say either.
    """
    described: list[dict[str, Any]] = []
    tails: list[bytes] = []
    for wanted in request.outputs:
        array = select_output(wanted, outputs, class_names)
        entry: dict[str, Any] = {"name": wanted.name, "datatype": datatype_of(array), "shape": array.shape}
        if wanted.binary:
            tails.append(tensor_to_bytes(array))
            entry["parameters"] = {"binary_data_size": len(tails[-1])}
        else:
            entry["data"] = _json_data(wanted.name, array)
        described.append(entry)
    answer = {"id": request.id} if request.id else {}
    answer |= {"model_name": model, "model_version": str(version), "outputs": described}  # type: ignore[dict-item]
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return InferResponse(b"".join((head, *tails)), len(head)) if any(tails) else InferResponse(head, None)


def select_output(wanted: WantedOutput, outputs: Mapping[str, Array], class_names: Sequence[str] | None) -> Array:
    """Return one output in the requested form: the tensor, or its largest values as text."""
    array = outputs[wanted.name]
    return classify(array, wanted.classes, class_names) if wanted.classes else array


def _json_data(name: str, array: Array) -> Any:
    """Return the values of an output in a form that orjson writes as one flat list."""
    datatype = datatype_of(array)
    if datatype == BYTES:
        return [element.decode() for element in array.ravel()]
    if datatype == "FP16":
        raise InvalidInput(f"output {name!r}: FP16 does not travel as JSON, request it with binary_data true")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInput(f"output {name!r} holds NaN or infinity, which JSON cannot say: request it as binary data")
    return np.ascontiguousarray(array).ravel()
