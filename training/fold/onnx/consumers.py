"""Finds the layers after a norm whose weights can take it: forward from its output to everything that reads that.

The counterpart of `producers`, with the same rules of passing. Every reader has to lead to a layer; a Concat gives the
layer after it an affine that leaves the other inputs' channels alone.
"""

from dataclasses import dataclass, replace

from onnx import NodeProto

from ..core import Affine, concatenate
from ..refusals import Refusal, RefusalCode
from .axes import axis_of_node
from .flow import LAYERS, Flow, Place, TargetLayer, one_per_layer, one_step_more
from .graph import OnnxGraph, Use
from .norms import Norm
from .passing import blocked
from .protos import operation
from .selections import selections_by


def find_consumers(graph: OnnxGraph, norm: Norm) -> list[TargetLayer]:
    """Return the layers that read what `norm` makes, each once.

    Raises:
        Refusal: why the norm cannot go forward.
    """
    targets: list[TargetLayer] = []
    pending = [_Step(norm.result, Flow.of(norm))]
    steps = 0
    while pending:
        steps, step = one_step_more(steps), pending.pop()
        try:
            after = _after(graph, step)
        except Refusal as refusal:
            raise _of_one_reader(graph, step, refusal) from refusal
        if isinstance(after, TargetLayer):
            targets.append(after)
        else:
            pending += reversed(after)
    return one_per_layer(targets)


@dataclass(frozen=True)
class _Step:
    """A value on the way, or one reader of it.

    Attributes:
        at: the one or the other.
        flow: as it is needed there.
        shared: the values on the way that have several readers.
    """

    at: str | Use
    flow: Flow
    shared: tuple[str, ...] = ()


def _of_one_reader(graph: OnnxGraph, step: _Step, refusal: Refusal) -> Refusal:
    """Return the refusal of one of several readers as that of the value that they read."""
    for value in reversed(step.shared):
        reason = f"{graph.describe_readers(value)}; not all of them can take the norm ({refusal.reason})"
        refusal = Refusal(RefusalCode.MULTI_USE, reason)
    return refusal


def _after(graph: OnnxGraph, step: _Step) -> TargetLayer | list[_Step]:
    if isinstance(step.at, str):
        return _readers_of(graph, step.at, step)
    after = _through_reader(graph, step.at, step.flow)
    return after if isinstance(after, TargetLayer) else [_Step(*place, step.shared) for place in after]


def _readers_of(graph: OnnxGraph, value: str, step: _Step) -> list[_Step]:
    if value in graph.outputs:
        raise Refusal(RefusalCode.GRAPH_OUTPUT, f"{value!r} is an output of the graph")
    uses, flow = graph.readers(value), step.flow.reaching(value)
    if not uses:
        raise Refusal(RefusalCode.NO_PRODUCER, f"nothing reads {value!r}")
    shared = (*step.shared, value) if len(uses) > 1 else step.shared
    return [_Step(use, flow, shared) for use in uses]


def _through_reader(graph: OnnxGraph, use: Use, flow: Flow) -> TargetLayer | list[Place]:
    """Return the layer that reads the value, or the values that the operation makes which reads it."""
    node = use.node
    if use.index < 0:
        raise Refusal(RefusalCode.SUBGRAPH, f"it is read inside the body of {node.op_type} {node.name!r}")
    if operation(node) in LAYERS:
        return TargetLayer(node, flow, use.index)
    if operation(node) == "Concat":
        return [(str(node.output[0]), _within_concat(graph, node, use.index, flow))]
    if use.index != 0:
        raise blocked(node)
    selections = selections_by(graph, use)
    if selections:
        return [(part.result, flow.after(part)) for part in selections]
    return [(str(node.output[0]), flow.across(graph, node, backward=False))]


def _within_concat(graph: OnnxGraph, node: NodeProto, index: int, flow: Flow) -> Flow:
    """Return the flow at the whole Concat, identity outside the slice of input `index`."""
    joined = axis_of_node(graph, node)
    if flow.axis not in (None, joined):
        reason = f"Concat {node.name!r} joins along axis {joined}, the norm runs over {flow.axis}"
        raise Refusal(RefusalCode.AXIS, reason)
    parts: list[Affine] = []
    for i, shape in enumerate(graph.shape(name) for name in node.input):
        size = None if shape is None else shape[joined]
        if not isinstance(size, int):
            raise Refusal(RefusalCode.AXIS, f"Concat {node.name!r} joins channels whose number is not known")
        if i == index and flow.affine.channels not in (1, size):
            raise Refusal(RefusalCode.AXIS, f"Concat {node.name!r} reads {size} channels, not {flow.affine.channels}")
        parts.append(flow.affine.spread(size) if i == index else Affine.identity(size))
    return replace(flow, affine=concatenate(parts), axes=(joined,), joined=(*flow.joined, *node.input))
