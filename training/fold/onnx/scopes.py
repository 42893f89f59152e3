"""Folds every norm of a graph, then those in the bodies of its If, Loop and Scan nodes, each with its own proof.

Seventh in the ONNX flow: `api` hands it the main graph. A body is lifted out as a model of its own
(`bodies`), folded and proved as such, and put back; a norm whose layer stands in another scope stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx
from onnx import NodeProto

from ...errors import FoldError
from ..core import Array
from ..refusals import Refusal, RefusalCode
from ..report import Proof, Site
from .axes import SHAPE_OPERATIONS
from .bodies import lift, lower
from .functions import refused_within
from .graph import OnnxGraph
from .norms import Norm, find_norms
from .proof import prove_onnx
from .protos import check, subgraphs
from .rewrite import WEAK, Fold, fold_norm, label

_NORMALISED = frozenset({"InstanceNormalization", "GroupNormalization", "LayerNormalization", "Div", "Mul"})


@dataclass
class Outcome:
    """What became of the norms of one scope.

    Attributes:
        folds: those of the graph itself, still to be proved.
        refused: those that stay, in bodies as well.
        proved: sites of norms that were folded inside bodies.
    """

    folds: list[Fold] = field(default_factory=list)
    refused: list[Site] = field(default_factory=list)
    proved: list[Site] = field(default_factory=list)

    def sites(self, errors: list[list[float]]) -> list[Site]:
        """Return one site for each folded norm, `errors` being those of each fold's segments."""
        own = [
            site
            for fold, found in zip(self.folds, errors, strict=True)
            for site in _per_batch_norm(fold, replace(fold.site, proof_error=max(found)))
        ]
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


def prove_folds(
    original: onnx.ModelProto, folded: onnx.ModelProto, exact: Mapping[str, Array], folds: list[Fold]
) -> tuple[list[list[float]], Proof]:
    """Return the float64 errors of each fold's segments, and the proof of the whole; see `prove_onnx`."""
    errors, proof = prove_onnx(original, folded, exact, [segment for fold in folds for segment in fold.segments])
    left = iter(errors)
    return [[next(left) for _ in fold.segments] for fold in folds], proof


def _fold_until_nothing_moves(graph: OnnxGraph, outcome: Outcome, exact_padding: bool) -> None:
    """Go over the norms until none folds any more: one folded forward may clear the way for the one before it."""
    progress = True
    while progress:
        progress, outcome.refused = False, []
        for node, norm in find_norms(graph):
            result = norm if isinstance(norm, Refusal) else fold_norm(graph, norm, exact_padding=exact_padding)
            if isinstance(result, Fold):
                outcome.folds.append(result)
                progress = True
            elif not isinstance(norm, Norm) or _is_reported(graph, norm, result):
                outcome.refused += _refused_sites(node, norm, result)


def _fold_body(graph: OnnxGraph, body: onnx.GraphProto, outer: Outcome, *, exact_padding: bool) -> None:
    """Fold inside one body, if it can be proved there; add what became of it to `outer`."""
    lifted = lift(graph, body)
    inner = OnnxGraph(lifted, graph.names)
    found = fold_scope(inner, exact_padding=exact_padding)
    refused = [refused_within("the body of an If, Loop or Scan", site) for site in found.refused]
    if not found.folds and not found.proved:
        outer.refused += refused
        return
    try:
        folded = inner.finish()
        check(folded, "the folded body")
        errors, _ = prove_folds(lifted, folded, inner.exact, found.folds)
    except FoldError as err:
        sites = [site for fold in found.folds for site in _per_batch_norm(fold, fold.site)] + found.proved
        why = Refusal(RefusalCode.SUBGRAPH, f"it stands in a body that cannot be proved by itself: {err}")
        outer.refused += [Site.refused(s.path, s.node, s.kind, why, s.channels) for s in sites] + refused
        return
    lower(graph, body, inner)
    outer.proved += found.sites(errors)
    outer.refused += refused


def _has_arithmetic(body: onnx.GraphProto) -> bool:
    """True when a norm may be in the body, or in one inside it."""
    operations = {"BatchNormalization", "Sub", "Div", "Mul", "Add"}
    return any(node.op_type in operations or any(map(_has_arithmetic, subgraphs(node))) for node in body.node)


def _per_batch_norm(fold: Fold, site: Site) -> list[Site]:
    """Return one site for each BatchNormalization of a run, the run itself when it has none."""
    nodes = fold.batch_norms or fold.norm.nodes[:1]
    return [replace(site, path=label(node), node=label(node)) for node in nodes]


def _refused_sites(node: NodeProto, norm: Norm | Refusal, refusal: object) -> list[Site]:
    assert isinstance(refusal, Refusal)
    if isinstance(norm, Refusal) or not norm.batch_norms:
        kind = "batch_norm" if node.op_type == "BatchNormalization" else "affine chain"
        return [Site.refused(label(node), label(node), kind, refusal)]
    channels = norm.affine.channels
    return [Site.refused(label(n), label(n), "batch_norm", refusal, channels) for n in norm.batch_norms]


def _is_reported(graph: OnnxGraph, norm: Norm, refusal: Fold | Refusal) -> bool:
    """A scale and a shift after no layer, such as the end of a GroupNorm, is no norm; nor is reckoning with sizes."""
    shape = graph.shape(norm.source)
    if not norm.batch_norms and shape is not None and len(shape) < 2:
        return False
    is_weak = isinstance(refusal, Refusal) and refusal.code in WEAK
    return norm.centres or (not is_weak and _comes_from(graph, norm.source) not in _NORMALISED)


def _comes_from(graph: OnnxGraph, value: str) -> str:
    """Return the operation that makes `value`, shapes apart."""
    node = graph.producer(value)
    while node is not None and node.op_type in SHAPE_OPERATIONS | {"Transpose"}:
        node = graph.producer(str(node.input[0]))
    return "" if node is None else str(node.op_type)
