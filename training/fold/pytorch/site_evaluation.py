"""Evaluates a part of the graph, some norms with their layers, unfolded or folded, in float64 or as it is deployed.

Used by `site_proof`, which draws the values and judges what comes out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from .float64 import run_in_float64, tensors_in
from .graph import TorchGraph, arguments, dtype, operation, shape
from .layers import Layer, border_arguments, read_layer
from .norms import Norm, read_affine_node
from .parameters import Change, Value


@dataclass
class SiteGraph:
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


class Evaluation:
    """Evaluates a part of the graph, with `changed` layers and without the norms when there are any.

    Each node has two results: its value in float64, and its size A, the sum of the absolute values of what it adds
    up, to which rounding errors are in proportion.
    """

    def __init__(
        self,
        graph: TorchGraph,
        part: SiteGraph,
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
        self._values[node] = self._call(node, self._values, absolute=False)
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
                return self._as_used(tensor, source)
            return -self._absolute(tensor) if source is mean else self._absolute(tensor)

        def operand(source: Node) -> Any:
            return known[source] if source in known else constant(source)

        args, kwargs = map_arg((node.args, node.kwargs), operand)
        target = _target(node, absolute=absolute)
        out = target(*args, **kwargs) if absolute else self._ran(target, args, kwargs)
        return sum(self._addends(node, args, absolute=absolute), start=out)

    def _ran(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what the operation gives, in float64 whatever it asks for."""
        return run_in_float64(lambda: target(*args, **kwargs), ())

    def _addends(self, node: Node, args: Any, *, absolute: bool) -> Iterable[Tensor]:
        """Yield what a folded layer adds besides: a bias where it had none, the correction at the border."""
        layer, change = self._changed.get(node, (None, None))
        if layer is None or change is None:
            return
        if change.bias is not None and layer.bias is None:
            bias = _exact(change.bias).reshape([-1] + [1] * (len(shape(node)) - 1 - layer.out_axis))
            yield self._absolute(bias) if absolute else self._as_used(bias, node)
        if change.border is not None:
            kernel = _exact(change.border)
            yield _border(node, args[0], self._absolute(kernel) if absolute else self._as_used(kernel, node))

    def _as_used(self, value: Any, node: Node) -> Any:
        """Return a constant as the evaluation uses it: in float64."""
        return value

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


class StoredEvaluation(Evaluation):
    """Evaluates a part as it is deployed: in the dtypes of the model, with rounded parameters."""

    @torch.no_grad()
    def run(self, samples: Mapping[Node, Any]) -> list[tuple[Tensor, Tensor]]:
        """Return the value of everything that leaves the part, twice, for the given values of its sources."""
        return super().run({node: self._as_used(value, node) for node, value in samples.items()})

    def _evaluate(self, node: Node) -> None:
        norm = self._norms.get(node)
        if norm is not None and self._changed:
            super()._evaluate(node)
        else:
            self._values[node] = self._sizes[node] = self._call(node, self._values, absolute=False)

    def _ran(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return target(*args, **kwargs)

    def _as_used(self, value: Any, node: Node) -> Any:
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype(node)) if is_float else value


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
