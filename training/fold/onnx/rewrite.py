"""Takes one norm out of an ONNX graph: into the layers before it, else into those after it, else a refusal.

Sixth in the ONNX flow, between `parameters`, which works out the new weights, and `scopes`, which goes over all norms.
Everything is worked out before anything is written, so that a refusal leaves no trace.
"""

from dataclasses import dataclass, replace

from onnx import NodeProto

from ..refusals import Refusal, RefusalCode
from ..report import Site
from .consumers import find_consumers
from .flow import TargetLayer
from .graph import OnnxGraph
from .norms import Norm, ends_a_normalisation
from .parameters import Change, apply, change_consumer, change_producer
from .producers import find_producers
from .protos import label
from .site_proof import Segment

WEAK = {RefusalCode.NO_PRODUCER, RefusalCode.ACTIVATION_BETWEEN, RefusalCode.UNKNOWN_OP}
_AT_A_LAYER = {RefusalCode.PAD, RefusalCode.QUANTISED, RefusalCode.OVERRIDABLE, RefusalCode.OVERFLOW}


@dataclass(frozen=True)
class FoldedNorm:
    """A norm that was folded: what the report says of it, and which stretches of the graph prove it."""

    norm: Norm
    site: Site
    segments: list[Segment]

    def sites(self, proof_error: float | None = None) -> list[Site]:
        """Return one site for each node that the report names, with the largest float64 error of the segments."""
        nodes = self.norm.reported_nodes
        return [replace(self.site, path=label(node), node=label(node), proof_error=proof_error) for node in nodes]


def fold_norm(graph: OnnxGraph, norm: Norm, *, exact_padding: bool) -> FoldedNorm | Refusal:
    """Fold `norm` backward, else forward; return the refusal that says most when neither is possible.

    Args:
        graph: is edited when the norm is folded.
        norm: one of `find_norms`.
        exact_padding: allow a correction at the border of a zero-padded Conv after the norm.
    """
    result = _fold_either_way(graph, norm, exact_padding)
    if isinstance(result, Refusal) and result.code is RefusalCode.AXIS and len(norm.axes) > 1:
        reason = f"spatial is 0: every position has statistics of its own; {result.reason}"
        return Refusal(RefusalCode.SPATIAL, reason)
    return result


def _fold_either_way(graph: OnnxGraph, norm: Norm, exact_padding: bool) -> FoldedNorm | Refusal:
    try:
        return _fold_into_producers(graph, norm)
    except Refusal as refusal:
        backward = refusal
    if ends_a_normalisation(graph, norm):
        return backward
    try:
        return _fold_into_consumers(graph, norm, exact_padding)
    except Refusal as refusal:
        forward = refusal
    is_first = graph.producer(norm.source) is None and forward.code is not RefusalCode.GRAPH_OUTPUT
    return forward if is_first or (backward.code in WEAK and forward.code in _AT_A_LAYER) else backward


def _fold_into_producers(graph: OnnxGraph, norm: Norm) -> FoldedNorm:
    targets = find_producers(graph, norm)
    changes = [change_producer(graph, target) for target in targets]
    inputs = dict.fromkeys(str(change.layer.input[1 - change.weight_at]) for change in changes)
    changed = frozenset(name for target in targets for name in target.flow.changed)
    site = _site(graph, norm, changes, "before")
    for op in (op for target in targets for op in reversed(target.flow.absorbed)):
        _bypass(graph, op.source, [op.node])
    _bypass(graph, norm.source, norm.nodes)
    return FoldedNorm(norm, site, [Segment(norm.result, tuple(inputs), changed)])


def _fold_into_consumers(graph: OnnxGraph, norm: Norm, exact_padding: bool) -> FoldedNorm:
    targets = find_consumers(graph, norm)
    changes = [change_consumer(graph, target, exact_padding=exact_padding) for target in targets]
    changed = frozenset(name for target in targets for name in target.flow.changed)
    segments = [_segment_to(graph, norm, target, changed) for target in targets]
    site = _site(graph, norm, changes, "after")
    for use in graph.uses(norm.result):
        graph.set_input(use.node, use.index, norm.source)
    graph.remove(norm.nodes)
    return FoldedNorm(norm, site, segments)


def _bypass(graph: OnnxGraph, source: str, nodes: list[NodeProto]) -> None:
    """Remove a chain of nodes that reads `source`, and let what makes `source` make the chain's result instead."""
    producer, result = graph.producer(source), str(nodes[-1].output[0])
    assert producer is not None
    graph.remove(nodes)
    graph.rename_output(producer, source, result)
    for name in (source, *(str(node.output[0]) for node in nodes[:-1])):
        for use in graph.uses(name):  # of its shape, which is that of the result
            graph.set_input(use.node, use.index, result)


def _segment_to(graph: OnnxGraph, norm: Norm, target: TargetLayer, changed: frozenset[str]) -> Segment:
    """Return the stretch from the norm's input, and whatever a Concat joins to it, to the layer's output."""
    others = [name for name in target.flow.joined if name not in changed and graph.producer(name) is not None]
    result = str(target.layer.output[0])
    while result in graph.added:  # by an earlier fold, before its bias or its border
        result = str(graph.uses(result)[0].node.output[0])
    return Segment(result, tuple(dict.fromkeys((norm.source, *others))), changed)


def _site(graph: OnnxGraph, norm: Norm, changes: list[Change], where: str) -> Site:
    """Write the changes into the graph and return what the report says of the norm."""
    affine, notes = norm.affine, tuple(note for change in changes for note in apply(graph, change))
    return Site(
        path=label(norm.nodes[0]),
        node=label(norm.nodes[0]),
        kind=norm.kind,
        reason=f"folded into the layer {where} it",
        into=tuple(label(change.layer) for change in changes),
        channels=affine.channels,
        scale_range=(float(affine.scale.min()), float(affine.scale.max())),
        dead_channels=int((affine.scale == 0).sum()),
        max_ulp=max(change.ulp for change in changes),
        cancellation=max(change.cancellation for change in changes),
        notes=notes,
    )
