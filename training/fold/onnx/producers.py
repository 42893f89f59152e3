"""Finds the layers before a norm whose weights can take it: backward from its input to what makes that.

Fourth in the ONNX flow, after `norms`; `consumers` looks forward. No value on the way may have another reader or be an
output of the graph, and the affine must pass each operation (`flow`). The arithmetic is the task of `parameters`.
"""

from dataclasses import replace
from itertools import pairwise

from onnx import NodeProto

from ..core import Affine
from ..refusals import Refusal, RefusalCode
from .axes import axis_of_node
from .constants import read_constant
from .flow import LAYERS, Flow, Place, TargetLayer, one_per_layer, one_step_more
from .graph import OnnxGraph
from .norms import AffineOp, Norm, composed, read_affine_op
from .protos import Dims, operation
from .selections import selection_of

_MEANS = frozenset({"Mean"})
_SUMS = frozenset({"Add", "Sub", "Sum"})


def find_producers(graph: OnnxGraph, norm: Norm) -> list[TargetLayer]:
    """Return the layers that make what `norm` reads: one, or several whose outputs are joined or summed.

    Raises:
        Refusal: why the norm cannot go backward.
    """
    targets: list[TargetLayer] = []
    pending: list[Place] = [(norm.source, Flow.of(norm))]
    steps = 0
    while pending:
        steps = one_step_more(steps)
        before = _before(graph, *pending.pop())
        if isinstance(before, TargetLayer):
            targets.append(before)
        else:
            pending += reversed(before)
    return one_per_layer(targets)


def _before(graph: OnnxGraph, value: str, flow: Flow) -> TargetLayer | list[Place]:
    """Return the layer that makes `value`, or the values that the operation reads which makes it."""
    node = graph.producer(value)
    if node is None:
        what = "an input of the graph" if value in graph.inputs else "no layer's output"
        raise Refusal(RefusalCode.NO_PRODUCER, f"it reads {value!r}, {what}")
    _require_private(graph, value, flow)
    flow = flow.reaching(value)
    if operation(node) in LAYERS:
        return TargetLayer(node, flow)
    if operation(node) == "Concat":
        return _before_concat(graph, node, flow)
    affine_op = read_affine_op(graph, node)
    if affine_op is not None:
        return [(affine_op.source, _absorb(affine_op, flow))]
    if operation(node) in _SUMS | _MEANS:
        return _before_sum(graph, node, flow)
    selection = selection_of(graph, node, value)
    if selection is not None:
        return [(selection.source, flow.before(selection))]
    return [(str(node.input[0]), flow.across(graph, node, backward=True))]


def _absorb(op: AffineOp, flow: Flow) -> Flow:
    """Return the flow with an affine on the way composed into it, when both run over the same axis."""
    both = composed(op.affine, op.axes, flow.affine, flow.axes)
    if both is None:
        raise Refusal(RefusalCode.AXIS, f"{op.node.op_type} {op.node.name!r} before it runs over another axis")
    return replace(flow, affine=both[0], axes=both[1], absorbed=(*flow.absorbed, op))


def _before_concat(graph: OnnxGraph, node: NodeProto, flow: Flow) -> list[Place]:
    """Each input takes its own slice of the channels, or all of them when another axis is joined."""
    shapes = [graph.shape(name) for name in node.input]
    parts = [flow.affine] * len(shapes)
    if flow.axis is not None and axis_of_node(graph, node) == flow.axis:
        parts = _slices(node, [None if shape is None else shape[flow.axis] for shape in shapes], flow.affine)
    return [(str(name), replace(flow, affine=part)) for name, part in zip(node.input, parts, strict=True)]


def _slices(node: NodeProto, sizes: list[int | str | None], affine: Affine) -> list[Affine]:
    ends = [0]
    for size in sizes:
        if not isinstance(size, int):
            raise Refusal(RefusalCode.AXIS, f"Concat {node.name!r} joins channels whose number is not known")
        ends.append(ends[-1] + size)
    if ends[-1] != affine.channels:
        raise Refusal(RefusalCode.AXIS, f"Concat {node.name!r} makes {ends[-1]} channels, not {affine.channels}")
    return [affine.take(start, stop) for start, stop in pairwise(ends)]


def _before_sum(graph: OnnxGraph, node: NodeProto, flow: Flow) -> list[Place]:
    """Every summand takes the scale, the first one the shift as well; of a mean every one takes both."""
    if any(read_constant(graph, name) is not None for name in node.input):
        raise Refusal(RefusalCode.AXIS, f"{node.op_type} {node.name!r} adds a constant that differs within a channel")
    shapes = [graph.shape(name) for name in (*node.input, node.output[0])]
    if flow.axis is not None and not _alike(shapes, flow.axis, flow.affine.channels):
        raise Refusal(RefusalCode.AXIS, f"{node.op_type} {node.name!r} adds values of different shapes")
    other = flow if node.op_type in _MEANS else replace(flow, affine=flow.affine.without_shift())
    flows = [flow, *[other] * (len(node.input) - 1)]
    return [(str(name), part) for name, part in zip(node.input, flows, strict=True)]


def _alike(shapes: list[Dims | None], axis: int, channels: int) -> bool:
    """True when all shapes are known, of one rank, with `channels` on `axis`."""
    ranks = {None if shape is None else len(shape) for shape in shapes}
    return None not in ranks and len(ranks) == 1 and all(shape and shape[axis] == channels for shape in shapes)


def _require_private(graph: OnnxGraph, value: str, flow: Flow) -> None:
    """Raise Refusal unless exactly one node reads what changes in `value`, and the caller does not."""
    if value in graph.outputs:
        raise Refusal(RefusalCode.GRAPH_OUTPUT, f"{value!r} is an output of the graph")
    uses = graph.readers(value)
    if len(uses) != 1 and sum(flow.touches(graph, use) for use in uses) != 1:
        raise Refusal(RefusalCode.MULTI_USE, graph.describe_readers(value))
    inside = next((use.node for use in uses if use.index < 0), None)
    if inside is not None:
        raise Refusal(RefusalCode.SUBGRAPH, f"{value!r} is read inside the body of {inside.op_type}")
