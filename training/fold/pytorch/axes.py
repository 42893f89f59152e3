"""Where an axis goes when an operation moves, splits or merges axes.

Used by the walk from a norm to its layer. An axis is followed by what it is, never by its size: through a reshape it
survives only where size and stride in row-major order stay the same, so that equal sizes elsewhere prove nothing.
"""

from math import prod
from typing import Any

import torch
from torch.fx import Node

from ..refusals import Refusal, RefusalCode
from .graph import arguments, operation, same, shape

RESHAPES = {
    "aten::flatten",
    "aten::view",
    "aten::reshape",
    "aten::_unsafe_view",
    "aten::unflatten",
    "aten::view_as",
    "aten::reshape_as",
}
SPLITS = {"aten::split", "aten::split_with_sizes", "aten::chunk", "aten::unsafe_split", "aten::unsafe_chunk"}
SPLITS |= {"aten::tensor_split", "aten::unsafe_split_with_sizes"}
_MOVES = {"aten::permute", "aten::transpose", "aten::swapaxes", "aten::swapdims", "aten::t", "aten::numpy_T"}
_MOVES |= {"aten::movedim", "aten::moveaxis"}
_RESIZES = {"aten::unsqueeze", "aten::squeeze", "aten::select", "aten::expand", "aten::expand_as"}
MOVES_AXES = RESHAPES | _MOVES | _RESIZES | {"aten::adjoint", "aten::mT"}


def axis_before(node: Node, axis: int | None) -> int | None:
    """Return which axis of the node's input is `axis` of its output (None: one channel, any axis).

    Raises:
        Refusal: axis, when the operation splits it, merges it or makes it.
    """
    if axis is None:
        return None
    before = axis_map(node)[axis]
    if before is None:
        raise _lost(node, axis, "leaves")
    return before


def axis_after(node: Node, axis: int | None) -> int | None:
    """Return which axis of the node's output is `axis` of its input (None: one channel, any axis).

    Raises:
        Refusal: axis, when the operation splits, merges or drops it.
    """
    if axis is None:
        return None
    places = axis_map(node)
    if axis not in places:
        raise _lost(node, axis, "enters")
    return places.index(axis)


def axis_map(node: Node) -> list[int | None]:
    """Return for each axis of the output the axis of the input that it is, None where it is none of them."""
    name, source = operation(node), node.all_input_nodes[0]
    before, after = shape(source), shape(node)
    if name in RESHAPES:
        return [_same_place(before, after, axis) for axis in range(len(after))]
    if name in {"aten::expand", "aten::expand_as"}:
        offset = len(after) - len(before)
        return [a - offset if a >= offset and same(before[a - offset], after[a]) else None for a in range(len(after))]
    if name == "aten::select":
        kept: list[int | None] = list(range(len(before)))
        del kept[arguments(node)["dim"]]
        return kept
    return _moved(node, before)


def _moved(node: Node, before: tuple[Any, ...]) -> list[int | None]:
    """Return where the axes go by running the operation on a tensor without values whose strides name its axes."""
    removable = operation(node) == "aten::squeeze"
    sizes = [1 if removable and same(size, 1) else 2 for size in before]
    names = [len(before) + axis for axis in range(len(before))]  # a new axis has twice the stride of another, or one
    probe = torch.empty_strided(sizes, names, device="meta")
    moved = node.target(probe, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return [names.index(stride) if stride in names else None for stride in moved.stride()]


def _same_place(before: tuple[Any, ...], after: tuple[Any, ...], axis: int) -> int | None:
    """Return the input axis with the size and the row-major stride of output axis `axis`."""
    size, stride = after[axis], prod(after[axis + 1 :])
    for candidate, candidate_size in enumerate(before):
        if same(candidate_size, size) and same(prod(before[candidate + 1 :]), stride) and not same(size, 1):
            return candidate
    return None


def merged(node: Node, axis: int) -> tuple[int, int, int] | None:
    """Return where a reshape puts `axis` of its input when it merges it with others: (output axis, repeat, tile).

    Along that output axis each channel stands `repeat` times in a row, and the whole row `tile` times; None when the
    reshape does something else, or sizes are dynamic.
    """
    before, after = shape(node.all_input_nodes[0]), shape(node)
    if operation(node) not in RESHAPES:
        return None
    channels, stride = before[axis], prod(before[axis + 1 :])
    for place, size in enumerate(after):
        inner = prod(after[place + 1 :])
        if not all(isinstance(value, int) for value in (channels, stride, size, inner)):
            continue
        if inner and stride % inner == 0 and size % (channels * (stride // inner)) == 0 and size > 1:
            repeat = stride // inner
            return place, repeat, size // (channels * repeat)
    return None


def _lost(node: Node, axis: int, how: str) -> Refusal:
    before, after = tuple(shape(node.all_input_nodes[0])), tuple(shape(node))
    return Refusal(
        RefusalCode.AXIS,
        f"the channel axis {axis} that {how} '{node.name}' ({operation(node)}, {_text(before)} to {_text(after)}) "
        "does not stay one axis",
    )


def _text(sizes: tuple[Any, ...]) -> str:
    return "(" + ", ".join(str(size) for size in sizes) + ")"
