"""How small the maps may be on which a fold is proved, where its operations do the same at every place of a map.

Used by the proofs of sites in both front ends. A fold changes weights, and what a channel adds; both are the same at
every place, so a map that has all borders and an inside as wide as the kernels reach shows every product that a larger
one does, with other numbers only.
"""

from collections.abc import Sequence

Shape = tuple[int, ...]

_INSIDE = 8  # places beyond the reach of the borders


def cropped(shapes: Sequence[Shape], reach: int, step: int = 8) -> list[Shape]:
    """Return shapes (N, C, ...) with smaller sides, whose ratios stay.

    Args:
        shapes: of all that the operations read, channels on axis 1.
        reach: how many places away the operations look, at most, one after the other.
        step: sides change by multiples of it, so that strides find the same remainders.
    """
    maps = {shape[2:] for shape in shapes if _is_map(shape)}
    least = _INSIDE + 2 * reach
    if len(maps) == 1:
        sides = tuple(side - max(side - least, 0) // step * step for side in maps.pop())
        return [shape[:2] + sides if _is_map(shape) else shape for shape in shapes]
    factor = _common_factor(maps, least)
    return [shape[:2] + tuple(-(-side // factor) for side in shape[2:]) for shape in shapes]


def reach_of(kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]) -> int:
    """Return how many places away a convolution or a pool looks, at most."""
    return max([*kernel, 1]) * max([*strides, *dilations, 1]) + max([*pads, 0])


def _is_map(shape: Shape) -> bool:
    return len(shape) > 2 and max(shape[2:]) > 1


def _common_factor(maps: set[Shape], least: int) -> int:
    """Return the largest power of two that divides all sides and leaves none too small, so that their ratios stay."""
    factor = 1
    while maps and all(side % (2 * factor) == 0 and side // (2 * factor) >= least for sides in maps for side in sides):
        factor *= 2
    return factor
