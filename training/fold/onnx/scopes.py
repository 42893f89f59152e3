"""Folds every norm of a graph, then those in the bodies of its If, Loop and Scan nodes, each with its own proof.

Seventh in the ONNX flow: `api` hands it the main graph. A body is lifted out as a model of its own (`bodies`), folded
and proved as such, and put back; a norm whose layer stands in another scope stays.
"""

from dataclasses import dataclass, field

import onnx

from ...errors import FoldError
from ..refusals import Refusal, RefusalCode
from ..report import Site
from .bodies import lift, lower
from .functions import refused_within
from .graph import OnnxGraph
from .norms import Norm, ends_a_normalisation, find_norms
from .proof import prove_onnx
from .protos import check, label, subgraphs
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

    def sites(self, errors: list[float]) -> list[Site]:
        """Return one site for each folded norm, `errors` being those of `folds`."""
        own = [site for fold, error in zip(self.folds, errors, strict=True) for site in fold.sites(error)]
        return [*own, *self.proved]


def fold_scope(graph: OnnxGraph, *, exact_padding: bool) -> Outcome:
    """Fold what can be folded in `graph` and in the bodies that it holds.

    Args:
        graph: is edited.
        exact_padding: allow corrections at the borders of padded convolutions, once nothing else can be folded.
    """
    outcome = Outcome()
    for allowed in (False, True) if exact_padding else (False,):
        _fold_until_nothing_moves(graph, outcome, allowed)
    for node in list(graph.nodes):
        for body in subgraphs(node):
            if _has_arithmetic(body):
                _fold_body(graph, body, outcome, exact_padding=exact_padding)
    return outcome


def _fold_until_nothing_moves(graph: OnnxGraph, outcome: Outcome, exact_padding: bool) -> None:
    """Go over the norms until none folds any more: one folded forward may clear the way for the one before it."""
    progress = True
    while progress:
        progress, outcome.refused = False, []
        for node, norm in find_norms(graph):
            result = norm if isinstance(norm, Refusal) else fold_norm(graph, norm, exact_padding=exact_padding)
            if isinstance(result, FoldedNorm):
                outcome.folds.append(result)
                progress = True
            elif isinstance(norm, Refusal):
                kind = "batch_norm" if node.op_type == "BatchNormalization" else "affine chain"
                outcome.refused.append(Site.refused(label(node), label(node), kind, norm))
            elif _is_reported(graph, norm, result):
                outcome.refused += _refused_sites(norm, result)


def _fold_body(graph: OnnxGraph, body: onnx.GraphProto, outer: Outcome, *, exact_padding: bool) -> None:
    """Fold inside one body, if it can be proved there; add what became of it to `outer`."""
    lifted = lift(graph, body)
    inner = OnnxGraph(lifted, graph.names)
    outcome = fold_scope(inner, exact_padding=exact_padding)
    outer.refused += [refused_within("the body of an If, Loop or Scan", site) for site in outcome.refused]
    if not outcome.folds and not outcome.proved:
        return
    try:
        folded = inner.finish()
        check(folded, "the folded body")
        errors, _ = prove_onnx(lifted, folded, inner.exact, [fold.segments for fold in outcome.folds])
    except FoldError as err:
        why = Refusal(RefusalCode.SUBGRAPH, f"it stands in a body that cannot be proved by itself: {err}")
        sites = [site for fold in outcome.folds for site in fold.sites()] + outcome.proved
        outer.refused += [Site.refused(s.path, s.node, s.kind, why, s.channels) for s in sites]
        return
    lower(graph, body, inner)
    outer.proved += outcome.sites(errors)


def _has_arithmetic(body: onnx.GraphProto) -> bool:
    """True when a norm may be in the body, or in one inside it."""
    operations = {"BatchNormalization", "Sub", "Div", "Mul", "Add"}
    return any(node.op_type in operations or any(map(_has_arithmetic, subgraphs(node))) for node in body.node)


def _refused_sites(norm: Norm, refusal: Refusal) -> list[Site]:
    channels = norm.affine.channels if norm.batch_norms else 0
    return [Site.refused(label(node), label(node), norm.kind, refusal, channels) for node in norm.reported_nodes]


def _is_reported(graph: OnnxGraph, norm: Norm, refusal: Refusal) -> bool:
    """A scale and a shift that end another normalisation are no norm; nor is reckoning with sizes."""
    shape = graph.shape(norm.source)
    if not norm.batch_norms and shape is not None and len(shape) < 2:
        return False
    ends_a_layer_norm = shape is not None and norm.axes == (len(shape) - 1,) and refusal.code in WEAK
    return norm.centres or not (ends_a_layer_norm or ends_a_normalisation(graph, norm))
