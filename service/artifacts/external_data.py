"""Find tensors of an ONNX file that point to other files, before anything opens those.

Reads just enough of the protobuf wire format to walk from the model to its tensors, through subgraphs and functions,
and skips the weights themselves. onnx is a training dependency, and a runtime that has already followed a path to
`../../etc` is too late a place to ask.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from ..errors import ArtifactInvalid

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Message -> {field number: message} for each field on a way to a tensor; numbers from onnx.proto (IR version 13).
_WAYS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_DEEPEST = 64


def refuse_external_data(path: Path) -> None:
    """Raise when a tensor of the ONNX file at `path` keeps its data in another file.

    Raises:
        ArtifactInvalid: such a tensor exists, or the file is not an ONNX model.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            external = any(_points_outside(data, *place) for place in tensors(data))
    except (IndexError, ValueError) as err:  # cut off, garbled or empty
        raise ArtifactInvalid(f"{path} is not an ONNX model: {err}") from err
    if external:
        raise ArtifactInvalid(f"{path} keeps weights in another file; export it as one file without external data")


def tensors(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Yield where each tensor of a model begins and ends, those of subgraphs and functions included.

    Raises:
        ValueError: the bytes are not a model, or its graphs nest too deep.
        IndexError: they end too early.
    """
    return _tensors(data, 0, len(data), "Model", 0)


def _tensors(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> Iterator[tuple[int, int]]:
    if depth > _DEEPEST:
        raise ValueError(f"graphs nest deeper than {_DEEPEST} messages")
    ways = _WAYS[message]
    for field, value, stop in fields(data, start, end):
        if field in ways and stop is not None:
            if ways[field] == "Tensor":
                yield value, stop
            else:
                yield from _tensors(data, value, stop, ways[field], depth + 1)


def _points_outside(data: mmap.mmap, start: int, end: int) -> bool:
    return any(
        field == _TENSOR_EXTERNAL_DATA or (field == _TENSOR_DATA_LOCATION and value)
        for field, value, _ in fields(data, start, end)
    )


def fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Yield (field number, value, None) of each varint and (field number, start, stop) of each run of bytes."""
    position = start
    while position < end:
        key, position = _varint(data, position)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield field, value, None
        elif kind == _BYTES:
            length, position = _varint(data, position)
            if position + length > end:
                raise ValueError(f"field {field} ends {position + length - end} bytes behind its message")
            yield field, position, position + length
            position += length
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {position}")


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    """Decode a base-128 number; returns it and the position behind it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits at byte {position}")
