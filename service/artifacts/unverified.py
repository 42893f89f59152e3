"""The checks of a model without a manifest, which has no golden answers.

`external_data` and `operators` check every file; here weights that no sound training leaves are refused, and so are
files of our own export whose manifest is missing. Makes the inputs on which such a model is measured; its answers to
them prove nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foldserve.format.metadata import FORMAT_KEY

from ..errors import ArtifactInvalid
from ..tensors import Array, TensorSpec
from .onnx_file import find_all, opened
from .protobuf import Message
from .weights_beside import split, weights_of

_MODEL_METADATA, _ENTRY_KEY = 14, 1
_TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_DOUBLES = 2, 4, 8, 9, 10
# Number of a tensor's type in onnx.proto -> numpy's.
_FLOATS: Mapping[int, np.dtype[Any]] = {1: np.dtype("<f4"), 10: np.dtype("<f2"), 11: np.dtype("<f8")}
_ROWS = 16
_PIECE_BYTES = 1 << 26


def refuse_ours(path: Path) -> None:
    """Raise when the ONNX file at `path` is one of our own export, which publishes none without its manifest.

    A folder that is copied file by file has the model before the manifest for a while, and must not serve meanwhile.

    Raises:
        ArtifactInvalid: the file's metadata says that it is ours.
    """
    with opened(path) as data:
        if any(
            entry.text(_ENTRY_KEY, "replace") == FORMAT_KEY for entry in Message.parse(data).messages(_MODEL_METADATA)
        ):
            raise ArtifactInvalid(
                f"{path} was exported together with a manifest, which is missing: copy the whole version folder"
            )


def refuse_unsound_weights(path: Path) -> None:
    """Raise when a float tensor of the ONNX file at `path` holds NaN; infinity is at home in masks and may stand.

    Raises:
        ArtifactInvalid: such a tensor exists; the message names it.
    """
    with opened(path) as data:
        _, apart = split(data) or (b"", memoryview(b""))
        for tensor in map(Message.parse, find_all("Tensor", data)):
            if any(np.isnan(values).any() for values in _floats(tensor, weights_of(tensor, apart))):
                name = tensor.text(_TENSOR_NAME, "replace")[:80]
                raise ArtifactInvalid(f"{path}: tensor {name!r} holds NaN; the weights are damaged")


def made_inputs(specs: Sequence[TensorSpec], free_size: int = 1) -> dict[str, Array]:
    """Return the same rows each time for inputs of which nothing but name, type and shape is known.

    Floats lie between 0 and 1, where a root and a logarithm exist; bytes are any, as pixels are; wider integers are 0
    or 1, since they may be places in a table of unknown length; texts are `a`.

    Args:
        specs: of the inputs; a first axis of fixed size gives the number of rows.
        free_size: of every axis behind the batch that the graph leaves free.
    """
    generator = np.random.default_rng(0)
    rows = specs[0].shape[0] or _ROWS
    shapes = [tuple(free_size if size is None else size for size in spec.shape[1:]) for spec in specs]
    return {spec.name: _made(generator, (rows, *shape), spec.dtype) for spec, shape in zip(specs, shapes, strict=True)}


def _made(generator: "np.random.Generator", shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    if dtype.kind == "O":
        return np.full(shape, b"a", object)
    if dtype.kind == "f":
        return generator.random(shape).astype(dtype)
    return generator.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)


def check_rows(answers: Mapping[str, Array], rows: int) -> None:
    """Raise when a model does not answer row for row.

    Args:
        answers: its outputs.
        rows: of the inputs.

    Raises:
        ArtifactInvalid: an output has another number of rows, so that the graph's first axis is no batch.
    """
    for name, answer in answers.items():
        if answer.shape[:1] != (rows,):
            raise ArtifactInvalid(
                f"output {name!r} has shape {answer.shape} for a batch of {rows}, expected as many rows: the graph's "
                "first axis is not the batch"
            )


def _floats(tensor: Message, apart: memoryview) -> Iterator[Array]:
    """Yield the values of a tensor, where they are floats, as they lie in the file; large ones piece by piece."""
    dtype = _FLOATS.get(tensor.integer(_TENSOR_TYPE) % (1 << 32))  # it is an int32, of which protobuf keeps 32 bits
    if dtype is not None:
        for number, stored in ((_TENSOR_RAW, dtype), (_TENSOR_FLOATS, _FLOATS[1]), (_TENSOR_DOUBLES, _FLOATS[11])):
            for data in tensor.all_bytes(number):
                yield np.frombuffer(data, stored)
        for start in range(0, len(apart), _PIECE_BYTES):
            yield np.frombuffer(apart[start : start + _PIECE_BYTES], dtype)
