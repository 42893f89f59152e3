"""The messages within an ONNX file, read in place: its nodes and tensors, those of subgraphs and functions included.

Under the checks that every file has to pass before a session is made of it. onnx is a training dependency, so the way
from the model to a node or a tensor is followed here, by the numbers of onnx.proto (IR version 13).
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ArtifactInvalid
from .protobuf import BYTES, read_fields

# Message -> {field number: message} for each field on a way to a node or a tensor.
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
# Fields of one message, not of many: where one stands several times, protobuf reads them as one message in pieces.
_SINGULAR = {"Model": {7}, "TrainingInfo": {1, 2}, "Attribute": {5, 6, 22}, "SparseTensor": {1, 2}}
_DEEPEST = 64


@contextmanager
def opened(path: Path) -> Iterator[memoryview]:
    """Map a model file into memory; it stays mapped as long as anything holds a view of it.

    Raises:
        ArtifactInvalid: the file is empty, cut off or garbled, as soon as the block finds that out.
    """
    try:
        with path.open("rb") as file:
            yield memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError as err:
        raise ArtifactInvalid(f"{path} is not an ONNX model: {err}") from err


def find_all(wanted: str, data: memoryview, message: str = "Model", depth: int = 0) -> Iterator[memoryview]:
    """Yield every message of one kind, wherever it stands.

    Args:
        wanted: "Node" or "Tensor".
        data: of the message to look into.
        message: its kind.
        depth: in how many others it stands.

    Raises:
        ValueError: the bytes are not a model, or its graphs nest too deep.
    """
    if depth > _DEEPEST:
        raise ValueError(f"graphs nest deeper than {_DEEPEST} messages")
    for child, value in _messages_within(data, message):
        if child == wanted:
            yield value
        if child in _CHILDREN:
            yield from find_all(wanted, value, child, depth + 1)


def _messages_within(data: memoryview, message: str) -> Iterator[tuple[str, memoryview]]:
    """Yield kind and bytes of each message that stands in another one, put together where it stands in pieces."""
    children, singular = _CHILDREN[message], _SINGULAR.get(message, set())
    pieces: dict[int, list[memoryview]] = {}
    for number, kind, value in read_fields(data):
        if number not in children or kind != BYTES or not isinstance(value, memoryview):
            continue
        if number in singular:
            pieces.setdefault(number, []).append(value)
        else:
            yield children[number], value
    for number, parts in pieces.items():
        yield children[number], parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
