"""Reads and writes ONNX files for the command line: whole or not at all, and never beyond the model's own folder.

It sits at the ends of the ONNX flow and knows nothing of folding.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto, external_data_helper

from ...disk import write_whole
from ...errors import ConfigError, FoldError
from ...file_kind import kind_of
from .protos import first_line, subgraphs

MOST_BYTES = 2**31 - 2**24  # of weights in a graph that is one file: protobuf ends at 2 GiB, names and shapes included


def load_onnx(path: Path, most_bytes: int | None = None) -> onnx.ModelProto:
    """Return the model in `path` with all its weights in memory.

    Args:
        path: of the file; weights may lie beside it.
        most_bytes: of weights, refused before they are read; None: any number.

    Raises:
        ConfigError: there is no such file, it is a folder, it is no ONNX file and not named as one, or it is too large.
        FoldError: it is no ONNX file, or its external data is missing, too short or outside the model's folder.
    """
    if path.is_dir():
        kind = kind_of(path) or "a folder"
        raise ConfigError(f"{path} is {kind}; expected an ONNX file")
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist; expected an ONNX file, or package.module:factory for a PyTorch network"
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as err:  # protobuf's own errors, which ship no types
        raise _no_model(path, f"is not a readable ONNX file ({first_line(err)}); it may be cut off") from err
    if not model.HasField("graph") or not model.opset_import:
        raise _no_model(path, "holds no ONNX graph; expected a file that an exporter wrote")
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            _require_inside(path, tensor)
    require_size(str(path), weights_bytes(model), most_bytes)
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as err:
        raise FoldError(f"{path}: its external data cannot be read: {first_line(err)}") from err
    return model


def require_size(name: str, weights: int, most_bytes: int | None) -> None:
    """Raise ConfigError where a network has more bytes of weights than are taken."""
    if most_bytes is not None and weights > most_bytes:
        raise ConfigError(
            f"{name} has {weights / 2**30:.1f} GiB of weights in the precision that is published; a graph in one file "
            "holds 2 GiB. Its export to ONNX, weights beside it, can be served as it is, not proved: foldserve serve "
            "--allow-unverified"
        )


def weights_bytes(model: onnx.ModelProto) -> int:
    """Return how many bytes the tensors in a model have by their shapes, wherever they lie."""
    return sum(
        math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in _tensors(model.graph)
    )


def _no_model(path: Path, what: str) -> ConfigError | FoldError:
    """Return the error for a file that is no model: where its name says that it never was one, the name is mended.

    Args:
        path: of the file.
        what: is wrong with it, where its first bytes do not say what it is.
    """
    kind = kind_of(path)
    if kind is not None:
        what = f"is not a readable ONNX file: it is {kind}"
    if path.suffix == ".onnx":
        return FoldError(f"{path} {what}")
    return ConfigError(f"{path} {what}; a network is package.module:factory, a .pt2 file or an .onnx file")


def require_writable(path: Path) -> None:
    """Raise ConfigError when `path` exists or its folder does not."""
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} exists already; it is never overwritten: choose another path or remove it")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is not a folder; make it first")


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` to `path`, which appears whole or not at all.

    Raises:
        ConfigError: `path` exists, or cannot be written.
        FoldError: the model is larger than the 2 GiB that one ONNX file can hold.
    """
    require_writable(path)
    try:
        data = model.SerializeToString(deterministic=True)
    except Exception as err:  # protobuf's own errors, which ship no types
        raise FoldError(f"the model does not fit into one ONNX file: {first_line(err)}") from err
    try:
        write_whole(path, data, replaces=False)
    except FileExistsError as err:
        raise ConfigError(f"{path} exists already; it is never overwritten: choose another path or remove it") from err
    except OSError as err:
        raise ConfigError(f"{path} cannot be written: {err.strerror or err}") from err


def _require_inside(path: Path, tensor: TensorProto) -> None:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    folder = path.parent.resolve()
    target = (folder / location).resolve()
    if not location or not target.is_relative_to(folder):
        raise FoldError(
            f"{path}: external data of {tensor.name!r} lies in {location!r}, outside the model's folder; "
            "move it beside the model"
        )
    if not target.is_file():
        raise FoldError(f"{path}: external data of {tensor.name!r} is missing: expected the file {location!r}")


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
        for body in subgraphs(node):
            yield from _tensors(body)
