"""Operations that make several channels of one, or one of several: repeats, and pixel shuffles in both directions.

Used by `passing`. An affine goes from the fewer channels to the more as it is; back it goes where those that belong
together have the same scale and shift.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch.fx import Node

from ..core import Affine
from ..refusals import Refusal, RefusalCode
from .graph import arguments, operation, shape
from .selections import static_size

_SHUFFLES = {"aten::pixel_shuffle": "upscale_factor", "aten::pixel_unshuffle": "downscale_factor"}
COPIES = {"aten::repeat", "aten::tile", "aten::repeat_interleave", *_SHUFFLES}


@dataclass(frozen=True)
class _Copies:
    """Which of the fewer channels each of the more belongs to, and on which axes both are."""

    before: int
    after: int
    order: npt.NDArray[np.int64]
    has_more_after: bool


def copies_forward(node: Node, axis: int | None, affine: Affine) -> tuple[int | None, Affine]:
    """Return the axis and the affine of the output where the input carries `affine` along `axis`."""
    if axis is None:
        return None, affine
    copies = _read(node, axis)
    return copies.after, affine.pick(copies.order) if copies.has_more_after else _joined(node, copies, affine)


def copies_backward(node: Node, axis: int | None, affine: Affine) -> tuple[int | None, Affine]:
    """Return the axis and the affine of the input so that the output carries `affine` along `axis`."""
    if axis is None:
        return None, affine
    before = axis - len(shape(node)) + len(shape(node.all_input_nodes[0]))
    if before < 0:
        raise Refusal(RefusalCode.AXIS, f"'{node.name}' makes the axis of the channels")
    copies = _read(node, before)
    return copies.before, _joined(node, copies, affine) if copies.has_more_after else affine.pick(copies.order)


def _joined(node: Node, copies: _Copies, affine: Affine) -> Affine:
    first = np.unique(copies.order, return_index=True)[1]
    joined = affine.pick(first)
    same = joined.pick(copies.order)
    if not (np.array_equal(same.scale, affine.scale) and np.array_equal(same.shift, affine.shift)):
        raise Refusal(RefusalCode.MULTI_USE, f"'{node.name}' uses a channel several times, and each would change alike")
    return joined


def _read(node: Node, before: int) -> _Copies:
    """Return what becomes of the channels on an axis of the input."""
    name, given, source = operation(node), arguments(node), node.all_input_nodes[0]
    after = before + len(shape(node)) - len(shape(source))
    if name in _SHUFFLES:
        if before != len(shape(source)) - 3:
            raise Refusal(RefusalCode.AXIS, f"'{node.name}' works along the axis {before} of the channels")
        fewer = source if name == "aten::pixel_unshuffle" else node
        count = static_size(node, shape(fewer)[before])
        order = np.repeat(np.arange(count), int(given[_SHUFFLES[name]]) ** 2)
        return _Copies(before, after, order, fewer is source)
    channels = np.arange(static_size(node, shape(source)[before]))
    if name == "aten::repeat_interleave":
        times, dim = given.get("repeats"), given.get("dim")
        if not isinstance(times, int) or dim is None:
            raise Refusal(RefusalCode.AXIS, f"'{node.name}' repeats values one after the other, or by a tensor")
        is_channel = dim % len(shape(source)) == before
        return _Copies(before, after, np.repeat(channels, times) if is_channel else channels, True)
    times = given["repeats"] if name == "aten::repeat" else given["dims"]
    times = [1] * (len(shape(node)) - len(times)) + list(times)
    return _Copies(before, after, np.tile(channels, static_size(node, times[after])), True)
