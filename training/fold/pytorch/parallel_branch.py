"""A norm on a branch parallel to a convolution, their outputs added: it goes into the centre of the kernel.

Used by `placement` for norms that go neither back nor forward: the identity branches of RepVGG and MobileOne.
s x + t + conv(x) is one convolution when the kernel's centre lies on the output's own place.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from ..core import Layout, in_channels, out_channels
from ..refusals import Refusal, RefusalCode
from .graph import TorchGraph, arguments, operation, same_shape, shape
from .layers import Layer, read_layer
from .norms import Norm
from .passing import is_plain_sum


class ZeroBranch(nn.Module):
    """Stands where a norm was whose share a parallel convolution now computes.

    Args:
        is_written: the caller writes into the output in place, so that it needs a shape and memory of its own.
    """

    def __init__(self, is_written: bool = False):
        super().__init__()
        self.is_written = is_written

    def forward(self, x: Tensor) -> Tensor:
        """Return a zero that adds to any value of as many axes as `x`, in its dtype."""
        return torch.zeros_like(x) if self.is_written else x.new_zeros((1,) * x.ndim)


@dataclass(frozen=True)
class ParallelLayer:
    """A convolution that takes a norm on a parallel branch.

    Attributes:
        layer: the convolution.
        sign: of the norm in the sum, relative to the convolution.
        passed: operations between norm, convolution and the sum where they meet, this sum included.
    """

    layer: Layer
    sign: float
    passed: tuple[Node, ...]


def find_parallel_layer(graph: TorchGraph, norm: Norm, folded: Mapping[Node, tuple[Norm, Layer]]) -> ParallelLayer:
    """Return the convolution that can take the norm.

    Args:
        graph: the model.
        norm: stays otherwise.
        folded: by its output, each norm that goes back into a single layer, and that layer.

    Raises:
        Refusal: multi-use, when there is none.
    """
    value, sign = norm.output, 1.0
    passed: list[Node] = []
    while (total := _sum_of(graph, value)) is not None:
        passed.append(total)
        if _adds_zero(total):
            value = total
            continue
        left, right = total.args[:2]
        sign = -sign if operation(total).startswith("aten::sub") and value is right else sign
        other = right if value is left else left
        assert isinstance(other, Node)
        other_sign = -1.0 if operation(total).startswith("aten::sub") and other is right else 1.0
        for layer, layer_sign, between in _layers_in(graph, other, folded):
            if layer.source is norm.source and covers(layer, norm.axis) and same_shape(layer.node, norm.output):
                return ParallelLayer(layer, sign * other_sign * layer_sign, (*passed, *between))
        value = total
    raise Refusal(RefusalCode.MULTI_USE, f"no convolution of '{norm.source.name}' is added that could take it")


def _sum_of(graph: TorchGraph, value: Node) -> Node | None:
    """Return the sum that alone reads the value."""
    readers = graph.readers(value)
    alone = value not in graph.outputs and len(readers) == 1
    return readers[0] if alone and (is_plain_sum(graph, readers[0]) or _adds_zero(readers[0])) else None


def _adds_zero(node: Node) -> bool:
    """True for value + 0, with which some networks begin a sum."""
    number = node.args[1] if operation(node).removesuffix("_") == "aten::add" else None
    return isinstance(number, int | float) and number == 0


def _layers_in(
    graph: TorchGraph, value: Node, folded: Mapping[Node, tuple[Norm, Layer]]
) -> Iterator[tuple[Layer, float, tuple[Node, ...]]]:
    """Yield the layers whose outputs the value is a sum of, with their signs and what lies between."""
    if value in graph.outputs or len(graph.readers(value)) != 1:
        return
    if value in folded:
        norm, layer = folded[value]
        if norm.source is layer.node and len(graph.readers(layer.node)) == 1:
            yield layer, 1.0, norm.nodes
    elif is_plain_sum(graph, value):
        for place, part in enumerate(value.args[:2]):
            assert isinstance(part, Node)
            sign = -1.0 if place and operation(value).startswith("aten::sub") else 1.0
            for layer, inner, between in _layers_in(graph, part, folded):
                yield layer, sign * inner, (value, *between)
    else:
        layer_here = read_layer(graph, value)
        if layer_here is not None:
            yield layer_here, 1.0, ()


def covers(layer: Layer, axis: int | None) -> bool:
    """True when each output of the layer could also take the input of its own channel and place: s x + layer(x)."""
    if layer.weight is None or axis not in (None, layer.out_axis) or not same_shape(layer.node, layer.source):
        return False
    if layer.layout is Layout.LINEAR:
        return operation(layer.node) == "aten::linear"
    if layer.layout is not Layout.CONV:
        return False
    given, kernel = arguments(layer.node), shape(layer.weight)[2:]
    count = len(kernel)
    strides, dilations = _each(given["stride"], count), _each(given["dilation"], count)
    paddings = given["padding"]
    centred = paddings == "same" if isinstance(paddings, str) else None
    if centred is None:
        pads = _each(paddings, count)
        centred = all(2 * p == d * (k - 1) for p, d, k in zip(pads, dilations, kernel, strict=True))
    channels = _channels(layer) == in_channels(layer.weight.meta["val"], layer.layout, layer.groups)
    return centred and all(k % 2 == 1 for k in kernel) and set(strides) == {1} and channels


def _channels(layer: Layer) -> int:
    assert layer.weight is not None
    return out_channels(layer.weight.meta["val"], layer.layout, layer.groups)


def _each(value: Any, count: int) -> list[int]:
    sizes: list[int] = list(value) if isinstance(value, list | tuple) else [value]
    return sizes * count if len(sizes) == 1 else sizes
