"""Permutations of the channels that are no selection of one operation: the channel shuffle, whole or written out.

Used by `passing` and the walk. An affine that runs through one is permuted alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch.fx import Node

from .axes import MOVES_AXES, RESHAPES, axis_map
from .graph import TorchGraph, arguments, operation, same, same_shape, shape

_COPIES = {"aten::clone", "aten::contiguous"}
_SHUFFLES = {"aten::channel_shuffle", "aten::native_channel_shuffle"}


@dataclass(frozen=True)
class Permutation:
    """Operations that put the channels of one value in another order, and nothing else.

    Attributes:
        source: the value.
        nodes: the operations, the last of which gives the permuted value.
        axis: of the channels, in both.
        order: the number in `source` of each channel of the result.
    """

    source: Node
    nodes: tuple[Node, ...]
    axis: int
    order: npt.NDArray[np.int64]


def permutation_to(graph: TorchGraph, last: Node) -> Permutation | None:
    """Return the permutation that ends with the operation `last`, each of its values read by the next alone."""
    if operation(last) in _SHUFFLES:
        return _shuffle(last)
    if operation(last) not in RESHAPES:
        return None
    nodes = [last]
    while operation(nodes[0]) not in RESHAPES or nodes[0] is last:
        before = nodes[0].all_input_nodes[0]
        alone = graph.readers(before) == [nodes[0]] and before not in graph.outputs
        if not alone or operation(before) not in MOVES_AXES | _COPIES:
            return None
        nodes.insert(0, before)
    return _written_out(nodes)


def permutation_from(graph: TorchGraph, first: Node) -> Permutation | None:
    """Return the permutation that begins with the operation `first`, as for `permutation_to`."""
    if operation(first) in _SHUFFLES:
        return _shuffle(first)
    last = first
    for last in _chain(graph, first):
        if last is not first and operation(last) in RESHAPES:
            found = permutation_to(graph, last)
            return found if found is not None and found.nodes[0] is first else None
    return None


def _chain(graph: TorchGraph, node: Node) -> Iterator[Node]:
    """Yield the node, and what alone reads it, and so on, as long as axes are moved."""
    while operation(node) in MOVES_AXES | _COPIES:
        yield node
        readers = graph.readers(node)
        if len(readers) != 1 or node in graph.outputs:
            return
        node = readers[0]


def _shuffle(node: Node) -> Permutation | None:
    source = node.all_input_nodes[0]
    channels = shape(source)[1]
    if not isinstance(channels, int):
        return None
    order = torch.arange(channels).reshape(int(arguments(node)["groups"]), -1).t().reshape(-1)
    return Permutation(source, (node,), 1, order.numpy())


def _written_out(nodes: list[Node]) -> Permutation | None:
    """Return the permutation of a reshape that splits one axis, moves of its parts, and a reshape that joins them."""
    first, *moves, last = nodes
    source = first.all_input_nodes[0]
    before, after = shape(source), shape(first)
    count = len(after) - len(before) + 1
    if count < 2 or not moves or not same_shape(source, last):
        return None
    order: list[int | None] = list(range(len(after)))
    for move in moves:
        if operation(move) not in _COPIES:
            order = [None if place is None else order[place] for place in axis_map(move)]
    for axis, size in enumerate(before):  # by place: sizes of one, as a batch may have, say nothing
        end = axis + count
        parts, sizes = list(range(axis, end)), after[axis:end]
        kept = zip((*after[:axis], *after[end:]), (*before[:axis], *before[axis + 1 :]), strict=True)
        is_split = all(isinstance(one, int) for one in sizes) and same(prod(sizes), size)
        is_still = [*order[:axis], *order[end:]] == [place for place in range(len(after)) if place not in parts]
        if is_split and all(same(*pair) for pair in kept) and is_still and set(order[axis:end]) == set(parts):
            moved = [place - axis for place in order[axis:end] if place is not None]
            numbers = torch.arange(prod(sizes)).reshape(sizes).permute(moved).reshape(-1)
            return Permutation(source, tuple(nodes), axis, numbers.numpy())
    return None
