"""A `ModelInferRequest` as bytes -> the message around its tensors, and the tensors as they stand in those bytes.

Protobuf's own parser makes an object of every empty field and a Python number of every value, so that a message of a
few megabytes costs gigabytes and holds the event loop for seconds. Here fields are counted before any is kept, and the
values of a tensor become an array in slices of a fixed size. Knows the wire format and no model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from foldserve.format.tensors import DTYPES, LITTLE_ENDIAN

from ...artifacts.protobuf import BYTES as LENGTH_DELIMITED
from ...artifacts.protobuf import VARINT, Field, Message, Value, read_fields
from ...errors import BodyTooLarge, InvalidInput
from ...tensors import Array
from ..datatypes import BYTES, bytes_tensor, tensor_from_bytes
from .descriptors import INFERENCE

MAX_FIELDS = 2_048  # of one message, those of its inputs included; packed values of a tensor are one field
AROUND_BYTES = 65_536  # names, shapes and parameters around the tensors, and any other message of the protocol

_REQUEST = INFERENCE.messages["ModelInferRequest"]
_INPUT = _REQUEST.DESCRIPTOR.nested_types_by_name["InferInputTensor"]
_INPUTS, _RAW = (_REQUEST.DESCRIPTOR.fields_by_name[name].number for name in ("inputs", "raw_input_contents"))
_CONTENTS = _INPUT.fields_by_name["contents"].number
_LISTS = {field.number: name for name, field in _INPUT.fields_by_name["contents"].message_type.fields_by_name.items()}
LIST_OF = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", BYTES: "bytes_contents",
}  # fmt: skip
_SLICE_BYTES = 65_536  # of packed integers that become numbers at a time, at about 40 bytes of memory for each


@dataclass(frozen=True, slots=True)
class InferMessage:
    """One request as it arrived.

    Attributes:
        head: the `ModelInferRequest` without its tensors.
        raw: the bytes of each tensor in `raw_input_contents`, in their order.
        contents: for each of `head.inputs`, the messages in its field `contents`; more than one are one in pieces.
        size: bytes of the whole message.
    """

    head: Any
    raw: Sequence[memoryview]
    contents: Sequence[Sequence[memoryview]]
    size: int


def read_small(kind: Any, data: bytes) -> Any:
    """Return a message that holds no tensors.

    Args:
        kind: its class.
        data: its bytes.

    Raises:
        BodyTooLarge: it has more than `AROUND_BYTES`.
        InvalidInput: the bytes are no such message.
    """
    if len(data) > AROUND_BYTES:
        raise BodyTooLarge(f"message: {len(data)} bytes around its tensors, expected at most {AROUND_BYTES}")
    try:
        return kind.FromString(data)
    except DecodeError as err:
        raise InvalidInput(f"message: its bytes are no {kind.DESCRIPTOR.name} in protobuf's encoding") from err


def split_request(data: bytes) -> InferMessage:
    """Return a request and its tensors, none of which is read or copied.

    Raises:
        BodyTooLarge: there are more than `AROUND_BYTES` around the tensors.
        InvalidInput: the bytes are no `ModelInferRequest`, or have more than `MAX_FIELDS` fields.
    """
    head = Message()
    raw: list[memoryview] = []
    contents: list[list[memoryview]] = []
    left = MAX_FIELDS
    for field in _fields(data, "message", left):
        left -= 1
        number, kind, value = field
        if isinstance(value, int) or kind != LENGTH_DELIMITED or number not in (_INPUTS, _RAW):
            head.fields.append(field)
        elif number == _RAW:
            raw.append(memoryview(value))
        else:
            around, pieces, seen = _split_input(value, f"inputs[{len(contents)}]", left)
            left -= seen
            head.fields.append((_INPUTS, LENGTH_DELIMITED, around))
            contents.append(pieces)
    return InferMessage(read_small(_REQUEST, head.encode()), raw, contents, len(data))


def array_of_contents(pieces: Sequence[memoryview], datatype: str, shape: Sequence[int], place: str) -> Array:
    """Return the array of one typed input.

    Args:
        pieces: `InferMessage.contents` of this input.
        datatype: one of `DATATYPES`.
        shape: sizes of all axes, checked against the model.
        place: how a message names these contents.

    Raises:
        InvalidInput: the list of this datatype holds more or fewer values than the shape needs, or one that does not
            fit the datatype; or another list is filled; or the datatype has no list.
    """
    if datatype not in LIST_OF:
        raise InvalidInput(f"{place}: {datatype} has no typed contents, send it in raw_input_contents")
    name, expected = LIST_OF[datatype], prod(shape)
    most = expected if datatype == BYTES else MAX_FIELDS
    values: list[Value] = []
    for piece in pieces:
        for number, _, value in _fields(piece, place, most - len(values)):
            if _LISTS.get(number, name) != name:
                raise InvalidInput(f"{place}: got {_LISTS[number]}, expected nothing but {name} for {datatype}")
            if number in _LISTS:
                values.append(value)
    if datatype == BYTES:
        return _strings(values, shape, f"{place}.{name}")
    if datatype in ("FP32", "FP64"):
        return _floats(values, datatype, shape, f"{place}.{name}")
    return _integers(values, DTYPES[datatype], shape, f"{place}.{name}")


def _fields(data: bytes | memoryview, place: str, most: int) -> Iterator[Field]:
    """Yield the fields of a message, at most so many."""
    try:
        for count, field in enumerate(read_fields(data)):
            if count >= most:
                raise InvalidInput(f"{place}: more fields than the {most} expected at most; lists are sent packed")
            yield field
    except ValueError as err:
        raise InvalidInput(f"{place}: not in protobuf's encoding: {err}") from err


def _split_input(data: bytes | memoryview, place: str, most: int) -> tuple[bytes, list[memoryview], int]:
    """Return one input without its contents, the contents, and how many fields there were."""
    around = Message()
    pieces: list[memoryview] = []
    for number, kind, value in _fields(data, place, most):
        if number == _CONTENTS and kind == LENGTH_DELIMITED and not isinstance(value, int):
            pieces.append(memoryview(value))
        else:
            around.fields.append((number, kind, value))
    return around.encode(), pieces, len(around.fields) + len(pieces)


def _check_count(count: int, shape: Sequence[int], place: str) -> None:
    if count != prod(shape):
        raise InvalidInput(f"{place}: got {count} values, expected {prod(shape)} for {tuple(shape)}")


def _strings(values: Sequence[Any], shape: Sequence[int], place: str) -> Array:
    _check_count(len(values), shape, place)
    if any(isinstance(value, int) for value in values):
        raise InvalidInput(f"{place}: a number among the elements, expected bytes")
    return bytes_tensor(map(bytes, values), shape)


def _floats(values: Sequence[Any], datatype: str, shape: Sequence[int], place: str) -> Array:
    """Return floats, which stand on the wire as in memory; each value is a list of them or one alone."""
    if any(isinstance(value, int) for value in values):
        raise InvalidInput(f"{place}: whole numbers in protobuf's encoding, expected {datatype}")
    data = values[0] if len(values) == 1 else memoryview(b"".join(values))
    count, rest = divmod(len(data), LITTLE_ENDIAN[datatype].itemsize)
    _check_count(count + bool(rest), shape, place)
    return tensor_from_bytes(data, datatype, shape, place)


def _integers(values: Sequence[Any], dtype: np.dtype[Any], shape: Sequence[int], place: str) -> Array:
    """Return whole numbers or booleans; each value is a packed list of them or one alone."""
    lists = [np.frombuffer(_packed(value), np.uint8) for value in values]
    _check_count(sum(int(np.count_nonzero(octets < 0x80)) for octets in lists), shape, place)
    array = np.empty(prod(shape), dtype)
    filled = 0
    for octets in lists:
        for numbers in _varints(octets, place):
            array[filled : filled + len(numbers)] = _narrowed(numbers, dtype, place)
            filled += len(numbers)
    return array.reshape(shape)


def _packed(value: int | bytes | memoryview) -> bytes | memoryview:
    """Return a number that stands alone as a list of one."""
    return Message([(0, VARINT, value)]).encode()[1:] if isinstance(value, int) else value


def _varints(octets: Array, place: str) -> Iterator[Array]:
    """Yield the uint64 of a packed list in slices; the last octet of each number is below 0x80."""
    if len(octets) and octets[-1] >= 0x80:
        raise InvalidInput(f"{place}: its last number is cut off")
    start = 0
    while start < len(octets):
        stop = min(start + _SLICE_BYTES, len(octets))
        while octets[stop - 1] >= 0x80:
            stop += 1
            if stop - start > _SLICE_BYTES + 10:
                raise InvalidInput(f"{place}: a number longer than 64 bits")
        yield _decoded(octets[start:stop], place)
        start = stop


def _decoded(octets: Array, place: str) -> Array:
    """Return the numbers of some octets: seven bits each, the lowest first."""
    last = np.flatnonzero(octets < 0x80)
    first = np.concatenate(([0], last[:-1] + 1))
    longest = int((last - first).max()) + 1
    if longest > 10:
        raise InvalidInput(f"{place}: a number longer than 64 bits")
    numbers = np.zeros(len(last), np.uint64)
    for place_of_octet in range(longest):
        at = first + place_of_octet
        there = at <= last
        bits = (octets[at[there]] & 0x7F).astype(np.uint64)
        numbers[there] |= bits << np.uint64(7 * place_of_octet)
    return numbers


def _narrowed(numbers: Array, dtype: np.dtype[Any], place: str) -> Array:
    """Return uint64 as `dtype`; the protocol's lists have 32 bits and more, so the range is checked here."""
    if dtype == np.bool_:
        return numbers.astype(np.bool_)
    values = numbers.view(np.int64) if dtype.kind == "i" else numbers
    limits = np.iinfo(dtype)
    if values.min() < limits.min or values.max() > limits.max:
        raise InvalidInput(f"{place}: a value outside {limits.min} to {limits.max}, the range of {dtype}")
    return values.astype(dtype)
