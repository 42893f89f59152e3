"""Follows channel axes through the shape operations of ONNX, by the order of elements and never by sizes that agree.

Used by `flow` in both directions. Two axes are the same only when everything before them (or everything after them) is
the same number of elements: a Reshape keeps the row-major order, so that is a proof. An axis that is merged with others
takes its affine along, repeated or tiled; one that is split lies on several axes until another Reshape joins them, as
in a channel shuffle. DepthToSpace and SpaceToDepth say themselves which channels become one. Anything else is refused.
"""

from collections import Counter
from collections.abc import Iterator
from math import prod

import numpy as np
from onnx import NodeProto

from ..core import Affine
from ..refusals import Refusal, RefusalCode
from .graph import OnnxGraph
from .protos import Dims, attributes

_BLOCKS = frozenset({"DepthToSpace", "SpaceToDepth"})
SHAPE_OPERATIONS = _BLOCKS | {"Einsum", "Expand", "Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}

Axes = tuple[int, ...]


def axis_of_node(graph: OnnxGraph, node: NodeProto) -> int:
    """Return the axis along which a Concat joins, or a Split or Gather selects, not negative.

    Raises:
        Refusal: axis when no input has a known rank.
    """
    known = node.input if node.op_type == "Concat" else node.input[:1]
    rank = next((len(shape) for shape in map(graph.shape, known) if shape is not None), 0)
    if rank == 0:
        verb = "joins" if node.op_type == "Concat" else "selects from"
        raise Refusal(RefusalCode.AXIS, f"{node.op_type} {node.name!r} {verb} values of unknown rank")
    return int(attributes(node).get("axis", 0)) % rank


def across_shape_operation(
    graph: OnnxGraph, node: NodeProto, affine: Affine, axes: Axes, *, backward: bool
) -> tuple[Affine, Axes]:
    """Return the affine and its axes on the other side of one of `SHAPE_OPERATIONS`.

    Args:
        graph: knows the shapes of both sides.
        node: the shape operation.
        affine: one channel per element of the axes taken together.
        axes: of the node's output when going backward, of its input otherwise; the last one counts up fastest. () for
            a scalar, which passes wherever elements are copied.
        backward: from output to input.

    Raises:
        Refusal: axis when the shapes do not prove where the channels go, unknown-op for an Einsum that reckons.
    """
    names = (str(node.output[0]), str(node.input[0])) if backward else (str(node.input[0]), str(node.output[0]))
    here, there = graph.shape(names[0]), graph.shape(names[1])
    rank = len(here or there or ())
    order = _order_of_einsum(node, rank) if node.op_type == "Einsum" else None
    if not axes:
        return affine, axes
    if node.op_type in ("Transpose", "Einsum"):
        if rank == 0:
            raise Refusal(RefusalCode.AXIS, f"{node.op_type} {node.name!r}: the rank of its input is not known")
        perm = attributes(node).get("perm") if order is None else order
        perm = list(range(rank - 1, -1, -1) if perm is None else perm)
        return affine, tuple(int(perm[axis] if backward else perm.index(axis)) for axis in axes)
    if node.op_type in _BLOCKS:
        return _across_blocks(node, affine, axes, to_depth=(node.op_type == "SpaceToDepth") != backward), axes
    if here is None or there is None:
        raise _lost(node, f"the shape of {names[0] if here is None else names[1]!r} is not known")
    if node.op_type == "Expand":
        return affine, _across_expand(node, here, there, axes)
    moved = _moved(here, there, affine, axes)
    if moved is None:
        where = f"axis {axes[0]}" if len(axes) == 1 else f"axes {list(axes)}"
        raise _lost(node, f"{list(here)} -> {list(there)} does not keep {where} in one piece")
    return moved


def _order_of_einsum(node: NodeProto, rank: int) -> list[int]:
    """Return the axes of the one operand of an Einsum in the order in which the result has them.

    Raises:
        Refusal: unknown-op when it multiplies, sums or takes a diagonal.
    """
    equation = attributes(node)["equation"].decode().replace(" ", "")
    terms, arrow, result = equation.partition("->")
    others = "".join(map(chr, range(1, rank - len(terms.replace("...", "")) + 1)))  # what the dots stand for
    labels = terms.replace("...", others)
    result = result.replace("...", others) if arrow else others + "".join(sorted(terms.replace("...", "")))
    if "," in terms or len({*labels}) < len(labels) or sorted(labels) != sorted(result):
        reason = f"Einsum {node.name!r} ({equation}) does more than to change the order of axes"
        raise Refusal(RefusalCode.UNKNOWN_OP, reason)
    return [labels.index(label) for label in result]


def _across_expand(node: NodeProto, here: Dims, there: Dims, axes: Axes) -> Axes:
    """Return the same axes counted from the end, where Expand copies along others only."""
    moved = tuple(axis + len(there) - len(here) for axis in axes)
    for one, other in zip(axes, moved, strict=True):
        if other < 0 or not isinstance(here[one], int) or here[one] != there[other]:
            raise _lost(node, f"{list(here)} -> {list(there)} makes copies along it")
    return moved


def _across_blocks(node: NodeProto, affine: Affine, axes: Axes, *, to_depth: bool) -> Affine:
    """Return the affine of all channels of the side with more of them, or of the other side.

    Args:
        node: DepthToSpace or SpaceToDepth; a channel of the one side is a block of `blocksize`² on the other.
        affine: of the side that is left.
        axes: of the channels.
        to_depth: from the side with fewer channels to the one with more.

    Raises:
        Refusal: axis when channels that become one have several scales or shifts.

    Source: ONNX, operators DepthToSpace and SpaceToDepth: DCR counts the blocks first, CRD the channels.
    """
    fields = attributes(node)
    area = int(fields["blocksize"]) ** 2
    channels = affine.channels if to_depth else affine.channels // area
    if axes != (1,) or channels * area != affine.channels * (area if to_depth else 1):
        raise _lost(node, f"the norm runs over the axes {list(axes)}, its channels are on axis 1")
    blocks_first = fields.get("mode", b"DCR") == b"DCR"
    one = np.tile(np.arange(channels), area) if blocks_first else np.repeat(np.arange(channels), area)
    if to_depth:
        return affine.pick(one)
    few = affine.pick(np.arange(channels) * (1 if blocks_first else area))
    if not np.array_equal([few.pick(one).scale, few.pick(one).shift], [affine.scale, affine.shift]):
        raise _lost(node, "channels that become one have several scales or shifts")
    return few


def _moved(here: Dims, there: Dims, affine: Affine, axes: Axes) -> tuple[Affine, Axes] | None:
    """Return the affine on the axes of `there` that hold a block of `here` around `axes`; on one axis if possible."""
    sizes = [here[axis] for axis in axes]
    numbers = [size for size in sizes if isinstance(size, int)]
    first, last = min(axes), max(axes)
    if prod(numbers) != affine.channels or len(numbers) != last - first + 1:
        return None
    order = np.argsort(axes)
    ascending = affine.pick(np.arange(affine.channels).reshape(numbers).transpose(order).reshape(-1))
    for longest in (1, len(there)):
        for start, stop in _blocks_around(here, first, last + 1):
            outer = prod(int(size) for size in here[start:first])
            inner = prod(int(size) for size in here[last + 1 : stop])
            targets = _same_block(here[:start], here[stop:], there, outer * affine.channels * inner, longest)
            if targets:
                return ascending.pick(np.tile(np.repeat(np.arange(affine.channels), inner), outer)), targets
    return None


def _blocks_around(dims: Dims, first: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the blocks of known size that contain dims[first:stop], as start and stop, smaller ones first."""
    for start in range(first, -1, -1):
        for end in range(stop, len(dims) + 1):
            if all(isinstance(size, int) for size in dims[start:end]):
                yield start, end


def _same_block(before: Dims, after: Dims, there: Dims, size: int, longest: int) -> Axes:
    """Return the axes of `there`, together of `size`, that have `before` or `after` on their side; () for none."""
    for length in range(1, longest + 1):
        for start in range(len(there) - length + 1):
            numbers = [dim for dim in there[start : start + length] if isinstance(dim, int)]
            fits = len(numbers) == length and prod(numbers) == size
            if fits and (_same_count(before, there[:start]) or _same_count(after, there[start + length :])):
                return tuple(range(start, start + length))
    return ()


def _same_count(one: Dims, other: Dims) -> bool:
    """True when both have the same number of elements whatever the named dimensions are."""
    return _factors(one) == _factors(other)


def _factors(dims: Dims) -> tuple[int, Counter[str]]:
    return prod(size for size in dims if isinstance(size, int)), Counter(size for size in dims if isinstance(size, str))


def _lost(node: NodeProto, why: str) -> Refusal:
    return Refusal(RefusalCode.AXIS, f"the channel axis cannot be followed through {node.op_type}: {why}")
