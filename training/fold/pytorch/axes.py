"""Where an axis goes when an operation moves, splits or merges axes.

Used by the walk from a norm to its layer. An axis is followed by what it is, never by its size: through a reshape it
survives only where size and stride in row-major order stay the same, so that equal sizes elsewhere prove nothing.
"""

from math import prod
from typing import Any

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
    return _moved(node, list(range(len(before))))


def _moved(node: Node, axes: list[int]) -> list[int | None]:
    name, given, rank = operation(node), arguments(node), len(axes)
    moved: list[int | None] = list(axes)
    if name in {"aten::permute"}:
        return [axes[d] for d in given["dims"]]
    if name in {"aten::t", "aten::numpy_T", "aten::adjoint", "aten::mT"}:
        return moved[::-1] if rank <= 2 or name == "aten::numpy_T" else [*moved[:-2], moved[-1], moved[-2]]
    if name in {"aten::transpose", "aten::swapaxes", "aten::swapdims"}:
        one, other = (given[k] for k in (("dim0", "dim1") if "dim0" in given else ("axis0", "axis1")))
        moved[one], moved[other] = moved[other], moved[one]
        return moved
    if name in {"aten::movedim", "aten::moveaxis"}:
        return _movedim(axes, given["source"], given["destination"])
    if name == "aten::unsqueeze":
        moved.insert(given["dim"] if given["dim"] >= 0 else given["dim"] + rank + 1, None)
        return moved
    if name == "aten::select":
        del moved[given["dim"]]
        return moved
    return _squeezed(node, axes)


def _movedim(axes: list[int], source: Any, destination: Any) -> list[int | None]:
    rank = len(axes)
    sources = [d % rank for d in (source if isinstance(source, list | tuple) else [source])]
    targets = [d % rank for d in (destination if isinstance(destination, list | tuple) else [destination])]
    moved: list[int | None] = [None] * rank
    for one, other in zip(sources, targets, strict=True):
        moved[other] = one
    rest = iter([a for a in axes if a not in sources])
    return [next(rest) if target not in targets else moved[target] for target in range(rank)]


def _squeezed(node: Node, axes: list[int]) -> list[int | None]:
    sizes, given = shape(node.all_input_nodes[0]), arguments(node)
    wanted = given.get("dim")
    chosen = axes if wanted is None else (wanted if isinstance(wanted, list | tuple) else [wanted])
    dropped = {axes[d] for d in chosen if same(sizes[d], 1)}
    return [a for a in axes if a not in dropped]


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
