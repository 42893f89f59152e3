"""Find nodes of an ONNX file that must not run, before a session is made of it.

Reads node types as `external_data` reads tensors: just enough of the wire format, so that the service does without the
onnx package. A golden answer cannot tell a norm in training mode from one at rest when the runtime ignores the mode.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from ..errors import ArtifactInvalid
from .external_data import fields

# Built into onnxruntime; everything else would need a library to be loaded for it.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc")
_REFUSED = {"EPContext": "a compiled engine that nobody can read"}

# Message -> {field number: message} for each field on a way to a node; numbers from onnx.proto (IR version 13).
_WAYS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node"},
    "Graph": {1: "Node"},
    "Node": {5: "Attribute"},
    "Attribute": {6: "Graph", 11: "Graph"},
}
_NODE_OUTPUT, _NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 2, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT = 1, 3
_FUNCTION_DOMAIN = 10
_DEEPEST = 64

Field = tuple[int, int, int | None]


def refuse_operators(path: Path) -> None:
    """Raise when the ONNX file at `path` holds a node that must not run.

    Raises:
        ArtifactInvalid: a node is of a domain that is not built into onnxruntime, is a BatchNormalization in training
            mode, or is a compiled engine.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        own = {_text(data, value) for value in _function_domains(data)}
        for node in _nodes(data, 0, len(data), "Model", 0):
            _check(path, data, node, own)


def _check(path: Path, data: mmap.mmap, node: tuple[int, int], own: set[str]) -> None:
    """Refuse one node; functions that the model itself defines may be called."""
    found = list(fields(data, *node))
    op_type = _text(data, next(((v, s) for f, v, s in found if f == _NODE_OP_TYPE and s is not None), (0, 0)))
    domain = _text(data, next(((v, s) for f, v, s in found if f == _NODE_DOMAIN and s is not None), (0, 0)))
    if domain not in _DOMAINS and domain not in own:
        raise ArtifactInvalid(
            f"{path} holds the operator {op_type[:64]!r} of {domain[:64]!r}, which is no part of ONNX"
        )
    if op_type in _REFUSED:
        raise ArtifactInvalid(f"{path} holds the operator {op_type!r}, {_REFUSED[op_type]}")
    if op_type == "BatchNormalization" and _is_training(data, found):
        raise ArtifactInvalid(
            f"{path} holds a BatchNormalization in training mode, whose answers depend on the batch; "
            "put the network into eval mode and export it again"
        )


def _is_training(data: mmap.mmap, node: list[Field]) -> bool:
    """Whether a norm computes the statistics of its batch: it says so, or, before opset 14, it gives them out."""
    statistics = [value for field, value, stop in node if field == _NODE_OUTPUT and stop is not None and stop > value]
    attributes = [(value, stop) for field, value, stop in node if field == _NODE_ATTRIBUTE and stop is not None]
    return len(statistics) > 1 or any(_says_training(data, *place) for place in attributes)


def _says_training(data: mmap.mmap, start: int, stop: int) -> bool:
    found = list(fields(data, start, stop))
    names = [_text(data, (v, s)) for f, v, s in found if f == _ATTRIBUTE_NAME and s is not None]
    return names == ["training_mode"] and any(f == _ATTRIBUTE_INT and v for f, v, s in found if s is None)


def _nodes(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> Iterator[tuple[int, int]]:
    """Yield where each node begins and ends, those of subgraphs included."""
    if depth > _DEEPEST:
        return  # `refuse_external_data`, which is asked before, does not let such a file pass
    ways = _WAYS.get(message, {})
    for field, value, stop in fields(data, start, end):
        if field in ways and stop is not None:
            if ways[field] == "Node":
                yield value, stop
            yield from _nodes(data, value, stop, ways[field], depth + 1)


def _function_domains(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    for field, value, stop in fields(data, 0, len(data)):
        if field == 25 and stop is not None:
            for inner, start, end in fields(data, value, stop):
                if inner == _FUNCTION_DOMAIN and end is not None:
                    yield start, end


def _text(data: mmap.mmap, where: tuple[int, int]) -> str:
    return data[where[0] : where[1]].decode("utf-8", "replace")
