"""Messages of gRPC <-> the requests and outputs that HTTP has too.

Tensors are raw (the bytes of each input) or typed (a list in the message). They go back raw, as Triton sends them, and
typed where the parameters of HTTP say so. The checks are those of HTTP, made before any data is read.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf import json_format

from ...bodies.json_body import describe
from ...errors import InvalidInput
from ...tensors import Array, TensorSpec
from ..checks import DeclaredTensor, WantedOutput, check_inputs, refuse_shared_memory, wanted_outputs
from ..datatypes import datatype_of, tensor_from_bytes, tensor_to_bytes
from ..parameters import Parameter, check_parameters, class_count, timeout_seconds
from ..pictures import Pictures
from ..request import InferRequest
from ..response import select_output
from .descriptors import INFERENCE
from .wire import LIST_OF, InferMessage, array_of_contents


def from_dict(name: str, value: Mapping[str, Any]) -> Any:
    """Return a message of the protocol from its JSON form; members that it does not have are left out."""
    return json_format.ParseDict(value, INFERENCE.messages[name](), ignore_unknown_fields=True)


def declared_tensors(message: InferMessage) -> list[DeclaredTensor]:
    """Return what a request says of its inputs."""
    return [DeclaredTensor(item.name, item.datatype, tuple(item.shape)) for item in message.head.inputs]


def read_request(
    message: InferMessage,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_rows: int,
    pictures: Pictures | None = None,
    beat: Callable[[], None] | None = None,
) -> InferRequest:
    """Return a `ModelInferRequest`, checked against the model it is for.

    The outputs it wants are marked binary where they go back raw: unless `binary_data_output` of the request, or
    `binary_data` of the output, is false.

    Args:
        message: of the request.
        inputs: of the model.
        outputs: of the model.
        max_rows: in one request.
        pictures: what the model takes in place of pixels; None where it states no recipe.
        beat: called while pictures are decoded; raises when nobody waits for them any more.

    Raises:
        InvalidInput: anything in it is not as the protocol or the model wants it; the message names the place.
        TooManyRows: it holds more rows than one request may.
        Unsupported: it asks for shared memory or sequences.
    """
    head = message.head
    parameters = _parameters(head.parameters)
    check_parameters(parameters)
    declared = declared_tensors(message)
    for position, item in enumerate(head.inputs):
        refuse_shared_memory(item.parameters, f"inputs[{position}]")
    check_inputs(declared, inputs if pictures is None else pictures.specs(declared, inputs), max_rows)
    is_raw = bool(message.raw)
    arrays = _raw(message, declared) if is_raw else _typed(message, declared)
    arrays = arrays if pictures is None else pictures.decoded(arrays, beat)
    binary = _boolean(parameters, "binary_data_output", True, "parameters")
    wanted = [_wanted_output(item, binary, f"outputs[{position}]") for position, item in enumerate(head.outputs)]
    timeout = timeout_seconds(parameters.get("timeout"))
    return InferRequest(arrays, wanted_outputs(wanted, outputs, binary=binary), head.id, timeout, parameters)


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
        elif datatype in LIST_OF:
            getattr(entry.contents, LIST_OF[datatype]).extend(array.ravel().tolist())
        else:
            raise InvalidInput(f"output {wanted.name!r}: {datatype} has no typed contents, request it as binary data")
    return message


def _raw(message: InferMessage, declared: Sequence[DeclaredTensor]) -> dict[str, Array]:
    if len(message.raw) != len(declared):
        count = len(message.raw)
        raise InvalidInput(f"raw_input_contents: got {count}, expected one for each of {len(declared)} inputs")
    for position, pieces in enumerate(message.contents):
        if pieces:
            raise InvalidInput(f"inputs[{position}]: both contents and raw_input_contents, expected one of them")
    return {
        tensor.name: tensor_from_bytes(data, tensor.datatype, tensor.shape, f"input {tensor.name!r}")
        for tensor, data in zip(declared, message.raw, strict=True)
    }


def _typed(message: InferMessage, declared: Sequence[DeclaredTensor]) -> dict[str, Array]:
    return {
        tensor.name: array_of_contents(pieces, tensor.datatype, tensor.shape, f"inputs[{position}].contents")
        for position, (tensor, pieces) in enumerate(zip(declared, message.contents, strict=True))
    }


def _wanted_output(item: Any, binary: bool, place: str) -> WantedOutput:
    parameters = _parameters(item.parameters)
    refuse_shared_memory(parameters, place)
    binary = _boolean(parameters, "binary_data", binary, f"{place}.parameters")
    return WantedOutput(item.name, binary, class_count(parameters, place))


def _boolean(parameters: Mapping[str, Parameter], name: str, default: bool, place: str) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"{place}.{name}: {describe(value)}, expected true or false")
    return value


def _parameters(listed: Any) -> dict[str, Parameter]:
    """Return the values of a map of `InferParameter`; one that is empty says nothing and is left out."""
    chosen_by = {name: item.WhichOneof("parameter_choice") for name, item in listed.items()}
    return {name: getattr(listed[name], choice) for name, choice in chosen_by.items() if choice}
