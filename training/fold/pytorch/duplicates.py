"""Layers whose output several things read, copied for the norm among them: exact, at the cost of computing twice.

Used when a fold is asked to, before the norms are placed for good. Afterwards the copy has one reader, so that all
rules hold as they are; its weights are the same numbers in constants of their own.
"""

from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.fx import Node

from ..refusals import Refusal
from .graph import TorchGraph, is_in_place, is_tensor, operation, shape
from .layers import Layer
from .norms import Norm
from .placement import place_norms
from .walk import Walk, walk_back

_SOMETIMES_VIEWS = {"reshape", "reshape_as", "flatten", "contiguous", "to", "type_as", "dropout"}


@dataclass(frozen=True)
class Duplicate:
    """What was copied for one norm.

    Attributes:
        path: of the norm.
        layers: how many layers are now computed twice.
        parameters: how many numbers their weights hold.
        multiplications: that they take for inputs of the example's sizes.
    """

    path: str
    layers: int
    parameters: int
    multiplications: int


def duplicate_producers(graph: TorchGraph, norms: list[Norm], excluded: Collection[str]) -> list[Duplicate]:
    """Copy, in the graph, what norms need for themselves that would have to stay otherwise; return what was copied.

    Args:
        graph: changed; a TorchGraph made before does not know the copies.
        norms: all of it.
        excluded: paths of norms to leave alone.
    """
    placement = place_norms(graph, norms, exact_padding=True, banned={})
    claimed = {node for norm in norms for node in norm.nodes}
    made = []
    for norm in placement.refused:
        if norm.path in excluded or norm.kind == "input":
            continue
        try:
            walk = walk_back(graph, norm, {}, is_shared=True)
        except Refusal:
            continue
        cone = _cone(graph, norm, walk)
        if not any(map(_is_written, cone)) and not claimed & set(cone):
            made.append(_duplicate(graph, norm, walk, cone))
    return made


def note_of(duplicates: list[Duplicate]) -> tuple[str, ...]:
    """Return what the copies cost, as a sentence for the report; nothing for none."""
    if not duplicates:
        return ()
    layers, parameters, multiplications = (
        sum(getattr(one, name) for one in duplicates) for name in ("layers", "parameters", "multiplications")
    )
    return (
        f"{layers} layers are computed twice for {len(duplicates)} norms: {parameters:,} more parameters and "
        f"{multiplications:,} more multiplications for inputs of the example's sizes",
    )


def _cone(graph: TorchGraph, norm: Norm, walk: Walk) -> list[Node]:
    """Return the operations from the layers of the walk to the norm, in the order of evaluation."""
    ends = {layer.node for layer, _ in walk.takes if layer.weight is not None}
    cone: set[Node] = set()
    pending = [norm.source]
    while pending:
        node = pending.pop()
        if node in cone or node.op != "call_function" or graph.is_constant(node) or not _holds_tensors(node):
            continue
        cone.add(node)
        pending.extend(() if node in ends else node.all_input_nodes)
    return sorted(cone, key=lambda node: graph.order[node])


def _is_written(node: Node) -> bool:
    """True when an operation writes into the value, or into a view of it, such as `y[:, 0] = 0`."""
    users = [user for user in node.users if user.op == "call_function"]
    return any(is_in_place(user) or (_may_be_view(user) and _is_written(user)) for user in users)


def _may_be_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    returns = [] if schema is None else schema.returns
    shares = any(value.alias_info is not None for value in returns)
    return shares or operation(node).removeprefix("aten::") in _SOMETIMES_VIEWS


def _holds_tensors(node: Node) -> bool:
    return is_tensor(node) or isinstance(node.meta.get("val"), list | tuple)


def _duplicate(graph: TorchGraph, norm: Norm, walk: Walk, cone: list[Node]) -> Duplicate:
    written = graph.program.graph
    copies: dict[Node, Node] = {}
    layers = {layer.node: layer for layer, _ in walk.takes}
    for node in cone:
        with written.inserting_after(node):
            copies[node] = written.node_copy(node, lambda source: copies.get(source, source))
        if node in layers:
            _own_constants(graph, copies[node])
    norm.nodes[0].replace_input_with(norm.source, copies[norm.source])
    for node in reversed(cone):
        if not node.users:
            written.erase_node(node)
    own = {layer: prod(shape(layer.weight)) for layer in layers.values() if layer.weight is not None}
    twice = {layer: count for layer, count in own.items() if layer.node.users}
    work = [prod(map(_hint, shape(layer.node))) * count // _channels(layer) for layer, count in twice.items()]
    kept = [count for layer, count in own.items() if layer in twice or _serves_others(layer)]
    return Duplicate(norm.path, len(twice), sum(kept), sum(work))


def _serves_others(layer: Layer) -> bool:
    """True when something reads the layer's weight that is no copy of the layer, which has one of its own."""
    assert layer.weight is not None
    return any(operation(reader) != "aten::alias" for reader in layer.weight.users)


def _own_constants(graph: TorchGraph, copy: Node) -> None:
    """Give the copy of a layer constants of its own, with the values of the original's."""
    for constant in [one for one in copy.all_input_nodes if graph.is_constant(one) and is_tensor(one)]:
        with graph.program.graph.inserting_before(copy):
            own = graph.program.graph.call_function(torch.ops.aten.alias.default, (constant,))
        own.meta["val"] = constant.meta["val"]
        copy.replace_input_with(constant, own)


def _channels(layer: Layer) -> int:
    return int(shape(layer.node)[layer.out_axis])


def _hint(size: Any) -> int:
    return int(size) if isinstance(size, int) else int(size.node.hint)
