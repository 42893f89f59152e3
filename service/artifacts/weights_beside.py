"""Weights that an exporter put beside the graph, `model.onnx.data`: read once, and put back where they belong.

What is served is one sealed file that nothing can change any more, like that of any other model. Only regular files of
the version folder are read; a path that leads anywhere else is refused before it is opened.
"""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from foldserve.format.errors import FormatError
from foldserve.format.manifest import MANIFEST_FILE, regular_file

from ..errors import ArtifactInvalid
from .onnx_file import opened
from .protobuf import BYTES, Message, read_fields, varint_bytes
from .sealed import SealedFile

_MODEL_GRAPH, _GRAPH_TENSOR = 7, 5
_TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 8, 9, 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_LARGEST_MODEL = (1 << 31) - 1  # bytes of one message of protobuf

Part = bytes | memoryview


def with_weights_inside(model: SealedFile, folder: Path, root: Path) -> tuple[SealedFile, dict[str, str]]:
    """Return a model file that holds all of its weights, and the SHA-256 of each file that they were read from.

    Args:
        model: the sealed content of model.onnx; is closed where another file takes its place.
        folder: of the version.
        root: folder of the models, within which links of a cluster's mount may lead.

    Raises:
        ArtifactInvalid: weights are in a file that is not a regular one of this folder, or lie beyond its end, or are
            more than one file may hold.
    """
    with opened(model.path) as data:
        graph = _graph_of(data)
        names = {name for tensor in _outside(graph) if (name := _location(tensor, folder))}
        if not names:
            return model, {}
        files = {name: _sealed(folder / name, root) for name in sorted(names)}
        try:
            whole = SealedFile.of(_parts(data, graph, folder, {name: _view(file) for name, file in files.items()}))
        finally:
            for file in files.values():
                file.close()
    model.close()
    return whole, {name: file.sha256 for name, file in files.items()}


def _graph_of(data: memoryview) -> list[tuple[int, int, int | Part]]:
    """Return the fields of the model's graph."""
    pieces = [value for number, kind, value in read_fields(data) if number == _MODEL_GRAPH and kind == BYTES]
    joined = pieces[0] if len(pieces) == 1 else b"".join(piece for piece in pieces if not isinstance(piece, int))
    return list(read_fields(joined)) if not isinstance(joined, int) else []


def _outside(graph: list[tuple[int, int, int | Part]]) -> Iterator[Message]:
    """Yield the tensors whose weights are elsewhere."""
    for number, _, value in graph:
        if number == _GRAPH_TENSOR and not isinstance(value, int):
            tensor = Message.parse(value)
            if tensor.integer(_TENSOR_LOCATION) or tensor.all_bytes(_TENSOR_EXTERNAL):
                yield tensor


def _location(tensor: Message, folder: Path) -> str:
    """Return the name of the file in the version folder that a tensor's weights are in."""
    location = _stated(tensor).get("location", "")
    name = location.removeprefix("./")
    if not name or name in (".", "..", MANIFEST_FILE) or "/" in name or "\\" in name or "\0" in name:
        raise ArtifactInvalid(
            f"{folder}: tensor {tensor.text(_TENSOR_NAME, 'replace')[:80]!r} keeps weights in another file, "
            f"{location[:80]!r}: expected one in the version folder"
        )
    return name


def _stated(tensor: Message) -> Mapping[str, str]:
    entries = tensor.messages(_TENSOR_EXTERNAL)
    return {entry.text(_ENTRY_KEY, "replace"): entry.text(_ENTRY_VALUE, "replace") for entry in entries}


def _sealed(path: Path, root: Path) -> SealedFile:
    try:
        return SealedFile(regular_file(path, root))
    except (OSError, FormatError) as err:
        reason = getattr(err, "strerror", None) or err
        raise ArtifactInvalid(
            f"{path.parent} keeps weights in another file, {path.name!r}, which cannot be read: {reason}"
        ) from err


def _view(file: SealedFile) -> memoryview:
    size = file.path.stat().st_size
    return memoryview(mmap.mmap(file.descriptor, 0, access=mmap.ACCESS_READ)) if size else memoryview(b"")


def _parts(
    data: memoryview, graph: list[tuple[int, int, int | Part]], folder: Path, files: Mapping[str, memoryview]
) -> list[Part]:
    """Return the whole model in pieces, of which those with weights are views of their files."""
    inner = [part for field in graph for part in _field(*field, folder=folder, files=files)]
    size = sum(map(len, inner))
    if size > _LARGEST_MODEL:
        raise ArtifactInvalid(f"{folder}: {size} bytes of graph and weights, expected at most {_LARGEST_MODEL}")
    head = Message(
        [(number, kind, value) for number, kind, value in read_fields(data) if number != _MODEL_GRAPH]
    ).encode()
    return [head, _key(_MODEL_GRAPH, size), *inner]


def _field(number: int, kind: int, value: int | Part, *, folder: Path, files: Mapping[str, memoryview]) -> list[Part]:
    """Return the bytes of one field of the graph, a tensor with its weights in it."""
    if number == _GRAPH_TENSOR and not isinstance(value, int):
        tensor = Message.parse(value)
        if tensor.integer(_TENSOR_LOCATION) or tensor.all_bytes(_TENSOR_EXTERNAL):
            weights = _slice(tensor, folder, files)
            tensor.replace(_TENSOR_EXTERNAL, [])
            tensor.replace(_TENSOR_LOCATION, [])
            head = tensor.encode() + _key(_TENSOR_RAW, len(weights))
            return [_key(number, len(head) + len(weights)), head, weights]
    return [Message([(number, kind, value)]).encode()]


def _slice(tensor: Message, folder: Path, files: Mapping[str, memoryview]) -> memoryview:
    """Return a tensor's bytes in its file."""
    stated, name = _stated(tensor), _location(tensor, folder)
    content = files[name]
    try:
        start = int(stated.get("offset") or 0)
        length = int(stated["length"]) if stated.get("length") else len(content) - start
    except ValueError:
        start = length = -1
    if start < 0 or length < 0 or start + length > len(content):
        raise ArtifactInvalid(
            f"{folder / name} has {len(content)} bytes; tensor {tensor.text(_TENSOR_NAME, 'replace')[:80]!r} is said "
            f"to lie at {stated.get('offset')!r} with {stated.get('length')!r}: the file is cut off, or another one"
        )
    return content[start : start + length]


def _key(number: int, length: int) -> bytes:
    """Return what stands before the bytes of a field."""
    return varint_bytes(number << 3 | BYTES) + varint_bytes(length)
