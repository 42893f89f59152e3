"""The ONNX front end: `fold_onnx` takes the norms out of a model, proves the result, and reports every one of them.

Last but one in the ONNX flow: it reads norms, finds their layers, writes the changes, and hands both models to
`onnx_proof`. It reads and writes no files; `cli` does.
"""

from dataclasses import dataclass, field, replace

import onnx
from onnx import NodeProto

from training.errors import FoldError
from training.fold.core import Affine
from training.fold.onnx_graph import OnnxGraph
from training.fold.onnx_layers import Change, apply, change_ahead, change_behind
from training.fold.onnx_norms import Norm, find_norms
from training.fold.onnx_paths import Landing, landing_ahead, landings_behind
from training.fold.onnx_proof import Segment, prove_onnx
from training.fold.onnx_types import subgraphs, with_output_shapes
from training.fold.refusals import Refusal, RefusalCode
from training.fold.report import Report, Site

_WEAK = {RefusalCode.NO_PRODUCER, RefusalCode.ACTIVATION_BETWEEN, RefusalCode.UNKNOWN_OP}
_AT_A_LAYER = {RefusalCode.PAD, RefusalCode.QUANTISED, RefusalCode.OVERRIDABLE, RefusalCode.OVERFLOW}


@dataclass(frozen=True)
class FoldedOnnx:
    """What `fold_onnx` returns.

    Attributes:
        model: the folded model, which passes ONNX's full check; a new object.
        report: every norm, folded or refused, and the proof.
    """

    model: onnx.ModelProto
    report: Report


@dataclass
class _Fold:
    """One norm that was folded: what the report says of it, and which stretch of the graph proves it."""

    norm: Norm
    site: Site
    segment: Segment
    batch_norms: list[NodeProto] = field(default_factory=list)


def fold_onnx(model: onnx.ModelProto, *, strict: bool = False) -> FoldedOnnx:
    """Return `model` without the norms that its weights can take exactly.

    Folds BatchNormalization (opset 7 to 24) and the elementwise form of hand-written norms into the Conv,
    ConvTranspose, Gemm or MatMul before them, or behind them where no padding stands in the way. The algebra is
    float64 with one rounding to each parameter's dtype; eps is the attribute's float32 value.

    Args:
        model: weights in memory; left as it is.
        strict: raise when any norm had to stay.

    Returns:
        The folded model and the report. There is always a proof: see `onnx_proof`.

    Raises:
        FoldError: the model is no valid ONNX, strict and a norm stays, or the proof failed.
    """
    model = with_output_shapes(model)
    check(model, "the model", full=False)
    graph = OnnxGraph(model)
    folds: list[_Fold] = []
    refused: list[Site] = []
    progress = True
    while progress:  # a norm folded forward may clear the way for the one before it
        progress, refused = False, []
        for node, norm in find_norms(graph):
            outcome = norm if isinstance(norm, Refusal) else _fold_one(graph, norm)
            if isinstance(outcome, _Fold):
                folds.append(outcome)
                progress = True
            elif not isinstance(norm, Norm) or _is_reported(norm, outcome):
                refused += _refused_sites(node, norm, outcome)
    refused += _inside_bodies(graph, model)
    folded_model = graph.finish()
    if not folds:
        report = Report((), tuple(refused), form="onnx")
    else:
        check(folded_model, "the folded model")
        errors, proof = prove_onnx(model, folded_model, graph.exact, [fold.segment for fold in folds])
        sites = [replace(f.site, proof_error=error) for f, error in zip(folds, errors, strict=True)]
        spread = [site for f, site in zip(folds, sites, strict=True) for site in _per_batch_norm(f, site)]
        order = {_label(node): i for i, node in enumerate(model.graph.node)}
        spread.sort(key=lambda site: order.get(site.node, len(order)))
        report = Report(tuple(spread), tuple(refused), form="onnx", proof=proof)
    if strict:
        report.require_all_folded()
    return FoldedOnnx(folded_model, report)


def explain_onnx(model: onnx.ModelProto) -> Report:
    """Return the report that `fold_onnx` would give, with its proof; `model` is left as it is."""
    return fold_onnx(model).report


def check(model: onnx.ModelProto, what: str, *, full: bool = True) -> None:
    """Run ONNX's check, with the types and shapes of every node when `full`.

    Raises:
        FoldError: naming what ONNX found.
    """
    try:
        onnx.checker.check_model(model, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as err:
        first = next((line for line in str(err).splitlines() if line.strip()), type(err).__name__)
        raise FoldError(f"{what} is not valid ONNX: {first.strip()}; expected one that passes onnx.checker") from err


def _fold_one(graph: OnnxGraph, norm: Norm) -> _Fold | Refusal:
    """Fold `norm` backward, else forward; return the refusal that says most when neither is possible."""
    try:
        return _fold_behind(graph, norm)
    except Refusal as refusal:
        behind = refusal
    if not norm.centres:
        return behind
    try:
        return _fold_ahead(graph, norm)
    except Refusal as refusal:
        ahead = refusal
    is_first = graph.producer(norm.source) is None and ahead.code is not RefusalCode.GRAPH_OUTPUT
    return ahead if is_first or (behind.code in _WEAK and ahead.code in _AT_A_LAYER) else behind


def _fold_behind(graph: OnnxGraph, norm: Norm) -> _Fold:
    landings = landings_behind(graph, norm)
    changes = [change_behind(graph, landing) for landing in landings]
    inputs = [_data_input(change) for change in changes]
    changed = {name for landing in landings for node in (landing.layer, *landing.way) for name in node.output}
    notes = tuple(note for change in changes for note in apply(graph, change))
    for landing in landings:
        for step in reversed(landing.absorbed):
            _bypass(graph, step.source, [step.node])
    source, result = norm.source, norm.result
    _bypass(graph, source, norm.nodes)
    segment = Segment(result, tuple(dict.fromkeys(inputs)), frozenset(changed | {source}))
    return _Fold(norm, _site(norm, landings, changes, notes), segment, norm.batch_norms)


def _bypass(graph: OnnxGraph, source: str, nodes: list[NodeProto]) -> None:
    """Remove a run of nodes that reads `source`, and let what makes `source` make the run's result instead."""
    producer = graph.producer(source)
    assert producer is not None
    graph.remove(nodes)
    graph.rename_output(producer, source, str(nodes[-1].output[0]))


def _fold_ahead(graph: OnnxGraph, norm: Norm) -> _Fold:
    landing = landing_ahead(graph, norm)
    change = change_ahead(graph, landing)
    first = graph.uses(norm.result)[0]
    result = str(landing.layer.output[0])
    changed = frozenset({norm.result, *(name for node in landing.way for name in node.output)})
    notes = apply(graph, change)
    graph.set_input(first.node, first.index, norm.source)
    graph.remove(norm.nodes)
    segment = Segment(result, (norm.source,), changed)
    return _Fold(norm, _site(norm, [landing], [change], notes, is_ahead=True), segment, norm.batch_norms)


def _data_input(change: Change) -> str:
    """Return what the layer reads besides its weights."""
    return str(change.layer.input[1 - change.weight_at])


def _site(
    norm: Norm, landings: list[Landing], changes: list[Change], notes: tuple[str, ...], *, is_ahead: bool = False
) -> Site:
    first = norm.nodes[0]
    affine: Affine = norm.affine
    return Site(
        path=_label(first),
        node=_label(first),
        kind="batch_norm" if norm.batch_norms else "affine chain",
        reason=f"folded into the layer {'after' if is_ahead else 'before'} it",
        into=tuple(_label(landing.layer) for landing in landings),
        channels=affine.channels,
        scale_range=(float(affine.scale.min()), float(affine.scale.max())),
        dead_channels=int((affine.scale == 0).sum()),
        max_ulp=max(change.ulp for change in changes),
        cancellation=max(change.cancellation for change in changes),
        notes=notes,
    )


def _per_batch_norm(fold: _Fold, site: Site) -> list[Site]:
    """Return one site for each BatchNormalization of a run, the run itself when it has none."""
    nodes = fold.batch_norms or fold.norm.nodes[:1]
    return [replace(site, path=_label(node), node=_label(node)) for node in nodes]


def _refused_sites(node: NodeProto, norm: Norm | Refusal, refusal: object) -> list[Site]:
    assert isinstance(refusal, Refusal)
    if isinstance(norm, Refusal) or not norm.batch_norms:
        kind = "batch_norm" if isinstance(norm, Refusal) else "affine chain"
        return [Site.refused(_label(node), _label(node), kind, refusal)]
    channels = norm.affine.channels
    return [Site.refused(_label(n), _label(n), "batch_norm", refusal, channels) for n in norm.batch_norms]


def _is_reported(norm: Norm, refusal: object) -> bool:
    """A scale and a shift after no layer, such as the end of a LayerNorm, is no norm that anybody would miss."""
    return norm.centres or not (isinstance(refusal, Refusal) and refusal.code in _WEAK)


def _inside_bodies(graph: OnnxGraph, model: onnx.ModelProto) -> list[Site]:
    """Return a refusal for each BatchNormalization in the body of an If, Loop, Scan or local function."""
    found = [node for outer in graph.nodes for body in subgraphs(outer) for node in _batch_norms_within(body)]
    found += [node for function in model.functions for node in function.node if node.op_type == "BatchNormalization"]
    refusal = Refusal(RefusalCode.SUBGRAPH, "it stands in the body of an If, Loop, Scan or local function")
    return [Site.refused(_label(node), _label(node), "batch_norm", refusal) for node in found]


def _batch_norms_within(body: onnx.GraphProto) -> list[NodeProto]:
    own = [node for node in body.node if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx")]
    return own + [n for node in body.node for inner in subgraphs(node) for n in _batch_norms_within(inner)]


def _label(node: NodeProto) -> str:
    return str(node.name or node.output[0])
