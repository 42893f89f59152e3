"""Messages of gRPC <-> the requests and outputs that HTTP has too.

Tensors are raw (the bytes of each input) or typed (a list in the message), and go back the same way. The checks are
those of HTTP, made before any data is read.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from google.protobuf import json_format

from foldserve.format.tensors import DTYPES

from ...errors import InvalidInput
from ...tensors import Array, TensorSpec
from ..checks import DeclaredTensor, WantedOutput, check_inputs, refuse_shared_memory, wanted_outputs
from ..datatypes import BYTES, bytes_tensor, datatype_of, tensor_from_bytes, tensor_to_bytes
from ..parameters import Parameter, check_parameters, class_count, timeout_seconds
from ..request import InferRequest
from ..response import select_output
from .descriptors import INFERENCE

_CONTENTS = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", BYTES: "bytes_contents",
}  # fmt: skip


def from_dict(name: str, value: Mapping[str, Any]) -> Any:
    """Return a message of the protocol from its JSON form; members that it does not have are left out."""
    return json_format.ParseDict(value, INFERENCE.messages[name](), ignore_unknown_fields=True)


def read_request(
    message: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], max_rows: int
) -> InferRequest:
    """Return a `ModelInferRequest`, checked against the model it is for.

    The outputs it wants are marked binary where they go back raw: whenever the inputs are raw.

    Raises:
        InvalidInput: anything in it is not as the protocol or the model wants it; the message names the place.
        TooManyRows: it holds more rows than one request may.
        Unsupported: it asks for shared memory or sequences.
    """
    parameters = _parameters(message.parameters)
    check_parameters(parameters)
    declared = [DeclaredTensor(item.name, item.datatype, tuple(item.shape)) for item in message.inputs]
    for position, item in enumerate(message.inputs):
        refuse_shared_memory(item.parameters, f"inputs[{position}]")
    check_inputs(declared, inputs, max_rows)
    is_raw = bool(message.raw_input_contents)
    arrays = _raw(message, declared) if is_raw else _typed(message, declared)
    wanted = [_wanted_output(item, is_raw, f"outputs[{position}]") for position, item in enumerate(message.outputs)]
    timeout = timeout_seconds(parameters.get("timeout"))
    return InferRequest(arrays, wanted_outputs(wanted, outputs, binary=is_raw), message.id, timeout, parameters)


def write_response(
    model: str, version: int, request: InferRequest, outputs: Mapping[str, Array], class_names: Sequence[str] | None
) -> Any:
    """Return the `ModelInferResponse` to a request.

    Raises:
        InvalidInput: an FP16 output is wanted typed, for which the protocol has no list.
    """
    message = INFERENCE.messages["ModelInferResponse"](model_name=model, model_version=str(version), id=request.id)
    for wanted in request.outputs:
        array = select_output(wanted, outputs, class_names)
        datatype = datatype_of(array)
        entry = message.outputs.add(name=wanted.name, datatype=datatype, shape=array.shape)
        if wanted.binary:
            message.raw_output_contents.append(tensor_to_bytes(array))
        elif datatype in _CONTENTS:
            getattr(entry.contents, _CONTENTS[datatype]).extend(array.ravel().tolist())
        else:
            raise InvalidInput(f"output {wanted.name!r}: {datatype} has no typed contents, send the inputs raw")
    return message


def _raw(message: Any, declared: Sequence[DeclaredTensor]) -> dict[str, Array]:
    contents = message.raw_input_contents
    if len(contents) != len(declared):
        raise InvalidInput(f"raw_input_contents: got {len(contents)}, expected one for each of {len(declared)} inputs")
    for position, item in enumerate(message.inputs):
        if item.HasField("contents"):
            raise InvalidInput(f"inputs[{position}]: both contents and raw_input_contents, expected one of them")
    return {
        tensor.name: tensor_from_bytes(memoryview(data), tensor.datatype, tensor.shape, f"input {tensor.name!r}")
        for tensor, data in zip(declared, contents, strict=True)
    }


def _typed(message: Any, declared: Sequence[DeclaredTensor]) -> dict[str, Array]:
    return {
        tensor.name: _from_contents(item.contents, tensor, f"inputs[{position}].contents")
        for position, (tensor, item) in enumerate(zip(declared, message.inputs, strict=True))
    }


def _from_contents(contents: Any, tensor: DeclaredTensor, place: str) -> Array:
    """Return the array of one typed input."""
    if tensor.datatype not in _CONTENTS:
        raise InvalidInput(f"{place}: {tensor.datatype} has no typed contents, send it in raw_input_contents")
    field = _CONTENTS[tensor.datatype]
    filled = {descriptor.name for descriptor, _ in contents.ListFields()}
    if filled - {field}:
        raise InvalidInput(f"{place}: got {sorted(filled)}, expected {field} for {tensor.datatype}")
    values, expected = getattr(contents, field), prod(tensor.shape)
    if len(values) != expected:
        raise InvalidInput(f"{place}.{field}: got {len(values)} values, expected {expected} for {tensor.shape}")
    if tensor.datatype == BYTES:
        return bytes_tensor(values, tensor.shape)
    dtype = DTYPES[tensor.datatype]
    if field in ("int_contents", "uint_contents"):
        return _narrowed(np.array(values, np.int64), dtype, f"{place}.{field}").reshape(tensor.shape)
    return np.array(values, dtype).reshape(tensor.shape)


def _narrowed(values: Array, dtype: np.dtype[Any], place: str) -> Array:
    """Return integers as `dtype`; the protocol's lists have 32 bits and more, so the range is checked here."""
    limits = np.iinfo(dtype)
    if values.min() < limits.min or values.max() > limits.max:
        raise InvalidInput(f"{place}: a value outside {limits.min} to {limits.max}, the range of {dtype}")
    return values.astype(dtype)


def _wanted_output(item: Any, binary: bool, place: str) -> WantedOutput:
    parameters = _parameters(item.parameters)
    refuse_shared_memory(parameters, place)
    return WantedOutput(item.name, binary, class_count(parameters, place))


def _parameters(listed: Any) -> dict[str, Parameter]:
    """Return the values of a map of `InferParameter`; one that is empty says nothing and is left out."""
    chosen_by = {name: item.WhichOneof("parameter_choice") for name, item in listed.items()}
    return {name: getattr(listed[name], choice) for name, choice in chosen_by.items() if choice}
