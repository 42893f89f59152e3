"""Smaller samples for the proof of a site, where its operations do the same at every place of a map.

Used by `site_proof`; `crops` says how small they may be, and why. Whatever is told a size, such as a view, keeps the
example's.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch.fx import Node

from ..crops import Shape, cropped, reach_of
from .graph import arguments, operation

_ANYWHERE: tuple[str, ...] = (
    "conv",
    "batch_norm",
    "max_pool",
    "avg_pool",
    "add",
    "sub",
    "mul",
    "div",
    "neg",
    "dropout",
    "relu",
    "clone",
)
_ANYWHERE += ("contiguous", "detach", "alias", "cat", "rsqrt", "sqrt", "to", "pad", "instance_norm")


def cropped_shapes(nodes: Iterable[Node], shapes: Sequence[Shape]) -> list[Shape]:
    """Return smaller shapes for what a part of the graph reads, or the same ones where size has a part in it.

    Args:
        nodes: the operations of the part.
        shapes: of the values that it reads, channels on axis 1.
    """
    reach = 0
    for node in nodes:
        name = operation(node).removeprefix("aten::").lstrip("_")
        if not name.startswith(_ANYWHERE) or "adaptive" in name or arguments(node).get("dim", 1) != 1:
            return list(shapes)
        reach += _reach(node)
    return cropped(shapes, reach)


def _reach(node: Node) -> int:
    """Return how many places away an operation looks, at most."""
    if "conv" not in operation(node) and "pool" not in operation(node):
        return 0
    given = arguments(node)
    weight = given.get("weight")
    kernel: Any = weight.meta["val"].shape[2:] if isinstance(weight, Node) else given.get("kernel_size") or [1]
    strides, dilations, pads = (_numbers(given.get(name)) for name in ("stride", "dilation", "padding"))
    return reach_of(_numbers(kernel), strides, dilations, pads)


def _numbers(value: Any) -> list[int]:
    if isinstance(value, int):
        return [value]
    return [int(one) for one in value] if isinstance(value, Sequence) and not isinstance(value, str) else []
