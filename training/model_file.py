"""Folded module -> model.onnx: one self-describing ONNX graph that takes raw pixels and answers with classes.

Comes after the fold, which has left nothing for the exporter (`fold.onnx.exporter`) to fold by its own rules; comes
before `parity`, which judges the numbers. This module checks form only (interface, operators, parameters bit for bit);
it writes no file.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from foldserve.format.metadata import WEIGHTS, read_labels

from .errors import ExportError
from .fold.onnx.exporter import BATCH_AXIS, export_module, require_valid

OPSET = 20
INPUT_NAME = "image"
OUTPUT_NAMES = ("logits", "probabilities", "class_id")

# A folded network computes; these only remain when a step before this one failed to do its work.
FORBIDDEN_OPERATORS = frozenset({"BatchNormalization", "InstanceNormalization", "Dropout", "Identity"})

_PREFIX = "network."


class ServedNetwork(nn.Module):
    """The exported interface: raw pixels in, logits, probabilities and class out.

    Args:
        network: takes pixels as float32 (N, C, H, W) in 0..255, returns logits (N, classes), float32.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (N, classes), probabilities (N, classes), class id (N, 1) for `image`, uint8 (N, C, H, W)."""
        logits = self.network(image.to(torch.float32))
        return logits, torch.softmax(logits, dim=1), logits.argmax(dim=1, keepdim=True)


def export(
    folded: nn.Module, *, metadata: Mapping[str, str], image_shape: tuple[int, int, int] = (1, 28, 28)
) -> onnx.ModelProto:
    """Return the ONNX graph of `folded`, the same bytes for the same weights on any path and in any process.

    Args:
        folded: network in eval mode without norms; float32 pixels (N, C, H, W) in 0..255 -> logits (N, classes).
        metadata: `metadata_props` of the graph, see docs/architecture.md; `foldserve.weights` is added here.
        image_shape: channels, height and width of one image.

    Returns:
        A graph with input `image` uint8 [batch, C, H, W] and outputs `logits` and `probabilities` float32
        [batch, classes] and `class_id` int64 [batch, 1]; its initializers carry the names of `folded`'s state dict.

    Raises:
        ExportError: `folded` is in training mode or cannot be captured; a norm is left; the graph's parameters are not
            those of `folded` bit for bit; the labels do not match the outputs; the ONNX checker objects.
    """
    if any(module.training for module in folded.modules()):
        raise ExportError("the network is in training mode, expected eval mode; call .eval() before export")
    model = export_module(
        ServedNetwork(folded).eval(),
        (torch.zeros((2, *image_shape), dtype=torch.uint8),),
        opset=OPSET,
        input_names=[INPUT_NAME],
        output_names=OUTPUT_NAMES,
    )
    _name_initializers_as_in(model, folded)
    _check_parameters(model, folded)
    set_metadata(model, {**metadata, WEIGHTS: weights_digest(model)})
    _check_interface(model, image_shape)
    check_graph(model)
    return model


def to_bytes(model: onnx.ModelProto) -> bytes:
    """Return the file content of `model`, the same in every process."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def check_graph(model: onnx.ModelProto) -> None:
    """Raise ExportError when a norm is left in `model`, or ONNX's own full check objects."""
    for node in model.graph.node:
        if node.op_type in FORBIDDEN_OPERATORS:
            raise ExportError(
                f"node {node.name!r} is a {node.op_type}, expected none of {', '.join(sorted(FORBIDDEN_OPERATORS))} "
                "in a folded network; fold with strict=True and read why it stayed"
            )
    require_valid(model)


def set_metadata(model: onnx.ModelProto, entries: Mapping[str, str]) -> None:
    """Replace the metadata of the graph, sorted by key."""
    del model.metadata_props[:]
    for key in sorted(entries):
        model.metadata_props.add(key=key, value=entries[key])


def weights_digest(model: onnx.ModelProto) -> str:
    """Return the SHA-256 over the initializers in graph order: name, dtype, shape, each NUL-ended, and raw bytes.

    The dtype is numpy's name (`float32`), the shape decimals with commas (`6,1,5,5`), the bytes little-endian;
    texts are UTF-8, each NUL-ended.
    """
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        shape = ",".join(str(size) for size in array.shape)
        digest.update(f"{tensor.name}\0{array.dtype.name}\0{shape}\0".encode())
        digest.update(_little_endian(array))
    return digest.hexdigest()


def _little_endian(array: NDArray[Any]) -> bytes:
    if array.dtype == object:  # of text; its own bytes are addresses
        return "".join(f"{text}\0" for text in array.reshape(-1)).encode()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _name_initializers_as_in(model: onnx.ModelProto, folded: nn.Module) -> None:
    graph = model.graph
    names = {_PREFIX + name: name for name in folded.state_dict()}
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    values = [value for value in graph.value_info if value.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(values)


def _check_parameters(model: onnx.ModelProto, folded: nn.Module) -> None:
    expected = {name: tensor.detach().cpu().numpy() for name, tensor in folded.state_dict().items()}
    got = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, array in expected.items():
        # The exporter keeps one of several equal tensors and drops a bias of zeros: no bit of the answer depends on it.
        candidates = [got[name]] if name in got else list(got.values())
        is_dropped = name not in got and not array.any()
        if not is_dropped and not any(same_bits(array, candidate) for candidate in candidates):
            raise ExportError(f"the graph holds another value for {name!r} than the folded network; it was rewritten")
    for name, array in got.items():
        if name not in expected and array.dtype.kind == "f" and array.ndim:
            raise ExportError(f"initializer {name!r} {array.shape} is no parameter of the folded network")


def same_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Return whether two arrays have the same type, shape and bits, NaN and the sign of zero included, or texts."""
    is_alike = one.dtype == other.dtype and one.shape == other.shape
    if one.dtype == object:  # text
        return is_alike and np.array_equal(one, other)
    return is_alike and np.array_equal(one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8))


def _check_interface(model: onnx.ModelProto, image_shape: tuple[int, int, int]) -> None:
    got = [_signature(value) for value in (*model.graph.input, *model.graph.output)]
    classes = got[1][2][-1] if len(got) > 1 and got[1][2] else 0
    expected: list[tuple[str, str, tuple[int | str, ...]]] = [
        (INPUT_NAME, "uint8", (BATCH_AXIS, *image_shape)),
        ("logits", "float32", (BATCH_AXIS, classes)),
        ("probabilities", "float32", (BATCH_AXIS, classes)),
        ("class_id", "int64", (BATCH_AXIS, 1)),
    ]
    if got != expected or not isinstance(classes, int):
        raise ExportError(f"the graph's interface is {got}, expected {expected}")
    labels = read_labels({entry.key: entry.value for entry in model.metadata_props})
    if labels is not None and len(labels) != classes:
        raise ExportError(f"{len(labels)} labels for {classes} outputs; expected one label for each output")


def _signature(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    return value.name, dtype, tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
