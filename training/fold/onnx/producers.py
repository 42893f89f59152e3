"""Finds the layers before a norm whose weights can take it: backward from its input to what makes that.

Fourth in the ONNX flow, after `norms`; `consumers` looks forward. No value on the way may have another reader
or be an output of the graph, and each operation must let the affine pass (`passing`, `axes`). The arithmetic
is `parameters`' task.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

from onnx import NodeProto

from ..core import Affine
from ..refusals import Refusal, RefusalCode
from .axes import SHAPE_OPERATIONS, across_reshape, across_transpose
from .constants import read_constant
from .graph import OnnxGraph
from .norms import AffineOp, Norm, read_affine_op
from .passing import require_passing
from .protos import attributes

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SUMS = frozenset({"Add", "Sub", "Sum"})


@dataclass(frozen=True)
class TargetLayer:
    """A layer and the affine that its weights have to take.

    Attributes:
        layer: Conv, ConvTranspose, Gemm or MatMul.
        affine: as the layer's output (backward) or data input (forward) needs it; one channel when it is a scalar.
        axis: channel axis of that output or input, None for a scalar.
        way: the nodes between norm and layer, the layer left out.
        absorbed: those of them that are affine themselves, nearest to the norm first; they go with the norm.
        data: forward, which input of the layer carries the data.
    """

    layer: NodeProto
    affine: Affine
    axis: int | None
    way: tuple[NodeProto, ...] = ()
    absorbed: tuple[AffineOp, ...] = ()
    data: int = 0


def find_producers(graph: OnnxGraph, norm: Norm) -> list[TargetLayer]:
    """Return the layers that make what `norm` reads: one, or several whose outputs are joined or summed.

    Raises:
        Refusal: why the norm cannot go backward.
    """
    return _behind(graph, norm.source, _Moving(norm.affine, axis_of(norm)))


@dataclass(frozen=True)
class _Moving:
    """What is carried backward: the affine, its axis, and the nodes that it has passed or taken in."""

    affine: Affine
    axis: int | None
    way: tuple[NodeProto, ...] = ()
    absorbed: tuple[AffineOp, ...] = ()

    def past(self, node: NodeProto, affine: Affine, axis: int | None) -> "_Moving":
        return replace(self, affine=affine, axis=axis, way=(node, *self.way))


def _behind(graph: OnnxGraph, value: str, load: _Moving) -> list[TargetLayer]:
    node = graph.producer(value)
    if node is None:
        what = "an input of the graph" if value in graph.inputs else "no layer's output"
        raise Refusal(RefusalCode.NO_PRODUCER, f"it reads {value!r}, {what}")
    _require_private(graph, value)
    if node.domain in ("", "ai.onnx"):
        if node.op_type in LAYERS:
            return [TargetLayer(node, load.affine, load.axis, load.way, load.absorbed)]
        if node.op_type == "Concat":
            return _behind_concat(graph, node, load)
        step = read_affine_op(graph, node)
        if step is not None:
            return _behind(graph, step.source, _absorb(step, load))
        if node.op_type in _SUMS:
            return _behind_sum(graph, node, load)
    affine, axis = across(graph, node, load.affine, load.axis, backward=True)
    return _behind(graph, str(node.input[0]), load.past(node, affine, axis))


def _absorb(step: AffineOp, load: _Moving) -> _Moving:
    """Return the load with an affine on the way composed into it, when both run over the same axis."""
    channels = max(step.affine.channels, load.affine.channels)
    fits = not {step.affine.channels, load.affine.channels} - {1, channels}
    if not fits or (None not in (step.axis, load.axis) and step.axis != load.axis):
        raise Refusal(RefusalCode.AXIS, f"{step.node.op_type} {step.node.name!r} before it runs over another axis")
    affine = step.affine.spread(channels).then(load.affine.spread(channels))
    past = load.past(step.node, affine, step.axis if load.axis is None else load.axis)
    return replace(past, absorbed=(*load.absorbed, step))


def across(
    graph: OnnxGraph, node: NodeProto, affine: Affine, axis: int | None, *, backward: bool
) -> tuple[Affine, int | None]:
    """Return affine and axis on the other side of `node`.

    Raises:
        Refusal: the affine does not pass, or its axis cannot be followed.
    """
    is_ours = node.domain in ("", "ai.onnx")
    if is_ours and (node.op_type == "Transpose" or node.op_type in SHAPE_OPERATIONS):
        if axis is None:
            return affine, None
        if node.op_type in SHAPE_OPERATIONS:
            return across_reshape(graph, node, affine, axis, backward=backward)
        shape = graph.shape(str(node.input[0])) or graph.shape(str(node.output[0]))
        if shape is None:
            raise Refusal(RefusalCode.AXIS, f"Transpose {node.name!r}: the rank of its input is not known")
        return affine, across_transpose(node, len(shape), axis, backward=backward)
    require_passing(graph, node, affine, axis)
    return affine, axis


def _behind_concat(graph: OnnxGraph, node: NodeProto, load: _Moving) -> list[TargetLayer]:
    """Each input takes its own slice of the channels, or all of them when another axis is joined."""
    shapes = [graph.shape(name) for name in node.input]
    rank = next((len(shape) for shape in shapes if shape is not None), 0)
    parts = [load.affine] * len(shapes)
    if load.axis is not None:
        if rank == 0:
            raise Refusal(RefusalCode.AXIS, f"Concat {node.name!r} joins values of unknown rank")
        if int(attributes(node)["axis"]) % rank == load.axis:
            parts = _slices(node, [None if shape is None else shape[load.axis] for shape in shapes], load.affine)
    return [
        target
        for name, part in zip(node.input, parts, strict=True)
        for target in _behind(graph, str(name), load.past(node, part, load.axis))
    ]


def _slices(node: NodeProto, sizes: list[int | str | None], affine: Affine) -> list[Affine]:
    ends = [0]
    for size in sizes:
        if not isinstance(size, int):
            raise Refusal(RefusalCode.AXIS, f"Concat {node.name!r} joins channels whose number is not known")
        ends.append(ends[-1] + size)
    if ends[-1] != affine.channels:
        raise Refusal(RefusalCode.AXIS, f"Concat {node.name!r} makes {ends[-1]} channels, not {affine.channels}")
    return [affine.take(start, stop) for start, stop in pairwise(ends)]


def _behind_sum(graph: OnnxGraph, node: NodeProto, load: _Moving) -> list[TargetLayer]:
    """Every summand takes the scale, the first one the shift as well."""
    if any(read_constant(graph, name) is not None for name in node.input):
        raise Refusal(RefusalCode.AXIS, f"{node.op_type} {node.name!r} adds a constant that differs within a channel")
    axis, affine = load.axis, load.affine
    if axis is not None:
        shapes = [graph.shape(name) for name in (*node.input, node.output[0])]
        if any(s is None or len(s) != len(shapes[-1] or ()) or s[axis] != affine.channels for s in shapes):
            raise Refusal(RefusalCode.AXIS, f"{node.op_type} {node.name!r} adds values of different shapes")
    targets = _behind(graph, str(node.input[0]), load.past(node, affine, axis))
    for name in node.input[1:]:
        targets += _behind(graph, str(name), load.past(node, affine.without_shift(), axis))
    return targets


def _require_private(graph: OnnxGraph, value: str) -> None:
    """Raise Refusal unless exactly one node reads `value` and the caller does not."""
    if value in graph.outputs:
        raise Refusal(RefusalCode.GRAPH_OUTPUT, f"{value!r} is an output of the graph")
    uses = graph.readers(value)
    if len(uses) != 1:
        readers = ", ".join(sorted({use.node.name or use.node.op_type for use in uses})) or "nobody"
        raise Refusal(RefusalCode.MULTI_USE, f"{value!r} has {len(uses)} readers: {readers}")
    if uses[0].index < 0:
        raise Refusal(RefusalCode.SUBGRAPH, f"{value!r} is read inside the body of {uses[0].node.op_type}")


def axis_of(norm: Norm) -> int | None:
    """Return the norm's axis, or None when one scalar serves every element."""
    return None if norm.affine.channels == 1 else norm.axis
