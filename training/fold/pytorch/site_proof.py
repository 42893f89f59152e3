"""The proof of each site by itself: the norm and its layers, cut out of the graph and run on random values.

Part of the proof. Sigmoid, ReLU and argmax hide wrong channels from a comparison of outputs, so every folded norm is
also checked alone: unfolded and folded, both in float64, on values that no earlier layer has squashed. Norms that
share a layer are cut out together. A site that cannot be proved is refused; the others are not concerned.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ...errors import CannotJudge
from ..failures import during
from ..refusals import Refusal, RefusalCode
from ..verdict import ALGEBRA_LIMIT, CAP, DEPLOYED_FACTOR
from .graph import TorchGraph, dtype
from .layers import Layer
from .norms import Norm
from .parameters import Change
from .placement import Placement
from .site_crops import cropped_shapes
from .site_evaluation import Evaluation, SiteGraph, StoredEvaluation

_HALF_ULP = 0.5


def prove_sites(
    graph: TorchGraph, placement: Placement, changes: Iterable[Change]
) -> tuple[dict[Norm, float], dict[Norm, Refusal]]:
    """Return the proof of every folded norm: the largest |difference| / A in float64, A being what an output adds up.

    Returns:
        The error of each norm that is proved, and the refusal of each that is not: its error is above 1e-11, a stored
        parameter is not its float64 value rounded once, or its numbers leave float64.
    """
    changed = {layer.node: (layer, change) for change in changes for layer in change.layers}
    errors: dict[Norm, float] = {}
    refused: dict[Norm, Refusal] = {}
    for part in _site_graphs(graph, placement):
        try:
            with during(f"proving the site of '{part.norms[0].path}'"):
                errors.update(dict.fromkeys(part.norms, _prove(graph, part, changed)))
        except Refusal as refusal:
            refused.update(dict.fromkeys(part.norms, refusal))
    return errors, refused


def prove_stored(graph: TorchGraph, placement: Placement, changes: Iterable[Change]) -> tuple[float, float, float]:
    """Return how far the folded layers are from float64 in their own dtype, each on random values by itself.

    Returns:
        The error that comes nearest to its limit, relative to what an output adds up; that of the unfolded layers
        there; and the limit.

    Raises:
        CannotJudge: one is above its limit.
    """
    changed = {layer.node: (layer, change) for change in changes for layer in change.layers}
    found = [_stored(graph, part, changed) for part in _site_graphs(graph, placement)]
    error, unfolded, limit = max(found, key=lambda one: one[0] / one[2])
    if not error <= limit:
        raise CannotJudge(f"the stored parameters are off by {error:.3g} at a layer, where {limit:.3g} is allowed", "")
    return error, unfolded, limit


def _stored(
    graph: TorchGraph, part: SiteGraph, changed: Mapping[Node, tuple[Layer, Change]]
) -> tuple[float, float, float]:
    shapes = _shapes(part.sources(graph), part.nodes)
    oracle, _, sizes = _both(graph, part, changed, shapes)
    samples = _samples(graph, part, shapes)
    unfolded, folded = (StoredEvaluation(graph, part, which, torch.float32).run(samples) for which in ({}, changed))
    errors = [
        max((_relative(one[0], other[0].double(), size) for one, other, size in zip(oracle, run, sizes, strict=True)))
        for run in (folded, unfolded)
    ]
    roundoff = max(torch.finfo(dtype(node)).eps / 2 for node in part.nodes if node in changed)
    return errors[0], errors[1], min(CAP, DEPLOYED_FACTOR * max(errors[1], roundoff))


def _site_graphs(graph: TorchGraph, placement: Placement) -> list[SiteGraph]:
    """Return the parts of the graph to check, norms that meet in a node being in one part."""
    parts: list[tuple[list[Norm], set[Node]]] = []
    for norm, (layers, passed) in placement.folded.items():
        norms, nodes = [norm], {*norm.nodes, *passed, *(layer.node for layer in layers)}
        nodes |= {a for node in nodes for a in node.all_input_nodes if graph.unexpanded(a) is not None}
        for other in [part for part in parts if part[1] & nodes]:
            parts.remove(other)
            norms, nodes = other[0] + norms, other[1] | nodes
        parts.append((norms, nodes))
    return [SiteGraph(norms, sorted(nodes, key=lambda n: graph.order[n]), placement.parallel) for norms, nodes in parts]


def _prove(graph: TorchGraph, part: SiteGraph, changed: Mapping[Node, tuple[Layer, Change]]) -> float:
    """Return the part's error relative to its magnitude; raise Refusal unjudged when it is above the limit."""
    try:
        unfolded, folded, sizes = _both(graph, part, changed, _shapes(part.sources(graph), part.nodes))
    except RuntimeError:  # something does not fit a smaller sample after all
        unfolded, folded, sizes = _both(graph, part, changed, {})
    pairs = zip(unfolded, folded, sizes, strict=True)
    error = max((_relative(one[0], other[0], size) for one, other, size in pairs), default=0.0)
    if not error <= ALGEBRA_LIMIT:
        raise _unproved(f"in float64 the folded layers are off by {error:.3g} of what they add up")
    ulp = max((changed[node][1].max_ulp for node in part.nodes if node in changed), default=0.0)
    if not ulp <= _HALF_ULP:
        raise _unproved(f"a stored parameter is {ulp:.3g} units in the last place from its float64 value")
    return error


Results = list[tuple[Tensor, Tensor]]


def _both(
    graph: TorchGraph,
    part: SiteGraph,
    changed: Mapping[Node, tuple[Layer, Change]],
    shapes: Mapping[Node, Sequence[int]],
) -> tuple[Results, Results, list[Tensor]]:
    """Return what leaves the part, unfolded and folded, and what both add up, for sources of these shapes."""
    samples = _samples(graph, part, shapes)
    for size_dtype in (torch.float32, torch.float64):  # sums of positive numbers lose nothing in float32, if they fit
        unfolded = Evaluation(graph, part, {}, size_dtype).run(samples)
        folded = Evaluation(graph, part, changed, size_dtype).run(samples)
        sizes = [torch.maximum(one[1], other[1]) for one, other in zip(unfolded, folded, strict=True)]
        if all(bool(torch.isfinite(size).all()) for size in sizes):
            break
    return unfolded, folded, sizes


def _samples(graph: TorchGraph, part: SiteGraph, shapes: Mapping[Node, Sequence[int]]) -> dict[Node, Any]:
    """Return random values of what the part reads, the same each time."""
    generator = torch.Generator().manual_seed(len(part.nodes))
    return {node: _sample(node, shapes.get(node), generator) for node in part.sources(graph)}


def _shapes(sources: Iterable[Node], nodes: Iterable[Node]) -> dict[Node, tuple[int, ...]]:
    """Return the shapes of samples that are large enough to prove the part; see `site_crops`."""
    tensors = [node for node in sources if isinstance(node.meta["val"], Tensor)]
    shapes = [tuple(_hint(size) for size in node.meta["val"].shape) for node in tensors]
    return dict(zip(tensors, cropped_shapes(nodes, shapes), strict=True))


def _unproved(reason: str) -> Refusal:
    return Refusal(RefusalCode.UNJUDGED, f"the fold is not proved: {reason}", "report this model to us")


def _relative(one: Tensor, other: Tensor, size: Tensor) -> float:
    """Return the largest |difference| / size over all elements; NaN when something is not a number."""
    ratio = (one - other).abs_().div_(size.double().clamp(min=1e-300))
    return float(ratio.max()) if ratio.numel() else 0.0


def _sample(node: Node, sizes: Sequence[int] | None, generator: torch.Generator) -> Any:
    """Return random values of these sizes, else of the node's sample shape; its sample number when it is a size."""
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return _hint(value)
    sizes = sizes or [_hint(size) for size in value.shape]
    return torch.randn(list(sizes), generator=generator, dtype=torch.float32).double()


def _hint(size: Any) -> int:
    return int(size) if isinstance(size, int) else int(size.node.hint)
