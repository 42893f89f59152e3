"""Recognise the operations that can take an affine into their weights: which layout, which axes, which padding.

Used by the walk from a norm to its layers. The channel axes come from the operation and the ranks, never from sizes:
an unbatched convolution has its channels on axis 0, a linear layer on its last axis.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from ..core import Layout
from ..refusals import Refusal, RefusalCode
from .graph import TorchGraph, arguments, is_tensor, operation, same_shape, shape


@dataclass(frozen=True, eq=False)
class Layer:
    """One call of an operation with constant weights.

    Attributes:
        node: the operation.
        source: the value that it reads.
        layout: how its weight is laid out.
        groups: of a convolution, else 1.
        weight: constant node; None for an addition of a constant vector, which has a bias alone.
        bias: constant node, or None.
        out_axis: axis of its output that its output channels are on.
        in_axis: axis of its input that its input channels are on.
        borders: True when outputs near the border see fewer inputs (zero padding, or a transposed convolution).
    """

    node: Node
    source: Node
    layout: Layout
    groups: int
    weight: Node | None
    bias: Node | None
    out_axis: int
    in_axis: int
    borders: bool


def read_layer(graph: TorchGraph, node: Node) -> Layer | None:
    """Return the node as a layer, None when it is another operation or its weight is computed from the input."""
    reader = _READERS.get(operation(node))
    layer = reader(node) if reader and node.op == "call_function" else None
    if layer is None or layer.weight is None or not graph.is_constant(layer.weight):
        return None
    if layer.bias is not None and not graph.is_constant(layer.bias):
        return None
    return layer


def read_vector(graph: TorchGraph, node: Node, axis: int | None, channels: int) -> Layer | None:
    """Return value + parameter as a layer with a bias alone, when the parameter varies along `axis` alone."""
    if operation(node).removesuffix("_") != "aten::add" or node.kwargs.get("alpha", 1) != 1 or axis is None:
        return None
    parameters = [a for a in node.args[:2] if isinstance(a, Node) and graph.target(a) and graph.is_constant(a)]
    values = [a for a in node.args[:2] if is_tensor(a) and a not in parameters]
    if len(parameters) != 1 or len(values) != 1 or not same_shape(values[0], node):  # type: ignore[arg-type]
        return None
    offset = len(shape(node)) - len(shape(parameters[0]))
    varying = [offset + place for place, size in enumerate(shape(parameters[0])) if size > 1]
    if varying != [axis] or channels != shape(parameters[0])[axis - offset]:
        return None
    return Layer(node, values[0], Layout.LINEAR, 1, None, parameters[0], axis, axis, False)  # type: ignore[arg-type]


def read_map(graph: TorchGraph, node: Node, axis: int | None) -> Layer | None:
    """Return value + constant, or value - constant, as a layer with a bias alone, when it varies along other axes too.

    What the constant adds is rescaled with the value: s (x + m) + t = (s x + t) + s m.
    """
    if operation(node).removesuffix("_") not in {"aten::add", "aten::sub"} or node.kwargs.get("alpha", 1) != 1:
        return None
    value, constant = [*node.args, None][:2]
    if is_tensor(value) and graph.is_constant(value) and operation(node).startswith("aten::add"):  # type: ignore[arg-type]
        value, constant = constant, value
    if not isinstance(value, Node) or not isinstance(constant, Node) or not graph.is_constant(constant):
        return None
    offset = len(shape(node)) - len(shape(constant))
    others = [offset + place for place, size in enumerate(shape(constant)) if size != 1 and offset + place != axis]
    if not others or graph.is_constant(value) or not is_tensor(value) or not same_shape(value, node):
        return None
    channels = len(shape(node)) - 1 if axis is None else axis
    return Layer(node, value, Layout.LINEAR, 1, None, constant, channels, channels, False)


def _convolution(node: Node) -> Layer | None:
    given = arguments(node)
    transposed = "transpose" in operation(node) or bool(given.get("transposed"))
    source, weight = given["input"], given["weight"]
    spatial = len(shape(weight)) - 2
    axis = 1 if len(shape(source)) == spatial + 2 else 0
    layout = Layout.CONV_TRANSPOSE if transposed else Layout.CONV
    borders = _transposed_borders(given, weight) if transposed else _padded(given, weight)
    return Layer(node, source, layout, given["groups"], weight, given["bias"], axis, axis, borders)


def border_arguments(node: Node) -> tuple[Any, ...]:
    """Return the arguments behind the bias with which the same convolution runs on one channel of ones."""
    given = arguments(node)
    if "transposed" in given:
        names: tuple[str, ...] = ("stride", "padding", "dilation", "transposed", "output_padding")
        return (*(given[name] for name in names), 1)
    if "output_padding" in given:
        return given["stride"], given["padding"], given["output_padding"], 1, given["dilation"]
    return given["stride"], given["padding"], given["dilation"]


def _padded(given: dict[str, object], weight: Node) -> bool:
    padding, kernel = given["padding"], shape(weight)[2:]
    if isinstance(padding, str):
        return padding == "same" and any(size > 1 for size in kernel)
    return any(_sizes(padding))


def _transposed_borders(given: dict[str, object], weight: Node) -> bool:
    pointwise = all(size == 1 for size in shape(weight)[2:]) and all(size == 1 for size in _sizes(given["stride"]))
    return not pointwise or any(_sizes(given["padding"])) or any(_sizes(given["output_padding"]))


def _sizes(value: object) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [int(value)]  # type: ignore[call-overload]


def _linear(node: Node) -> Layer | None:
    given = arguments(node)
    last = len(shape(node)) - 1
    return Layer(node, given["input"], Layout.LINEAR, 1, given["weight"], given["bias"], last, last, False)


def _addmm(node: Node) -> Layer | None:
    given = arguments(node)
    if given["beta"] != 1 or given["alpha"] != 1 or len(shape(given["self"])) != 1:
        return None
    return _product(node, given["mat1"], given["mat2"], given["self"])


def _matmul(node: Node) -> Layer | None:
    left, right = list(node.args)[:2]
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    return _product(node, left, right, None) if is_tensor(right) and len(shape(right)) == 2 else None


def _product(node: Node, source: Node, weight: Node, bias: Node | None) -> Layer:
    """Return source @ weight as a layer; a weight that the model transposes is taken as it is stored."""
    layout, last = Layout.MATMUL, len(shape(node)) - 1
    if operation(weight) in {"aten::t", "aten::numpy_T", "aten::transpose", "aten::mT"}:
        layout, weight = Layout.LINEAR, weight.all_input_nodes[0]
    return Layer(node, source, layout, 1, weight, bias, last, len(shape(source)) - 1, False)


def _normalisation(node: Node) -> Layer | None:
    """Return a norm that stays as a layer with one weight per channel, so that a second norm can go into it."""
    given = arguments(node)
    if given["weight"] is None or given["bias"] is None:
        return None
    axis = 1
    if operation(node) == "aten::layer_norm":
        if len(given["normalized_shape"]) != 1:
            return None
        axis = len(shape(node)) - 1
    return Layer(node, given["input"], Layout.LINEAR, 1, given["weight"], given["bias"], axis, axis, True)


_READERS: dict[str, Callable[[Node], Layer | None]] = {
    **{f"aten::conv{n}d": _convolution for n in (1, 2, 3)},
    **{f"aten::conv_transpose{n}d": _convolution for n in (1, 2, 3)},
    "aten::convolution": _convolution,
    "aten::linear": _linear,
    "aten::addmm": _addmm,
    "aten::mm": _matmul,
    "aten::matmul": _matmul,
    "aten::batch_norm": _normalisation,
    "aten::instance_norm": _normalisation,
    "aten::group_norm": _normalisation,
    "aten::layer_norm": _normalisation,
}


def require_axis(layer: Layer, axis: int | None, expected: int, what: str) -> None:
    """Raise Refusal axis unless the norm's channels are the layer's (None: one channel, which any axis serves)."""
    if axis is not None and axis != expected:
        raise Refusal(
            RefusalCode.AXIS,
            f"the norm runs over axis {axis} of '{layer.node.name}', whose {what} channels are on axis {expected}",
        )
