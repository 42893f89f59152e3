"""Folds every norm of a graph, then those in the bodies of its If, Loop and Scan nodes, each with its own proof.

Seventh in the ONNX flow: `api` hands it the whole model. A body is lifted out as a model of its own (`bodies`), folded
and proved as such, and put back; a norm whose layer stands in another scope stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx
from onnx import NodeProto

from ...errors import FoldError
from ..failures import during
from ..refusals import Refusal, RefusalCode
from ..report import Proof, Site
from .bodies import lift, lower
from .functions import refused_within
from .graph import OnnxGraph
from .model_proof import prove_onnx
from .norms import Norm, ends_a_normalisation, find_norms
from .probe import Shapes
from .protos import check_folded, label, subgraphs
from .rewrite import WEAK, FoldedNorm, fold_norm


@dataclass
class Outcome:
    """What became of the norms of one scope.

    Attributes:
        folds: those of the graph itself, still to be proved.
        refused: those that stay, in bodies as well.
        proved: sites of norms that were folded inside bodies.
    """

    folds: list[FoldedNorm] = field(default_factory=list)
    refused: list[Site] = field(default_factory=list)
    proved: list[Site] = field(default_factory=list)


@dataclass(frozen=True)
class FoldedGraph:
    """A graph whose norms are folded and proved.

    Attributes:
        graph: finished when something was folded.
        model: the folded model.
        folded: one site for each norm that is gone.
        refused: one for each that stays.
        proof: of the whole; None when nothing of the graph itself was folded.
    """

    graph: OnnxGraph
    model: onnx.ModelProto
    folded: list[Site]
    refused: list[Site]
    proof: Proof | None


def fold_graph(
    model: onnx.ModelProto, *, exact_padding: bool, shapes: Shapes | None = None, names: set[str] | None = None
) -> FoldedGraph:
    """Fold what can be folded and proved in the main graph of `model` and in the bodies that it holds.

    A norm whose fold is not proved stays, with the reason, and the others are folded anew without it.

    Args:
        model: stays as it is.
        exact_padding: allow corrections at the borders of padded convolutions, once nothing else can be folded.
        shapes: see `prove_onnx`.
        names: those that are taken, shared with the graph that `model` was lifted from.

    Raises:
        FoldError: the folded model is not valid, or does not compute what `model` computes.
    """
    withheld: dict[str, Refusal] = {}
    while True:
        result = _folded_without(model, withheld, exact_padding, shapes, names)
        if isinstance(result, FoldedGraph):
            return result
        withheld |= result


def _folded_without(
    model: onnx.ModelProto,
    withheld: Mapping[str, Refusal],
    exact_padding: bool,
    shapes: Shapes | None,
    names: set[str] | None,
) -> FoldedGraph | dict[str, Refusal]:
    """Return the graph folded without the norms that are withheld, or which others are not proved, and why."""
    graph = OnnxGraph(model, names)
    outcome = _fold_scope(graph, withheld, exact_padding=exact_padding)
    folded = graph.finish()
    if not outcome.folds and not outcome.proved:
        return FoldedGraph(graph, folded, [], outcome.refused, None)
    check_folded(folded, model)
    verdicts, proof = prove_onnx(model, folded, graph.exact, [fold.segments for fold in outcome.folds], shapes)
    results = list(zip(outcome.folds, verdicts, strict=True))
    if any(isinstance(verdict, Refusal) for verdict in verdicts):
        return {s.node: v for fold, v in results if isinstance(v, Refusal) for s in fold.sites()}
    sites = [site for fold, error in results if isinstance(error, float) for site in fold.sites(error)]
    return FoldedGraph(graph, folded, [*sites, *outcome.proved], outcome.refused, proof)


def _fold_scope(graph: OnnxGraph, withheld: Mapping[str, Refusal], *, exact_padding: bool) -> Outcome:
    outcome = Outcome()
    for allowed in (False, True) if exact_padding else (False,):
        _fold_until_nothing_moves(graph, outcome, withheld, allowed)
    for node in list(graph.nodes):
        for body in subgraphs(node):
            if _has_arithmetic(body):
                _fold_body(graph, body, outcome, exact_padding=exact_padding)
    return outcome


def _fold_until_nothing_moves(
    graph: OnnxGraph, outcome: Outcome, withheld: Mapping[str, Refusal], exact_padding: bool
) -> None:
    """Go over the norms until none folds any more: one folded forward may clear the way for the one before it."""
    progress = True
    while progress:
        progress, outcome.refused = False, []
        for node, norm in find_norms(graph):
            result = norm if isinstance(norm, Refusal) else _withheld(norm, withheld)
            if isinstance(norm, Norm) and result is None:
                with during(f"folding {label(node)!r}"):
                    result = fold_norm(graph, norm, exact_padding=exact_padding)
            if isinstance(result, FoldedNorm):
                outcome.folds.append(result)
                progress = True
            elif result is not None:
                outcome.refused += _refused_sites(graph, node, norm, result)


def _fold_body(graph: OnnxGraph, body: onnx.GraphProto, outer: Outcome, *, exact_padding: bool) -> None:
    """Fold inside one body, as far as it can be proved there; add what became of it to `outer`."""
    lifted = lift(graph, body)
    try:
        inner = fold_graph(lifted, exact_padding=exact_padding, names=graph.names)
    except FoldError as err:
        why = Refusal(RefusalCode.SUBGRAPH, f"it stands in a body that cannot be proved by itself: {err}")
        view = OnnxGraph(lifted, graph.names)
        outer.refused += [s for node, norm in find_norms(view) for s in _refused_sites(view, node, norm, why)]
        return
    outer.refused += [refused_within("the body of an If, Loop or Scan", site) for site in inner.refused]
    if inner.folded:
        lower(graph, body, inner.graph)
        outer.proved += inner.folded


def _has_arithmetic(body: onnx.GraphProto) -> bool:
    """True when a norm may be in the body, or in one inside it."""
    operations = {"BatchNormalization", "Sub", "Div", "Mul", "Add"}
    return any(node.op_type in operations or any(map(_has_arithmetic, subgraphs(node))) for node in body.node)


def _withheld(norm: Norm, withheld: Mapping[str, Refusal]) -> Refusal | FoldedNorm | None:
    return next((withheld[label(node)] for node in norm.reported_nodes if label(node) in withheld), None)


def _refused_sites(graph: OnnxGraph, node: NodeProto, norm: Norm | Refusal, refusal: Refusal) -> list[Site]:
    if isinstance(norm, Refusal):
        kind = "batch_norm" if node.op_type == "BatchNormalization" else "affine chain"
        return [Site.refused(label(node), label(node), kind, refusal)]
    if not _is_reported(graph, norm, refusal):
        return []
    channels = norm.affine.channels if norm.batch_norms else 0
    return [Site.refused(label(node), label(node), norm.kind, refusal, channels) for node in norm.reported_nodes]


def _is_reported(graph: OnnxGraph, norm: Norm, refusal: Refusal) -> bool:
    """A scale and a shift that end another normalisation are no norm; nor is reckoning with sizes."""
    shape = graph.shape(norm.source)
    if not norm.batch_norms and shape is not None and len(shape) < 2:
        return False
    ends_a_layer_norm = shape is not None and norm.axes == (len(shape) - 1,) and refusal.code in WEAK
    return norm.centres or not (ends_a_layer_norm or ends_a_normalisation(graph, norm))
