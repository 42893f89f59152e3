"""The proof of each site by itself: the norm and its layers, cut out of the graph and run on random values.

Part of the proof. Sigmoid, ReLU and argmax hide wrong channels from a comparison of outputs, so every folded norm is
also checked alone: unfolded and folded, both in float64, on values that no earlier layer has squashed. Norms that
share a layer are cut out together.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from ...errors import FoldError
from .float64 import run_in_float64, tensors_in
from .graph import TorchGraph, arguments, operation, shape
from .layers import Layer
from .model_proof import ALGEBRA_LIMIT
from .norms import Norm, read_affine_op
from .parameters import Change, Value
from .placement import Placement


@dataclass(frozen=True)
class SiteProof:
    """What was measured of one norm: float64 error over A, and the stored parameters' error over unit roundoff x A."""

    algebra: float
    deployed: float


@dataclass
class _SiteGraph:
    """A part of the graph: some norms, their layers and what lies between."""

    norms: list[Norm]
    nodes: list[Node]
    parallel: set[Norm]

    def sources(self, graph: TorchGraph) -> list[Node]:
        """Return the values on data that the part reads from outside."""
        inside = set(self.nodes)
        sources = [s for n in self.nodes for s in n.all_input_nodes if s not in inside and not graph.is_constant(s)]
        return list(dict.fromkeys(sources))

    def results(self, graph: TorchGraph) -> list[Node]:
        """Return the nodes of the part that the rest of the graph reads."""
        inside = set(self.nodes)
        return [n for n in self.nodes if n in graph.outputs or any(r not in inside for r in graph.readers(n))]


def prove_sites(graph: TorchGraph, placement: Placement, changes: Iterable[Change]) -> dict[Norm, SiteProof]:
    """Return the proof of every folded norm.

    Raises:
        FoldError: a site is off by more than 1e-11 of its magnitude, or its stored parameters by more than their bound.
    """
    changed = {layer.node: (layer, change) for change in changes for layer in change.layers}
    proofs: dict[Norm, SiteProof] = {}
    for cut in _site_graphs(graph, placement):
        proof = _prove(graph, cut, changed)
        proofs.update(dict.fromkeys(cut.norms, proof))
    return proofs


def _site_graphs(graph: TorchGraph, placement: Placement) -> list[_SiteGraph]:
    """Return the parts of the graph to check, norms that meet in a node being in one part."""
    cuts: list[tuple[list[Norm], set[Node]]] = []
    for norm, (layers, passed) in placement.folded.items():
        norms, nodes = [norm], {*norm.nodes, *passed, *(layer.node for layer in layers)}
        nodes |= {a for node in nodes for a in node.all_input_nodes if graph.unexpanded(a) is not None}
        for other in [cut for cut in cuts if cut[1] & nodes]:
            cuts.remove(other)
            norms, nodes = other[0] + norms, other[1] | nodes
        cuts.append((norms, nodes))
    return [_SiteGraph(norms, sorted(nodes, key=lambda n: graph.order[n]), placement.parallel) for norms, nodes in cuts]


def _prove(graph: TorchGraph, cut: _SiteGraph, changed: dict[Node, tuple[Layer, Change]]) -> SiteProof:
    generator = torch.Generator().manual_seed(len(cut.nodes))
    values = {node: _sample(node, generator) for node in cut.sources(graph)}
    before, after = _SiteEvaluator(graph, cut, {}), _SiteEvaluator(graph, cut, changed)
    with torch.no_grad():
        folded, size = after(values, _EXACT), _size(before, after, values)
        algebra = _worst(before(values, _EXACT), folded, size)
        deployed = _worst(after(values, _STORED), folded, size)
    what = f"the fold of '{cut.norms[0].path}'"
    if not algebra <= ALGEBRA_LIMIT:
        raise FoldError(
            f"{what} is wrong: in float64 it is off by {algebra:.3g} of its magnitude, expected at most "
            f"{ALGEBRA_LIMIT:g}; please report this model"
        )
    limit = _deployed_limit(cut, changed)
    if not deployed <= limit:
        raise FoldError(f"{what}, as stored, is off by {deployed:.3g} of its magnitude, expected at most {limit:.3g}")
    return SiteProof(algebra, deployed)


def _size(before: "_SiteEvaluator", after: "_SiteEvaluator", values: dict[Node, Any]) -> list[Tensor]:
    """Return the magnitude A of each value that leaves the part: the larger one of both forms on absolute values.

    Sums of positive numbers lose nothing in float32, which is much faster; float64 only where that overflows.
    """
    for mode in (_SIZE, _WIDE_SIZE):
        sizes = [torch.maximum(a, b) for a, b in zip(before(values, mode), after(values, mode), strict=True)]
        if all(bool(torch.isfinite(size).all()) for size in sizes):
            break
    return sizes


def _deployed_limit(cut: _SiteGraph, changed: dict[Node, tuple[Layer, Change]]) -> float:
    """Return (4 + 2 sqrt(K)) unit roundoffs per layer, K being the products that one output adds up."""
    total = 0.0
    for node in cut.nodes:
        weight = changed[node][1].weight if node in changed else None
        if weight is not None:
            terms = max(1.0, weight.exact.size / max(1, shape(node)[changed[node][0].out_axis]))
            total += (4 + 2 * terms**0.5) * _roundoff(weight)
    return max(total, 4 * 2.0**-53)


def _roundoff(value: Value) -> float:
    return float(torch.finfo(getattr(torch, value.dtype)).eps) / 2


def _worst(one: list[Tensor], other: list[Tensor], size: list[Tensor]) -> float:
    """Return the largest |difference| / size over all elements; infinite when something is not a number."""
    worst = 0.0
    for left, right, magnitude in zip(one, other, size, strict=True):
        if left.numel():
            ratio = (left - right).abs_().div_(magnitude.clamp(min=1e-300))
            worst = max(worst, float(ratio.max()))
        if worst != worst:
            return float("inf")
    return worst


def _sample(node: Node, generator: torch.Generator) -> Any:
    """Return random values of the node's sample shape, or its sample number when it is a size."""
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return _hint(value)
    sizes = [_hint(size) for size in value.shape]
    return torch.randn(sizes, generator=generator, dtype=torch.float32).double()


def _hint(size: Any) -> int:
    return int(size) if isinstance(size, int) else int(size.node.hint)


@dataclass(frozen=True)
class _Precision:
    """How to evaluate: with which parameters, in which dtype (None: the parameters' own), and on absolute values."""

    dtype: torch.dtype | None = torch.float64
    stored: bool = False
    absolute: bool = False


_EXACT, _STORED = _Precision(), _Precision(dtype=None, stored=True)
_SIZE, _WIDE_SIZE = _Precision(torch.float32, absolute=True), _Precision(absolute=True)


class _SiteEvaluator:
    """Evaluates a part of the graph, with `changed` layers and without the norms when there are any."""

    def __init__(self, graph: TorchGraph, cut: _SiteGraph, changed: dict[Node, tuple[Layer, Change]]):
        self._graph, self._cut, self._changed = graph, cut, changed
        self._norms = {norm.output: norm for norm in cut.norms}
        self._skipped = {node for norm in cut.norms for node in norm.nodes if changed and node is not norm.output}

    def __call__(self, values: dict[Node, Any], mode: _Precision) -> list[Tensor]:
        """Return the values that leave the part, float64, for the given values of its sources."""
        known = {node: _cast(value, mode) for node, value in values.items()}
        for norm in self._cut.norms:
            if norm.output is norm.source and not self._changed:  # the normalisation of the model's input
                known[norm.source] = _apply(norm, known[norm.source], mode)
        for node in self._cut.nodes:
            if node not in self._skipped:
                known[node] = self._value(node, known, mode)
        return [tensor.double() for node in self._cut.results(self._graph) for tensor in tensors_in(known[node])]

    def _value(self, node: Node, known: dict[Node, Any], mode: _Precision) -> Any:
        norm = self._norms.get(node)
        if norm is not None and self._changed:
            return known[norm.source] * 0 if norm in self._cut.parallel else known[norm.source]
        if norm is not None and mode.absolute:
            return _apply(norm, known[norm.source], mode)
        if node in self._changed:
            return self._layer(node, known, mode)
        return self._plain(node, known, mode)

    def _plain(self, node: Node, known: dict[Node, Any], mode: _Precision) -> Any:
        """Evaluate an operation as it is; in absolute terms a difference is a sum, and constants count as positive."""
        target: Any = node.target
        if mode.absolute and operation(node).startswith("aten::sub"):
            target = torch.ops.aten.add.Tensor
        linear = read_affine_op(self._graph, node) is not None or operation(node) in _WITH_WEIGHTS

        def value(source: Node) -> Any:
            if source in known:
                return known[source]
            return _cast(self._graph.constant(source), mode, keep_sign=not linear)

        args, kwargs = map_arg(node.args, value), map_arg(node.kwargs, value)
        if mode.absolute:
            return target(*args, **kwargs)
        return run_in_float64(lambda: target(*args, **kwargs), ())

    def _layer(self, node: Node, known: dict[Node, Any], mode: _Precision) -> Any:
        layer, change = self._changed[node]
        some = change.weight or change.bias
        own = _Precision(getattr(torch, some.dtype), True) if mode.stored and some is not None else mode
        new = {layer.weight: change.weight, layer.bias: change.bias}

        def tensor(value: Value) -> Tensor:
            cast: Tensor = _cast(torch.from_numpy(value.stored if mode.stored else value.exact), own)
            return cast

        def argument(source: Node) -> Any:
            value = new.get(source)
            if value is not None:
                return tensor(value).reshape(shape(source))
            return _cast(known[source] if source in known else self._constant(source, layer, change, mode), own)

        args = map_arg(node.args, argument)
        out = node.target(*args, **map_arg(node.kwargs, argument))  # type: ignore[operator]
        if change.bias is not None and layer.bias is None:
            out = out + tensor(change.bias).reshape([-1] + [1] * (out.ndim - 1 - layer.out_axis))
        if change.border is not None:
            out = out + _border(node, args, tensor(change.border))
        return out

    def _constant(self, source: Node, layer: Layer, change: Change, mode: _Precision) -> Tensor:
        """Return a constant argument; the transpose of a changed weight is that of the new one."""
        if layer.weight is not None and change.weight is not None and source.all_input_nodes == [layer.weight]:
            weight = torch.from_numpy(change.weight.stored if mode.stored else change.weight.exact)
            transposed: Tensor = source.target(weight, *source.args[1:])  # type: ignore[operator]
            return transposed
        return self._graph.constant(source)


_WITH_WEIGHTS = {f"aten::conv{n}d" for n in (1, 2, 3)} | {"aten::linear", "aten::addmm", "aten::mm", "aten::matmul"}


def _cast(value: Any, mode: _Precision, keep_sign: bool = False) -> Any:
    """Return a float tensor in the mode's dtype, and positive when the mode says so; anything else as it is."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    cast: Tensor = value if mode.dtype is None else value.to(mode.dtype)
    return cast.abs() if mode.absolute and not keep_sign else cast


def _apply(norm: Norm, value: Tensor, mode: _Precision) -> Tensor:
    """Return the norm of a value, or its magnitude."""
    affine = norm.magnitude if mode.absolute else norm.affine
    scale, shift = torch.from_numpy(affine.scale).to(value.dtype), torch.from_numpy(affine.shift).to(value.dtype)
    if norm.axis is not None:
        sizes = [-1] + [1] * (value.ndim - 1 - norm.axis)
        scale, shift = scale.reshape(sizes), shift.reshape(sizes)
    return value * scale + shift


def _border(node: Node, args: Any, kernel: Tensor) -> Tensor:
    given, source = arguments(node), args[0]
    spatial = kernel.ndim - 2
    ones = torch.ones((1,) * (source.ndim - spatial) + tuple(source.shape[-spatial:]), dtype=kernel.dtype)
    options = (given["stride"], given["padding"], given["dilation"])
    shares: Tensor = node.target(ones, kernel, None, *options)  # type: ignore[operator]
    return shares
