"""Follows a channel axis through the shape operations of ONNX, by the order of elements and never by sizes that agree.

Used by `flow` in both directions. Two axes are the same only when everything before them (or
everything after them) is the same number of elements: a Reshape keeps the row-major order, so that is a proof. An axis
that is split or merged takes its affine along, repeated or tiled; anything else is refused.
"""

from collections import Counter

import numpy as np
from onnx import NodeProto

from ..core import Affine
from ..refusals import Refusal, RefusalCode
from .graph import OnnxGraph
from .protos import Dims, attributes

SHAPE_OPERATIONS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})


def axis_of_concat(graph: OnnxGraph, node: NodeProto) -> int:
    """Return the axis along which a Concat joins its inputs, not negative.

    Raises:
        Refusal: axis when no input has a known rank.
    """
    rank = next((len(shape) for shape in map(graph.shape, node.input) if shape is not None), 0)
    if rank == 0:
        raise Refusal(RefusalCode.AXIS, f"Concat {node.name!r} joins values of unknown rank")
    return int(attributes(node)["axis"]) % rank


def across_transpose(node: NodeProto, rank: int, axis: int, *, backward: bool) -> int:
    """Return where `axis` of the output lies in the input (backward), or of the input in the output."""
    perm = list(attributes(node).get("perm", range(rank - 1, -1, -1)))
    return int(perm[axis] if backward else perm.index(axis))


def across_reshape(
    graph: OnnxGraph, node: NodeProto, affine: Affine, axis: int, *, backward: bool
) -> tuple[Affine, int]:
    """Return the affine and its axis on the other side of a Reshape, Flatten, Squeeze or Unsqueeze.

    Args:
        graph: knows the shapes of both sides.
        node: the shape operation.
        affine: one channel per element of `axis`, more than one.
        axis: channel axis of the node's output when going backward, of its input otherwise.
        backward: from output to input.

    Raises:
        Refusal: axis when the shapes do not prove where the channels go.
    """
    here_name, there_name = str(node.output[0]), str(node.input[0])
    if not backward:
        here_name, there_name = there_name, here_name
    here, there = graph.shape(here_name), graph.shape(there_name)
    if here is None or there is None:
        raise _lost(node, f"the shape of {here_name if here is None else there_name!r} is not known")
    moved = _merged(here, there, affine, axis)
    if moved is None:
        raise _lost(node, f"{list(here)} -> {list(there)} does not keep axis {axis} in one piece")
    return moved


def _merged(here: Dims, there: Dims, affine: Affine, axis: int) -> tuple[Affine, int] | None:
    """Return the affine on the axis of `there` that is made of `here[first:last + 1]`, which contains `axis`."""
    for first in range(axis, -1, -1):
        for last in range(axis, len(here)):
            block = here[first : last + 1]
            if not all(isinstance(size, int) for size in block):
                continue
            outer = int(np.prod([int(size) for size in here[first:axis]], dtype=np.int64))
            inner = int(np.prod([int(size) for size in here[axis + 1 : last + 1]], dtype=np.int64))
            target = _axis_of(here[:first], here[last + 1 :], there, outer * affine.channels * inner)
            if target is not None:
                spread = affine.repeat(inner)
                return Affine(np.tile(spread.scale, outer), np.tile(spread.shift, outer)), target
    return None


def _axis_of(before: Dims, after: Dims, there: Dims, size: int) -> int | None:
    """Return the axis of `there` with `size` elements that has `before` or `after` on its side, as element counts."""
    for target, other in enumerate(there):
        if other != size:
            continue
        if _same_count(before, there[:target]) or _same_count(after, there[target + 1 :]):
            return target
    return None


def _same_count(one: Dims, other: Dims) -> bool:
    """True when both have the same number of elements whatever the named dimensions are."""
    return _factors(one) == _factors(other)


def _factors(dims: Dims) -> tuple[int, Counter[str]]:
    known = int(np.prod([size for size in dims if isinstance(size, int)], dtype=np.int64))
    return known, Counter(size for size in dims if isinstance(size, str))


def _lost(node: NodeProto, why: str) -> Refusal:
    return Refusal(RefusalCode.AXIS, f"the channel axis cannot be followed through {node.op_type}: {why}")
