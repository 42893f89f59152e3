"""Takes one norm out of an ONNX graph: into the layers before it, else into those behind it, else a refusal.

Sixth in the ONNX flow, between `parameters`, which works out the new weights, and `scopes`, which asks for one
norm after another. Everything is worked out before anything is written, so that a refusal leaves no trace.
"""

from dataclasses import dataclass, field

from onnx import NodeProto

from ..refusals import Refusal, RefusalCode
from ..report import Site
from .consumers import find_consumers
from .graph import OnnxGraph
from .norms import Norm
from .parameters import Change, apply, change_consumer, change_producer
from .producers import TargetLayer, find_producers
from .proof import Segment

WEAK = {RefusalCode.NO_PRODUCER, RefusalCode.ACTIVATION_BETWEEN, RefusalCode.UNKNOWN_OP}
_AT_A_LAYER = {RefusalCode.PAD, RefusalCode.QUANTISED, RefusalCode.OVERRIDABLE, RefusalCode.OVERFLOW}


@dataclass
class Fold:
    """One norm that was folded: what the report says of it, and which stretches of the graph prove it."""

    norm: Norm
    site: Site
    segments: list[Segment]
    batch_norms: list[NodeProto] = field(default_factory=list)


def fold_norm(graph: OnnxGraph, norm: Norm, *, exact_padding: bool) -> Fold | Refusal:
    """Fold `norm` backward, else forward; return the refusal that says most when neither is possible.

    Args:
        graph: is edited when the norm is folded.
        norm: what `find_norms` found in it.
        exact_padding: allow a correction at the border of a zero-padded Conv behind the norm.
    """
    try:
        return _fold_into_producers(graph, norm)
    except Refusal as refusal:
        behind = refusal
    if not norm.centres:
        return behind
    try:
        return _fold_into_consumers(graph, norm, exact_padding)
    except Refusal as refusal:
        ahead = refusal
    is_first = graph.producer(norm.source) is None and ahead.code is not RefusalCode.GRAPH_OUTPUT
    return ahead if is_first or (behind.code in WEAK and ahead.code in _AT_A_LAYER) else behind


def label(node: NodeProto) -> str:
    """Return what the report calls a node: its name, else that of its first output."""
    return str(node.name or node.output[0])


def _fold_into_producers(graph: OnnxGraph, norm: Norm) -> Fold:
    targets = find_producers(graph, norm)
    changes = [change_producer(graph, target) for target in targets]
    inputs = [_data_input(change) for change in changes]
    changed = {name for target in targets for node in (target.layer, *target.way) for name in node.output}
    notes = tuple(note for change in changes for note in apply(graph, change))
    for target in targets:
        for step in reversed(target.absorbed):
            _bypass(graph, step.source, [step.node])
    source, result = norm.source, norm.result
    _bypass(graph, source, norm.nodes)
    segment = Segment(result, tuple(dict.fromkeys(inputs)), frozenset(changed | {source}))
    return Fold(norm, _site(norm, targets, changes, notes), [segment], norm.batch_norms)


def _bypass(graph: OnnxGraph, source: str, nodes: list[NodeProto]) -> None:
    """Remove a run of nodes that reads `source`, and let what makes `source` make the run's result instead."""
    producer, result = graph.producer(source), str(nodes[-1].output[0])
    assert producer is not None
    graph.remove(nodes)
    graph.rename_output(producer, source, result)
    for name in (source, *(str(node.output[0]) for node in nodes[:-1])):
        for use in graph.uses(name):  # of its shape, which is that of the result
            graph.set_input(use.node, use.index, result)


def _fold_into_consumers(graph: OnnxGraph, norm: Norm, exact_padding: bool) -> Fold:
    targets = find_consumers(graph, norm)
    changes = [change_consumer(graph, target, exact_padding=exact_padding) for target in targets]
    changed = frozenset({norm.result, *(name for one in targets for node in one.way for name in node.output)})
    segments = [_segment_to(graph, norm, target, changed) for target in targets]
    notes = tuple(note for change in changes for note in apply(graph, change))
    for use in graph.uses(norm.result):
        graph.set_input(use.node, use.index, norm.source)
    graph.remove(norm.nodes)
    return Fold(norm, _site(norm, targets, changes, notes, is_ahead=True), segments, norm.batch_norms)


def _segment_to(graph: OnnxGraph, norm: Norm, target: TargetLayer, changed: frozenset[str]) -> Segment:
    """Return the stretch from the norm's input, and whatever a Concat joins to it, to the layer's output."""
    joined = [name for node in target.way if node.op_type == "Concat" for name in node.input]
    others = [name for name in joined if name not in changed and graph.producer(name) is not None]
    return Segment(str(target.layer.output[0]), tuple(dict.fromkeys((norm.source, *others))), changed)


def _data_input(change: Change) -> str:
    """Return what the layer reads besides its weights."""
    return str(change.layer.input[1 - change.weight_at])


def _site(
    norm: Norm, targets: list[TargetLayer], changes: list[Change], notes: tuple[str, ...], *, is_ahead: bool = False
) -> Site:
    first = norm.nodes[0]
    affine = norm.affine
    return Site(
        path=label(first),
        node=label(first),
        kind="batch_norm" if norm.batch_norms else "affine chain",
        reason=f"folded into the layer {'after' if is_ahead else 'before'} it",
        into=tuple(label(target.layer) for target in targets),
        channels=affine.channels,
        scale_range=(float(affine.scale.min()), float(affine.scale.max())),
        dead_channels=int((affine.scale == 0).sum()),
        max_ulp=max(change.ulp for change in changes),
        cancellation=max(change.cancellation for change in changes),
        notes=notes,
    )
