"""Smaller samples for the proof of a site, where its operations do the same at every place of a map.

Used by `site_proof`. A fold changes weights, and what a channel adds; both are the same at every place, so a map that
has all borders and an inside as wide as the kernels reach shows every product that a larger one does, with other
numbers only. Whatever is told a size, such as a view, keeps the example's.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch.fx import Node

from .graph import arguments, operation

Shape = tuple[int, ...]

_INSIDE = 16  # places beyond the reach of the borders
_STEP = 8  # sides change by multiples of it, so that strides find the same remainders
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
    maps = {shape[2:] for shape in shapes if len(shape) > 2 and max(shape[2:]) > 1}
    least = _INSIDE + 2 * reach
    if len(maps) == 1:
        sides = tuple(side - max(side - least, 0) // _STEP * _STEP for side in maps.pop())
        return [shape[:2] + sides if len(shape) > 2 and max(shape[2:]) > 1 else shape for shape in shapes]
    factor = _common_factor(maps, least)
    return [shape[:2] + tuple(-(-side // factor) for side in shape[2:]) for shape in shapes]


def _common_factor(maps: set[Shape], least: int) -> int:
    """Return the largest power of two that divides all sides and leaves none too small, so that their ratios stay."""
    factor = 1
    while maps and all(side % (2 * factor) == 0 and side // (2 * factor) >= least for sides in maps for side in sides):
        factor *= 2
    return factor


def _reach(node: Node) -> int:
    """Return how many places away an operation looks, at most."""
    if "conv" not in operation(node) and "pool" not in operation(node):
        return 0
    given = arguments(node)
    weight = given.get("weight")
    kernel: Any = weight.meta["val"].shape[2:] if isinstance(weight, Node) else given.get("kernel_size") or [1]
    steps = [one for name in ("dilation", "stride") for one in _numbers(given.get(name)) or [1]]
    pads = _numbers(given.get("padding"))
    return max([*_numbers(kernel), 1]) * max(steps) + max([*pads, 0])


def _numbers(value: Any) -> list[int]:
    if isinstance(value, int):
        return [value]
    return [int(one) for one in value] if isinstance(value, Sequence) and not isinstance(value, str) else []
