"""The proof of each site by itself: the norm and its layers, cut out of the graph and run on random values.

Part of the proof. Sigmoid, ReLU and argmax hide wrong channels from a comparison of outputs, so every folded norm is
also checked alone: unfolded and folded, both in float64, on values that no earlier layer has squashed. Norms that
share a layer are cut out together. A site that cannot be proved is refused; the others are not concerned.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from ..failures import during
from ..refusals import Refusal, RefusalCode
from ..verdict import ALGEBRA_LIMIT
from .float64 import run_in_float64, tensors_in
from .graph import TorchGraph, arguments, operation, shape
from .layers import Layer, border_arguments, read_layer
from .norms import Norm, read_affine_node
from .parameters import Change, Value
from .placement import Placement
from .site_crops import cropped_shapes

_HALF_ULP = 0.5


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


def _site_graphs(graph: TorchGraph, placement: Placement) -> list[_SiteGraph]:
    """Return the parts of the graph to check, norms that meet in a node being in one part."""
    parts: list[tuple[list[Norm], set[Node]]] = []
    for norm, (layers, passed) in placement.folded.items():
        norms, nodes = [norm], {*norm.nodes, *passed, *(layer.node for layer in layers)}
        nodes |= {a for node in nodes for a in node.all_input_nodes if graph.unexpanded(a) is not None}
        for other in [part for part in parts if part[1] & nodes]:
            parts.remove(other)
            norms, nodes = other[0] + norms, other[1] | nodes
        parts.append((norms, nodes))
    return [
        _SiteGraph(norms, sorted(nodes, key=lambda n: graph.order[n]), placement.parallel) for norms, nodes in parts
    ]


def _prove(graph: TorchGraph, part: _SiteGraph, changed: Mapping[Node, tuple[Layer, Change]]) -> float:
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
    part: _SiteGraph,
    changed: Mapping[Node, tuple[Layer, Change]],
    shapes: Mapping[Node, Sequence[int]],
) -> tuple[Results, Results, list[Tensor]]:
    """Return what leaves the part, unfolded and folded, and what both add up, for sources of these shapes."""
    generator = torch.Generator().manual_seed(len(part.nodes))
    samples = {node: _sample(node, shapes.get(node), generator) for node in part.sources(graph)}
    for size_dtype in (torch.float32, torch.float64):  # sums of positive numbers lose nothing in float32, if they fit
        unfolded = _Evaluation(graph, part, {}, size_dtype).run(samples)
        folded = _Evaluation(graph, part, changed, size_dtype).run(samples)
        sizes = [torch.maximum(one[1], other[1]) for one, other in zip(unfolded, folded, strict=True)]
        if all(bool(torch.isfinite(size).all()) for size in sizes):
            break
    return unfolded, folded, sizes


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


class _Evaluation:
    """Evaluates a part of the graph, with `changed` layers and without the norms when there are any.

    Each node has two results: its value in float64, and its size A, the sum of the absolute values of what it adds
    up, to which rounding errors are in proportion.
    """

    def __init__(
        self,
        graph: TorchGraph,
        part: _SiteGraph,
        changed: Mapping[Node, tuple[Layer, Change]],
        size_dtype: torch.dtype,
    ):
        self._graph, self._part, self._changed, self._size_dtype = graph, part, changed, size_dtype
        self._norms = {norm.output: norm for norm in part.norms}
        self._values: dict[Node, Any] = {}
        self._sizes: dict[Node, Any] = {}

    @torch.no_grad()
    def run(self, samples: Mapping[Node, Any]) -> list[tuple[Tensor, Tensor]]:
        """Return value and size of everything that leaves the part, for the given values of its sources."""
        removed = {node for norm in self._part.norms for node in norm.nodes} if self._changed else set()
        self._values.update(samples)
        self._sizes.update({node: self._absolute(value) for node, value in samples.items()})
        for norm in self._part.norms:
            if norm.output is norm.source and not self._changed:  # the normalisation of the model's input
                self._values[norm.source] = _apply(norm, norm.affine, self._values[norm.source])
                self._sizes[norm.source] = _apply(norm, norm.magnitude, self._sizes[norm.source])
        for node in self._part.nodes:
            if node in self._norms or node not in removed:
                self._evaluate(node)
        results = self._part.results(self._graph)
        pairs = [(tensors_in(self._values[node]), tensors_in(self._sizes[node])) for node in results]
        return [pair for values, sizes in pairs for pair in zip(values, sizes, strict=True)]

    def _evaluate(self, node: Node) -> None:
        norm = self._norms.get(node)
        if norm is not None and self._changed:
            share = 0 if norm in self._part.parallel else 1
            self._values[node], self._sizes[node] = (
                known[norm.source] * share for known in (self._values, self._sizes)
            )
            return
        self._values[node] = run_in_float64(lambda: self._call(node, self._values, absolute=False), ())
        if norm is not None:
            self._sizes[node] = _apply(norm, norm.magnitude, self._sizes[norm.source])
        else:
            self._sizes[node] = self._size(node)

    def _size(self, node: Node) -> Any:
        """Return the size of an operation's result, from the sizes of its operands."""
        name, affine = operation(node), read_affine_node(self._graph, node)
        if affine is not None and node not in self._changed:
            scale, shift = (self._absolute(part) for part in (affine.scale, affine.shift))
            return self._sizes[affine.source] * scale + shift
        if _normalises_its_input(node):  # no sum of its input: the size is the scale of the channel
            layer = read_layer(self._graph, node)
            value = self._absolute(self._values[node])
            axes = [axis for axis in range(value.ndim) if layer is None or axis != layer.out_axis]
            return value.amax(axes, keepdim=True).expand_as(value)
        if "bicubic" in name:  # its weights are partly negative; the sum of their absolute values is below two
            peak = self._sizes[node.all_input_nodes[0]].amax((-2, -1), keepdim=True)
            return 2 * peak.expand(self._values[node].shape)
        return tree_map(self._absolute, self._call(node, self._sizes, absolute=True))

    def _call(self, node: Node, known: Mapping[Node, Any], *, absolute: bool) -> Any:
        """Return what the operation gives for known operands and constants, or for the absolute values of both."""
        layer, change = self._changed.get(node, (None, None))
        new = {} if layer is None or change is None else {layer.weight: change.weight, layer.bias: change.bias}
        mean = arguments(node).get("running_mean") if absolute and hasattr(node.target, "_schema") else None

        def constant(source: Node) -> Any:
            value = new.get(source)
            if absolute and value is None and layer is None and source is not mean:
                return self._graph.magnitude(source, self._size_dtype)
            tensor = self._constant(source, layer, change) if value is None else _like(source, _exact(value))
            if not absolute:
                return tensor
            return -self._absolute(tensor) if source is mean else self._absolute(tensor)

        def operand(source: Node) -> Any:
            return known[source] if source in known else constant(source)

        args, kwargs = map_arg((node.args, node.kwargs), operand)
        out = _target(node, absolute=absolute)(*args, **kwargs)
        return sum(self._addends(node, args, absolute=absolute), start=out)

    def _addends(self, node: Node, args: Any, *, absolute: bool) -> Iterable[Tensor]:
        """Yield what a folded layer adds besides: a bias where it had none, the correction at the border."""
        layer, change = self._changed.get(node, (None, None))
        if layer is None or change is None:
            return
        if change.bias is not None and layer.bias is None:
            bias = _exact(change.bias).reshape([-1] + [1] * (len(shape(node)) - 1 - layer.out_axis))
            yield self._absolute(bias) if absolute else bias
        if change.border is not None:
            kernel = _exact(change.border)
            yield _border(node, args[0], self._absolute(kernel) if absolute else kernel)

    def _constant(self, source: Node, layer: Layer | None, change: Change | None) -> Any:
        """Return a constant argument; the transpose of a changed weight is that of the new one."""
        weight = None if change is None else change.weight
        if layer is None or layer.weight is None or weight is None or source.all_input_nodes != [layer.weight]:
            return self._graph.constant(source)
        target: Any = source.target
        return target(_exact(weight), *source.args[1:])

    def _absolute(self, value: Any) -> Any:
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return torch.abs(value.to(self._size_dtype)) if is_float else value


def _normalises_its_input(node: Node) -> bool:
    """True for a norm that takes its statistics from the values it normalises."""
    name = operation(node)
    return name in {"aten::layer_norm", "aten::group_norm"} or (
        name == "aten::instance_norm" and bool(arguments(node)["use_input_stats"])
    )


def _target(node: Node, *, absolute: bool) -> Any:
    """Return the operation; for sizes a difference is a sum, and the least value is bounded by the largest."""
    name = operation(node)
    if absolute and name.startswith("aten::sub"):
        return torch.ops.aten.add.Tensor
    return torch.ops.aten.amax.default if absolute and name == "aten::amin" else node.target


def _exact(value: Value) -> Tensor:
    return torch.from_numpy(value.exact)


def _like(source: Node, value: Tensor) -> Tensor:
    """Return the value in the shape of the constant that it replaces; a map may have got channels."""
    return value.reshape(shape(source)) if value.numel() == source.meta["val"].numel() else value


def _apply(norm: Norm, affine: Any, value: Tensor) -> Tensor:
    """Return an affine of a value, along the channel axis of the norm."""
    sizes = [-1] + [1] * (0 if norm.axis is None else value.ndim - 1 - norm.axis)
    scale, shift = (torch.from_numpy(v).to(value.dtype).reshape(sizes) for v in (affine.scale, affine.shift))
    return value * scale + shift


def _border(node: Node, source: Tensor, kernel: Tensor) -> Tensor:
    spatial = kernel.ndim - 2
    ones = torch.ones((1,) * (source.ndim - spatial) + tuple(source.shape[-spatial:]), dtype=kernel.dtype)
    shares: Tensor = node.target(ones, kernel, None, *border_arguments(node))  # type: ignore[operator]
    return shares
