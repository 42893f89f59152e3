"""Operations that pick channels of a value: slices, indices, flips and rolls, and which channels they pick.

Used by `passing` and the walk. What is picked is found by running the operation on the numbers of the channels.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx import Node

from ..core import Affine
from ..refusals import Refusal, RefusalCode
from .graph import TorchGraph, arguments, is_tensor, operation, shape

SELECTIONS = {"aten::slice", "aten::narrow", "aten::index_select", "aten::flip", "aten::roll"}


def is_selection(graph: TorchGraph, node: Node, axis: int | None) -> bool:
    """True for a selection along `axis`; indexing by tensors is one with a single constant vector."""
    if axis is None:
        return False
    if operation(node) != "aten::index":
        return operation(node) in SELECTIONS and axis in dims_of(node)
    vectors = [one for one in arguments(node)["indices"] if one is not None]
    is_vector = len(vectors) == 1 and graph.is_constant(vectors[0]) and len(shape(vectors[0])) == 1
    return is_vector and dims_of(node) == [axis]


def dims_of(node: Node) -> list[int]:
    """Return along which axes an operation works; a roll of all values one after the other along none."""
    if operation(node) == "aten::index":
        return [axis for axis, one in enumerate(arguments(node)["indices"]) if one is not None]
    rank = len(shape(node)) if is_tensor(node) else len(node.meta["val"][0].shape)
    given = arguments(node)
    dims = given.get("dim", given.get("dims", 0))
    return [int(dim) % rank for dim in (dims if isinstance(dims, list | tuple) else [dims])]


def picked(graph: TorchGraph, node: Node, axis: int) -> npt.NDArray[np.int64]:
    """Return which channels of its input a selection along `axis` gives, in its order."""
    given, numbers = arguments(node), torch.arange(static_size(node, shape(node.all_input_nodes[0])[axis]))
    if operation(node) == "aten::index":
        vector = next(one for one in given["indices"] if one is not None)
        return np.asarray(numbers[graph.constant(vector)])
    options = {name: value for name, value in given.items() if name != "self"}
    tensors = {name: value for name, value in options.items() if isinstance(value, Node)}
    if not all(graph.is_constant(value) for value in tensors.values()):
        raise Refusal(RefusalCode.AXIS, f"'{node.name}' picks channels by a tensor that varies")
    options |= {name: graph.constant(value) for name, value in tensors.items()}
    options |= {"dim": 0} if "dim" in given else {"dims": [0]}
    if "shifts" in given:
        options["shifts"] = [given["shifts"][dims_of(node).index(axis)]]
    target: Any = node.target
    found: Tensor = target(numbers, **options)
    return found.numpy()


def unpicked(graph: TorchGraph, node: Node, axis: int, affine: Affine) -> Affine:
    """Return the affine of all channels from that of the picked ones; the others stay as they are."""
    numbers = picked(graph, node, axis)
    if len(set(numbers)) < len(numbers):
        raise Refusal(RefusalCode.MULTI_USE, f"'{node.name}' picks a channel twice")
    whole = Affine.identity(static_size(node, shape(node.all_input_nodes[0])[axis]))
    whole.scale[numbers], whole.shift[numbers] = affine.scale, affine.shift
    return whole


def picks_of_unchanged(graph: TorchGraph, node: Node, axis: int | None, affine: Affine) -> list[Node]:
    """Return the operations, `node` first, that pick channels which the affine of its input leaves as they are.

    y[:, :4] is two slices, the first of which takes all rows: what reads that has to pick the channels. There are none
    where anything else is read.
    """
    if axis is None or operation(node) not in SELECTIONS | {"aten::index"}:
        return []
    if is_selection(graph, node, axis):
        return [] if changes(affine)[picked(graph, node, axis)].any() else [node]
    inner = [picks_of_unchanged(graph, one, axis, affine) for one in graph.readers(node)]
    is_row = operation(node) != "aten::index" and node not in graph.outputs and all(inner)
    return [node, *(pick for picks in inner for pick in picks)] if is_row else []


def changes(affine: Affine) -> npt.NDArray[np.bool_]:
    """Return for each channel whether the affine changes it."""
    changed: npt.NDArray[np.bool_] = (affine.scale != 1) | (affine.shift != 0)
    return changed


def static_size(node: Node, size: Any) -> int:
    """Return a number of channels; Refusal when it is free."""
    if not isinstance(size, int):
        raise Refusal(RefusalCode.AXIS, f"the number of channels at '{node.name}' is not fixed")
    return size
