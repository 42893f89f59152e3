"""Finds the layers after a norm whose weights can take it: forward from its output to everything that reads that.

The counterpart of `producers`, with the same table of operations that an affine may pass. Every reader has to lead to a
layer; a Concat gives the layer after it an affine that leaves the other inputs' channels alone.
"""

from dataclasses import replace

from onnx import NodeProto

from ..core import Affine, concatenate
from ..refusals import Refusal, RefusalCode
from .graph import OnnxGraph, Use
from .norms import Norm
from .passing import blocked
from .producers import LAYERS, TargetLayer, across, axis_of
from .protos import attributes


def find_consumers(graph: OnnxGraph, norm: Norm) -> list[TargetLayer]:
    """Return the layers that read what `norm` makes, each once.

    Raises:
        Refusal: why the norm cannot go forward.
    """
    return _one_per_layer(_ahead(graph, norm.result, norm.affine, axis_of(norm), ()))


def _ahead(
    graph: OnnxGraph, value: str, affine: Affine, axis: int | None, way: tuple[NodeProto, ...]
) -> list[TargetLayer]:
    if value in graph.outputs:
        raise Refusal(RefusalCode.GRAPH_OUTPUT, f"{value!r} is an output of the graph")
    uses = graph.readers(value)
    if not uses:
        raise Refusal(RefusalCode.NO_PRODUCER, f"nothing reads {value!r}")
    if len(uses) == 1:
        return _behind_reader(graph, uses[0], affine, axis, way)
    try:
        return [target for use in uses for target in _behind_reader(graph, use, affine, axis, way)]
    except Refusal as refusal:
        readers = ", ".join(sorted({use.node.name or use.node.op_type for use in uses}))
        reason = f"{value!r} has {len(uses)} readers: {readers}; not all of them can take the norm ({refusal.reason})"
        raise Refusal(RefusalCode.MULTI_USE, reason) from refusal


def _behind_reader(
    graph: OnnxGraph, use: Use, affine: Affine, axis: int | None, way: tuple[NodeProto, ...]
) -> list[TargetLayer]:
    node = use.node
    if use.index < 0:
        raise Refusal(RefusalCode.SUBGRAPH, f"it is read inside the body of {node.op_type} {node.name!r}")
    if node.domain in ("", "ai.onnx"):
        if node.op_type in LAYERS:
            return [TargetLayer(node, affine, axis, way, data=use.index)]
        if node.op_type == "Concat":
            widened, joined = _within_concat(graph, node, use.index, affine, axis)
            return _ahead(graph, str(node.output[0]), widened, joined, (*way, node))
    if use.index != 0:
        raise blocked(node)
    affine, axis = across(graph, node, affine, axis, backward=False)
    return _ahead(graph, str(node.output[0]), affine, axis, (*way, node))


def _within_concat(
    graph: OnnxGraph, node: NodeProto, index: int, affine: Affine, axis: int | None
) -> tuple[Affine, int]:
    """Return the affine of the whole Concat, identity outside the slice of input `index`, and its axis."""
    shapes = [graph.shape(name) for name in node.input]
    rank = next((len(shape) for shape in shapes if shape is not None), 0)
    if rank == 0:
        raise Refusal(RefusalCode.AXIS, f"Concat {node.name!r} joins values of unknown rank")
    joined = int(attributes(node)["axis"]) % rank
    if axis not in (None, joined):
        raise Refusal(RefusalCode.AXIS, f"Concat {node.name!r} joins along axis {joined}, the norm runs over {axis}")
    parts: list[Affine] = []
    for i, shape in enumerate(shapes):
        size = None if shape is None else shape[joined]
        if not isinstance(size, int):
            raise Refusal(RefusalCode.AXIS, f"Concat {node.name!r} joins channels whose number is not known")
        if i == index and affine.channels not in (1, size):
            raise Refusal(RefusalCode.AXIS, f"Concat {node.name!r} reads {size} channels, not {affine.channels}")
        parts.append(affine.spread(size) if i == index else Affine.identity(size))
    return concatenate(parts), joined


def _one_per_layer(targets: list[TargetLayer]) -> list[TargetLayer]:
    """Compose what arrives at one layer on several ways: each changes other channels, so the order is free."""
    merged: dict[tuple[int, int], TargetLayer] = {}
    for target in targets:
        key = id(target.layer), target.data
        if key not in merged:
            merged[key] = target
            continue
        one = merged[key]
        if one.axis != target.axis or one.affine.channels != target.affine.channels:
            raise Refusal(
                RefusalCode.AXIS, f"the norm reaches {target.layer.op_type} {target.layer.name!r} on two axes"
            )
        merged[key] = replace(one, affine=one.affine.then(target.affine), way=(*one.way, *target.way))
    return list(merged.values())
