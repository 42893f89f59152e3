"""The body of an inference request over HTTP -> validated arrays, wanted outputs and parameters.

Pure functions of bytes. A body is JSON, or JSON followed by binary tensors (`Inference-Header-Content-Length` says
where they begin), or the bare bytes of a model's only input (header length 0). Every check of what a sender wrote is
made here or in the modules named below; nothing after this point has to doubt an array.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..bodies.json_body import FREE_SIDE, SizeGuard, describe, parse_json
from ..bodies.limits import QUICK_BYTES, WHOLE_JSON_BYTES
from ..bodies.long_json import LongText, cut_out_data
from ..bounded_dict import BoundedDict
from ..errors import InvalidInput, clip
from ..tensors import Array, TensorSpec
from .checks import DeclaredTensor, WantedOutput, check_inputs, refuse_shared_memory, wanted_outputs
from .datatypes import BYTES, tensor_from_bytes
from .json_members import (
    read_boolean,
    read_identifier,
    read_list,
    read_object,
    read_parameters,
    read_shape,
    read_text,
)
from .json_tensor import tensor_from_json
from .parameters import Parameter, check_parameters, class_count, timeout_seconds
from .pictures import Pictures

# Clients repeat their JSON byte for byte and change only the tensors behind it: JSON up to this size is remembered.
REMEMBERED_JSON_BYTES = 1024
QUICK_BINARY_BYTES = 4_194_304  # copied, or searched for what is no BOOL, within a millisecond or two
_REMEMBERED_PARTS = 64
_LONGEST_AROUND = 1_048_576  # bytes around long lists
_SPARE_VALUES = 1_000  # around the data: names, shapes, parameters, outputs


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One request, checked against the model it is for.

    Attributes:
        id: the client's own, echoed in the answer; empty where it has none.
        inputs: each input of the model by name, all with the same number of rows; possibly read-only.
        outputs: those that are wanted, in this order.
        timeout_seconds: within which the client wants its answer; None leaves it to the service.
        parameters: all request parameters, as they were sent.
    """

    inputs: Mapping[str, Array]
    outputs: tuple[WantedOutput, ...]
    id: str = ""
    timeout_seconds: float | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of rows in each input."""
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True, slots=True)
class _Input:
    """One input as the JSON has it: with its data, or with the length of its bytes behind the JSON."""

    declared: DeclaredTensor
    data: Any
    binary_bytes: int | None
    place: str


@dataclass(frozen=True, slots=True)
class _JsonPart:
    """The JSON of a request, checked; the binary tensors follow in the order of `inputs`."""

    inputs: tuple[_Input, ...]
    outputs: tuple[WantedOutput, ...]
    id: str
    parameters: Mapping[str, Parameter]
    timeout_seconds: float | None
    binary_bytes: int
    may_hold_booleans: bool


class RequestReader:
    """Reads the requests for one model.

    Args:
        inputs: what the model takes; the first axis of each is the batch.
        outputs: what it gives.
        max_rows: rows in one request.
        pictures: what it takes in place of pixels; None where it states no recipe.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        max_rows: int,
        pictures: Pictures | None = None,
    ) -> None:
        self._pictures = pictures
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._max_rows = max_rows
        guard = SizeGuard([spec.row_shape for spec in inputs], max_rows, _SPARE_VALUES)
        if any(spec.is_free for spec in inputs):  # short rows need more lists for as many values
            shapes = [[FREE_SIDE if size is None else size for size in spec.shape[1:]] for spec in inputs]
            guard = SizeGuard(shapes, max_rows * FREE_SIDE**2, _SPARE_VALUES)
        holds_texts = any(spec.datatype == BYTES for spec in inputs)  # which may hold commas and brackets of their own
        self._size_guard = None if holds_texts else guard
        files = [(1,) if pictures and spec.name == pictures.input else spec.row_shape for spec in inputs]
        self._file_guard = SizeGuard(files, max_rows, _SPARE_VALUES)
        self._known: BoundedDict[bytes, _JsonPart] = BoundedDict(_REMEMBERED_PARTS)

    def holds_pictures(self, body: bytes, header_length: int | None) -> bool:
        """Return whether a body may hold pictures that have to be decoded."""
        if self._pictures is None or header_length == 0:
            return False
        return self._pictures.are_in(body if header_length is None else body[:header_length])

    def read(
        self, body: bytes, header_length: int | None = None, beat: Callable[[], None] | None = None
    ) -> InferRequest:
        """Return the request that a body holds.

        Args:
            body: the whole body, inflated; its size was limited by who received it.
            header_length: bytes of JSON at its start, from `Inference-Header-Content-Length`; None when there was no
                such header (all of it is JSON), 0 for the bare bytes of the only input.
            beat: called while pictures are decoded; raises when nobody waits for them any more.

        Raises:
            InvalidInput: anything in it is not as the protocol or the model wants it; the message names the place.
            TooManyRows: it holds more rows than one request may.
            Unsupported: it asks for shared memory or sequences.
        """
        if header_length == 0:
            return self._read_bare(body)
        part = self._json_part(_json_bytes(body, header_length))
        rest = memoryview(body)[len(body) if header_length is None else header_length :]
        if part.binary_bytes != len(rest):
            raise InvalidInput(
                f"body: {len(rest)} bytes behind the JSON, expected {part.binary_bytes} (the sum of binary_data_size)"
            )
        arrays = _read_inputs(part, rest)
        if self._pictures is not None:
            arrays = self._pictures.decoded(arrays, beat)
        return InferRequest(arrays, part.outputs, part.id, part.timeout_seconds, part.parameters)

    def _json_part(self, data: bytes) -> _JsonPart:
        """Return the checked JSON, from memory where the same bytes were checked before."""
        if len(data) > REMEMBERED_JSON_BYTES:
            return self._check_json(data)
        part = self._known.get(data)
        if part is None:
            part = self._check_json(data)
            if all(entry.binary_bytes is not None for entry in part.inputs):
                self._known[data] = part
        return part

    def _check_json(self, data: bytes) -> _JsonPart:
        guard = self._file_guard if self.holds_pictures(data, None) else self._size_guard
        if guard is not None:
            guard.check(data)
        document = read_object(self._parse(data), "body")
        parameters = read_parameters(document.get("parameters"), "parameters")
        check_parameters(parameters)
        inputs = tuple(
            _input(item, f"inputs[{position}]")
            for position, item in enumerate(read_list(document.get("inputs"), "inputs", len(self._inputs)))
        )
        declared = [entry.declared for entry in inputs]
        specs = self._inputs if self._pictures is None else self._pictures.specs(declared, self._inputs)
        check_inputs(declared, specs, self._max_rows)
        binary = read_boolean(parameters, "binary_data_output", "parameters")
        listed = document.get("outputs")
        outputs = [
            _wanted_output(item, binary, f"outputs[{position}]")
            for position, item in enumerate(read_list([] if listed is None else listed, "outputs", len(self._outputs)))
        ]
        return _JsonPart(
            inputs,
            wanted_outputs(outputs, self._outputs, binary=binary),
            read_identifier(document.get("id")),
            parameters,
            timeout_seconds(parameters.get("timeout")),
            sum(entry.binary_bytes or 0 for entry in inputs),
            len(data) > WHOLE_JSON_BYTES or data.count(b"true") + data.count(b"false") > _booleans(document),
        )

    def _parse(self, data: bytes) -> Any:
        """Return the document; where it is long, the long lists of its inputs stay unparsed for now.

        Of texts and files there are few, however long they are.
        """
        if len(data) <= WHOLE_JSON_BYTES or self._size_guard is None or self.holds_pictures(data, None):
            return parse_json(data)
        around, lists = cut_out_data(data)
        if len(around) > _LONGEST_AROUND:
            raise InvalidInput(
                f"body: {len(around)} bytes besides lists of numbers, expected at most {_LONGEST_AROUND}"
            )
        document = parse_json(around)
        if _put_back(document, lists) != len(lists):
            raise InvalidInput("body: a long list in another place than the data of an input")
        return document

    def _read_bare(self, body: bytes) -> InferRequest:
        """Return a request whose body is nothing but the bytes of the only input; the outputs go back as bytes."""
        if len(self._inputs) != 1:
            raise InvalidInput(
                f"body: bare tensor bytes (header length 0), but the model has {len(self._inputs)} inputs"
            )
        spec = self._inputs[0]
        if spec.is_free:
            raise InvalidInput(f"body: bare tensor bytes (header length 0) do not say how large {spec.name!r} is")
        if spec.datatype == BYTES:
            raise InvalidInput(
                f"body: bare tensor bytes (header length 0), which do not say where a text of {spec.name!r} ends"
            )
        rows, rest = divmod(len(body), spec.row_bytes)
        if rest or not rows:
            raise InvalidInput(f"body: {len(body)} bytes, expected a multiple of {spec.row_bytes} for {spec.name!r}")
        declared = DeclaredTensor(spec.name, spec.datatype, (rows, *spec.row_shape))
        check_inputs([declared], self._inputs, self._max_rows)
        array = tensor_from_bytes(memoryview(body), spec.datatype, declared.shape, f"input {spec.name!r}")
        return InferRequest({spec.name: array}, wanted_outputs((), self._outputs, binary=True))


def header_length(text: str | None) -> int | None:
    """Return the value of an `Inference-Header-Content-Length` header; None when there is none.

    Raises:
        InvalidInput: it is not a plain decimal number.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise InvalidInput(f"Inference-Header-Content-Length: {clip(text)!r}, expected the bytes of JSON in the body")
    return int(text)


def is_quick(body: bytes, header_length: int | None) -> bool:
    """Return whether an event loop can afford to read this body itself; binary tensors cost a look, or a copy."""
    return len(body) <= QUICK_BINARY_BYTES and (len(body) if header_length is None else header_length) <= QUICK_BYTES


def _put_back(document: Any, lists: Mapping[str, LongText]) -> int:
    """Put long lists in the place of their words, where that is the data of an input; returns how many."""
    inputs = document.get("inputs") if isinstance(document, dict) else None
    put = 0
    for item in inputs if isinstance(inputs, list) else ():
        word = item.get("data") if isinstance(item, dict) else None
        if isinstance(word, str) and word in lists:
            item["data"] = lists[word]
            put += 1
    return put


def _json_bytes(body: bytes, length: int | None) -> bytes:
    if length is None:
        return body
    if length > len(body):
        raise InvalidInput(f"Inference-Header-Content-Length: {length}, but the body has only {len(body)} bytes")
    return body[:length]


def _booleans(document: Mapping[str, Any]) -> int:
    """Return how many parameters of a checked document are booleans; any boolean written besides is data."""
    tensors = [*document["inputs"], *(document.get("outputs") or ())]
    held = (item.get("parameters") or {} for item in (document, *tensors))
    return sum(type(value) is bool for parameters in held for value in parameters.values())


def _read_inputs(part: _JsonPart, rest: memoryview) -> dict[str, Array]:
    arrays = {}
    start = 0
    for entry in part.inputs:
        name, datatype, shape = entry.declared.name, entry.declared.datatype, entry.declared.shape
        if entry.binary_bytes is None:
            place, doubtful = f"{entry.place}.data", part.may_hold_booleans
            arrays[name] = tensor_from_json(entry.data, datatype, shape, place, may_hold_booleans=doubtful)
        else:
            stop = start + entry.binary_bytes
            arrays[name] = tensor_from_bytes(rest[start:stop], datatype, shape, f"input {name!r}")
            start = stop
    return arrays


def _input(item: Any, place: str) -> _Input:
    """Return one input of the JSON, which has its data there or says how many bytes it has behind it."""
    item = read_object(item, place)
    declared = DeclaredTensor(
        read_text(item.get("name"), f"{place}.name"),
        read_text(item.get("datatype"), f"{place}.datatype"),
        read_shape(item.get("shape"), f"{place}.shape"),
    )
    parameters = read_parameters(item.get("parameters"), f"{place}.parameters")
    refuse_shared_memory(parameters, place)
    size = parameters.get("binary_data_size")
    if (size is None) == ("data" not in item):
        got = "neither data nor" if size is None else "both data and"
        raise InvalidInput(f"{place}: got {got} parameters.binary_data_size, expected exactly one of them")
    if size is not None and (type(size) is not int or size < 0):
        raise InvalidInput(f"{place}.parameters.binary_data_size: {describe(size)}, expected a number of bytes")
    return _Input(declared, item.get("data"), size, place)


def _wanted_output(item: Any, binary: bool, place: str) -> WantedOutput:
    item = read_object(item, place)
    parameters = read_parameters(item.get("parameters"), f"{place}.parameters")
    refuse_shared_memory(parameters, place)
    classes = class_count(parameters, place)
    if "binary_data" in parameters:
        binary = read_boolean(parameters, "binary_data", f"{place}.parameters")
    return WantedOutput(read_text(item.get("name"), f"{place}.name"), binary, classes)
