"""Other shapes of the inputs that a model may accept: by parity, by batch, by residues, and the sizes of a sweep.

Used by `look` and `size_search`, which try them. Nothing here runs a model.
"""

from collections.abc import Callable, Mapping
from math import prod

from torch import Tensor
from torch.utils._pytree import tree_leaves

from .circumstances import Shapes
from .float64 import Inputs

Change = Callable[[int], int]


_SMALL = 32


def _other_parity(n: int) -> int:
    """Return a size near half of it, or one less than a small one, even for odd and odd for even: any divisor ends."""
    return n - 1 if n <= _SMALL else n // 2 + (n // 2 % 2 == n % 2)


# How the first free axis changes, and how the others do: to another parity, at which a proof costs less; down; far up.
CHANGES: tuple[tuple[Change, Change], ...] = (
    (_other_parity, _other_parity),
    (lambda n: 16 * n + 1, lambda n: n // 2),
    (lambda n: n // 2, lambda n: 16 * n + 3),
)
_LARGER: tuple[Change, Change] = (lambda n: n + 1, lambda n: n + 1)
INSTEAD: tuple[tuple[Change, Change], ...] = (  # for a model that does not accept one of those
    (lambda n: n + 1, lambda n: n + 2),
    (lambda n: 2 * n, lambda n: 2 * n),
    (lambda n: 16 * n, lambda n: 16 * n),
)
# For a forward that reads sizes: other batches; where its questions cannot be followed also smaller steps of them, and
# residues by 64, with which a size halved again and again is odd and even at every depth.
BATCHES: tuple[Change, ...] = (lambda n: n + 1, lambda _: 1, lambda n: 16 * n + 1)
RESIDUES = ((0, 0), (1, 1), (63, 63), (21, 42), (42, 11), (11, 21))
# What cannot be followed is tried at these sizes, as long as all that is tried is no more than so many operations.
SWEPT = (*range(1, 41), 48, 56, 63, 64, 65, 80, 96, 127, 128, 129, 224, 256, 257, 512)
CHANNELS = (1, 3, 4)


def channels_last(shapes: Shapes) -> Shapes:
    """Return the shapes with the second axis behind the others."""
    return tuple((shape[0], *shape[2:], shape[1]) if len(shape) > 2 else shape for shape in shapes)


def batch_of(shapes: Shapes) -> int:
    """Return the first axis that all tensors have in common; 0 for none."""
    batches = {shape[0] for shape in shapes if shape}
    return batches.pop() if len(batches) == 1 else 0


def to_size(size: int) -> Change:
    """Return the change to this size, whatever it was."""
    return lambda _: size


def same_size(size: int) -> int:
    """Return the size: the change that is none."""
    return size


def to_residues(residues: tuple[int, int]) -> tuple[Change, Change]:
    """Return changes to sizes that leave these residues by 64."""
    one, other = (lambda n, residue=residue: -(-n // 64) * 64 + residue for residue in residues)
    return one, other


def elements_of(shapes: Shapes) -> int:
    """Return how many elements inputs of these shapes have."""
    return sum(prod(shape) for shape in shapes)


def shapes_in(inputs: Inputs) -> Shapes:
    """Return the shapes of the tensors among the inputs, in their order."""
    leaves = tree_leaves(dict(inputs) if isinstance(inputs, Mapping) else inputs)
    return tuple(tuple(value.shape) for value in leaves if isinstance(value, Tensor))


def free_axes(shapes: Shapes) -> list[tuple[int, list[int]]]:
    """Return what may change: the number of an input and its axes behind the channels, or else its second axis."""
    largest = max(range(len(shapes)), key=lambda number: len(shapes[number]), default=None)
    if largest is None or len(shapes[largest]) < 2:
        return []
    behind = list(range(2, len(shapes[largest])))
    return [(largest, axes) for axes in (behind, [1]) if axes]


def neighbours(own: Shapes) -> list[Shapes]:
    """Return shapes of another parity that a network may accept: slightly larger and smaller, for large ones half."""
    largest = max((size for shape in own for size in shape), default=0)
    changes = [CHANGES[0], _LARGER] if largest > _SMALL else [_LARGER, CHANGES[0]]
    changed = (shapes_after(own, axes, change) for axes in free_axes(own)[:1] for change in changes)
    return [one for one in changed if one is not None]


def shapes_after(shapes: Shapes, free: tuple[int, list[int]], change: tuple[Change, Change]) -> Shapes | None:
    """Return the shapes with the free axes changed, and with them the axes of other inputs that have their size."""
    number, axes = free
    new = {axis: change[min(place, 1)](shapes[number][axis]) for place, axis in enumerate(axes)}
    if min(new.values()) < 1:
        return None
    sizes = {shapes[number][axis]: size for axis, size in new.items()}
    others = [[size if axis == 0 else sizes.get(size, size) for axis, size in enumerate(shape)] for shape in shapes]
    others[number] = [new.get(axis, size) for axis, size in enumerate(shapes[number])]
    return tuple(tuple(shape) for shape in others)
