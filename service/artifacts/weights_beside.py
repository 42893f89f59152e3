"""Weights that an exporter put beside the graph, `model.onnx.data`: read once, and put back where they belong.

What is served is one sealed file that nothing can change any more, like that of any other model. Only regular files of
the version folder are read; a path that leads anywhere else is refused before it is opened.

No message of protobuf may be larger than 2 GiB. A larger model keeps its weights together in a field of the model that
ONNX does not know, and its tensors say where in it they lie: whoever makes a session of it hands over graph and weights
apart, as `split` gives them.
"""

import mmap
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path

import numpy as np

from foldserve.format.errors import FormatError
from foldserve.format.manifest import MANIFEST_FILE, regular_file

from ..errors import ArtifactInvalid
from ..tensors import Array
from .onnx_file import opened
from .protobuf import BYTES, Message, read_fields, varint_bytes
from .sealed import SealedFile

_MODEL_GRAPH, _GRAPH_TENSOR = 7, 5
_TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 8, 9, 13, 14
_TENSOR_DIMS, _TENSOR_TYPE = 1, 2
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_ELEMENT_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}  # by type
_LARGE_TENSOR = 1 << 20  # bytes
_LARGEST_MODEL = (1 << 31) - 1  # bytes of one message of protobuf
_WEIGHTS = 536_870_000  # the field; near the largest number that there is
WEIGHTS_NAME = "weights"  # by which tensors refer to it

Part = bytes | memoryview


def with_weights_inside(model: SealedFile, folder: Path, root: Path) -> tuple[SealedFile, dict[str, str]]:
    """Return a model file that holds all of its weights, and the SHA-256 of each file that they were read from.

    Args:
        model: the sealed content of model.onnx; is closed where another file takes its place.
        folder: of the version.
        root: folder of the models, within which links of a cluster's mount may lead.

    Raises:
        ArtifactInvalid: weights are in a file that is not a regular one of this folder, or lie beyond its end.
    """
    with opened(model.path) as data:
        if split(data) is not None:
            raise ArtifactInvalid(f"{folder} holds a model with a field {_WEIGHTS}, which is no part of ONNX")
        graph = _graph_of(data)
        names = {name for tensor in _outside(graph) if (name := _location(tensor, folder))}
        if not names:
            return model, {}
        files = {name: _sealed(folder / name, root) for name in sorted(names)}
        try:
            views = {name: _view(file) for name, file in files.items()}
            whole = SealedFile.of(_joined(data, graph, folder, views))
        finally:
            for file in files.values():
                file.close()
    model.close()
    return whole, {name: file.sha256 for name, file in files.items()}


def split(data: memoryview) -> tuple[bytes, memoryview] | None:
    """Return the graph of a model and its weights apart; None for one that is a whole file of ONNX.

    Args:
        data: of a sealed model.
    """
    weights, head = None, Message()
    for number, kind, value in read_fields(data):
        if number == _WEIGHTS and kind == BYTES and isinstance(value, memoryview):
            weights = value
        else:
            head.fields.append((number, kind, value))
    return None if weights is None else (head.encode(), weights)


def large_tensors(graph: bytes, weights: memoryview) -> Iterator[tuple[str, int, Array]]:
    """Yield name, type (by ONNX's numbers) and content, as unsigned integers, of the large tensors among weights.

    Those whose elements are no whole bytes are left out, as small ones are.

    Args:
        graph: as `split` gives it.
        weights: beside it.
    """
    for tensor in _outside(_graph_of(memoryview(graph))):
        size, data = _ELEMENT_BYTES.get(tensor.integer(_TENSOR_TYPE)), weights_of(tensor, weights)
        if size is not None and len(data) >= _LARGE_TENSOR:
            array = np.frombuffer(data, f"<u{size}").reshape(tensor.integers(_TENSOR_DIMS))
            yield tensor.text(_TENSOR_NAME), tensor.integer(_TENSOR_TYPE), array


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
            if _is_outside(tensor):
                yield tensor


def _is_outside(tensor: Message) -> bool:
    return bool(tensor.integer(_TENSOR_LOCATION) or tensor.all_bytes(_TENSOR_EXTERNAL))


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


def location_of(tensor: Message) -> str:
    """Return the name of the file that a tensor's weights are said to be in; empty where they are in the graph."""
    return _stated(tensor).get("location", "")


def weights_of(tensor: Message, weights: memoryview) -> memoryview:
    """Return the bytes of one tensor of a sealed model whose weights lie apart; none of one that holds its own."""
    stated = _stated(tensor)
    if stated.get("location") != WEIGHTS_NAME:
        return memoryview(b"")
    start = int(stated["offset"])
    return weights[start : start + int(stated["length"])]


def _stated(tensor: Message) -> Mapping[str, str]:
    entries = tensor.messages(_TENSOR_EXTERNAL)
    return {entry.text(_ENTRY_KEY, "replace"): entry.text(_ENTRY_VALUE, "replace") for entry in entries}


def _sealed(path: Path, root: Path) -> SealedFile:
    try:
        return SealedFile.at(regular_file(path, root))
    except (OSError, FormatError) as err:
        reason = getattr(err, "strerror", None) or err
        raise ArtifactInvalid(
            f"{path.parent} keeps weights in another file, {path.name!r}, which cannot be read: {reason}"
        ) from err


def _view(file: SealedFile) -> memoryview:
    size = file.path.stat().st_size
    return memoryview(mmap.mmap(file.descriptor, 0, access=mmap.ACCESS_READ)) if size else memoryview(b"")


def _joined(
    data: memoryview, graph: list[tuple[int, int, int | Part]], folder: Path, files: Mapping[str, memoryview]
) -> list[Part]:
    """Return the whole model in pieces, of which those with weights are views of their files."""
    inner = [part for field in graph for part in _field(*field, folder=folder, files=files)]
    head = Message(
        [(number, kind, value) for number, kind, value in read_fields(data) if number != _MODEL_GRAPH]
    ).encode()
    size = sum(map(len, inner))
    if len(head) + size <= _LARGEST_MODEL:
        return [head, _key(_MODEL_GRAPH, size), *inner]
    starts = dict(zip(files, accumulate(map(len, files.values()), initial=0), strict=False))
    inner = [part for field in graph for part in _moved(*field, folder=folder, files=files, starts=starts)]
    weights = list(files.values())
    return [
        head,
        _key(_MODEL_GRAPH, sum(map(len, inner))),
        *inner,
        _key(_WEIGHTS, sum(map(len, weights))),
        *weights,
    ]


def _moved(
    number: int,
    kind: int,
    value: int | Part,
    *,
    folder: Path,
    files: Mapping[str, memoryview],
    starts: Mapping[str, int],
) -> list[Part]:
    """Return the bytes of one field of the graph; a tensor says where among all weights its own begin."""
    if number == _GRAPH_TENSOR and not isinstance(value, int):
        tensor = Message.parse(value)
        if _is_outside(tensor):
            offset, weights = _place(tensor, folder, files)
            where = {"location": WEIGHTS_NAME, "offset": starts[_location(tensor, folder)] + offset}
            entries = {**where, "length": len(weights)}.items()
            stated = [Message.of({_ENTRY_KEY: [key], _ENTRY_VALUE: [str(text)]}).encode() for key, text in entries]
            tensor.replace(_TENSOR_EXTERNAL, stated)
            tensor.replace(_TENSOR_LOCATION, [1])
            return [Message.of({number: [tensor.encode()]}).encode()]
    return [Message([(number, kind, value)]).encode()]


def _field(number: int, kind: int, value: int | Part, *, folder: Path, files: Mapping[str, memoryview]) -> list[Part]:
    """Return the bytes of one field of the graph, a tensor with its weights in it."""
    if number == _GRAPH_TENSOR and not isinstance(value, int):
        tensor = Message.parse(value)
        if _is_outside(tensor):
            _, weights = _place(tensor, folder, files)
            tensor.replace(_TENSOR_EXTERNAL, [])
            tensor.replace(_TENSOR_LOCATION, [])
            head = tensor.encode() + _key(_TENSOR_RAW, len(weights))
            return [_key(number, len(head) + len(weights)), head, weights]
    return [Message([(number, kind, value)]).encode()]


def _place(tensor: Message, folder: Path, files: Mapping[str, memoryview]) -> tuple[int, memoryview]:
    """Return where a tensor's bytes begin in its file, and the bytes."""
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
    return start, content[start : start + length]


def _key(number: int, length: int) -> bytes:
    """Return what stands before the bytes of a field."""
    return varint_bytes(number << 3 | BYTES) + varint_bytes(length)
