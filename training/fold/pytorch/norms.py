"""Recognise every norm of a graph and reduce it to a per-channel affine on a named axis.

After `graph`, before the walk to the layers. Two kinds are known: the operations batch_norm and instance_norm with
running statistics, and chains of additions and multiplications with constants, which is what hand-written and frozen
norms become. Where a norm goes is not decided here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from ..core import Affine, Array
from ..failures import during
from ..refusals import Refusal, RefusalCode
from ..report import Site
from .axes import RESHAPES, SPLITS, axis_before
from .graph import (
    TorchGraph,
    arguments,
    call_key,
    dtype,
    is_tensor,
    module_path,
    operation,
    same_shape,
    shape,
)


@dataclass(frozen=True, eq=False)
class Norm:
    """One norm of the graph, as an affine.

    Attributes:
        kind: "batch_norm", "instance_norm", "affine chain" or "input".
        source: the value that is normalised.
        output: the normalised value; the same node as `source` for the normalisation of an input.
        nodes: the operations that go away with the norm.
        axis: channel axis of source and output; None when there is one channel, so that any axis serves.
        affine: the norm in float64.
        magnitude: the same on absolute values, |y| <= magnitude.scale |x| + magnitude.shift; for error bounds.
    """

    kind: str
    source: Node
    output: Node
    nodes: tuple[Node, ...]
    axis: int | None
    affine: Affine
    magnitude: Affine

    @property
    def path(self) -> str:
        """Path of the module that the norm is in; the node's name for a norm in the model's own forward."""
        return module_path(self.output) or self.output.name


def find_norms(graph: TorchGraph) -> tuple[list[Norm], list[Site]]:
    """Return the norms of the graph in order of evaluation, and refused sites for those that are no constant affine."""
    norms: list[Norm] = []
    refused: list[Site] = []
    claimed: set[Node] = set()
    for node in graph.nodes:
        if node in claimed or node.op != "call_function" or graph.is_constant(node):
            continue  # a norm of weights (weight standardisation) is a constant, as any other
        reader = READERS.get(operation(node))
        try:
            with during(f"recognising '{node.name}'"):
                norm = reader(graph, node) if reader else _affine_chain(graph, node)
        except Refusal as refusal:
            path = module_path(node) or node.name
            refused.append(Site.refused(path, node.name, operation(node).removeprefix("aten::"), refusal))
            continue
        if norm is not None:
            norms.append(norm)
            claimed.update(norm.nodes)
    return _joined_chunks(graph, norms), refused


def _joined_chunks(graph: TorchGraph, norms: list[Norm]) -> list[Norm]:
    """Return the norms, where those of all chunks of a value are one: a ghost batch norm, in eval mode, is a norm."""
    by_output = {norm.output: norm for norm in norms}
    for node in graph.nodes:
        parts: Any = node.args[0] if operation(node) == "aten::cat" else ()
        chunks = [by_output[part] for part in parts if part in by_output]
        joined = _of_all_chunks(graph, node, chunks) if chunks and len(chunks) == len(parts) else None
        if joined is not None:
            norms = [norm for norm in norms if norm not in chunks[:-1]]
            norms[norms.index(chunks[-1])] = joined
    return norms


def _of_all_chunks(graph: TorchGraph, joining: Node, chunks: list[Norm]) -> Norm | None:
    """Return the one norm of the value whose chunks are normalised alike and joined again in their order."""
    pieces, first = [norm.source for norm in chunks], chunks[0]
    split = pieces[0].args[0] if operation(pieces[0]) == "getitem" else None
    if not isinstance(split, Node) or operation(split) not in SPLITS:
        return None
    in_order = [piece.args for piece in pieces] == [(split, number) for number in range(len(split.meta["val"]))]
    dims = {int(arguments(node).get("dim", 0)) % len(shape(joining)) for node in (split, joining)}
    inside = {*pieces, *(norm.output for norm in chunks)}
    alone = all(graph.readers(n.output) == [joining] and set(graph.readers(n.source)) <= set(n.nodes) for n in chunks)
    alone = alone and not inside & graph.outputs
    alike = all(
        (n.kind, n.axis) == (first.kind, first.axis)
        and np.array_equal(n.affine.scale, first.affine.scale)
        and np.array_equal(n.affine.shift, first.affine.shift)
        for n in chunks
    )
    if not in_order or len(dims) > 1 or first.axis in dims or not alone or not alike or len(split.users) > len(pieces):
        return None
    nodes = (split, *pieces, *(node for norm in chunks for node in norm.nodes), joining)
    return replace(first, source=split.all_input_nodes[0], output=joining, nodes=nodes)


def _batch_norm(graph: TorchGraph, node: Node, output: Node | None = None) -> Norm:
    given, output = arguments(node), output or node
    uses_batch = given.get("training") or given.get("use_input_stats")
    if uses_batch and (operation(node) == "aten::instance_norm" or given["running_mean"] is None):
        raise Refusal(RefusalCode.BATCH_STATS, "the norm takes its statistics from the values it normalises")
    if uses_batch:
        raise Refusal(RefusalCode.TRAINING, "the norm is in training mode")
    if given["running_mean"] is None or given["running_var"] is None:
        raise Refusal(RefusalCode.BATCH_STATS, "the norm keeps no running statistics")
    mean, var = (_statistic(graph, given[name]) for name in ("running_mean", "running_var"))
    gamma, beta = (None if given[name] is None else _statistic(graph, given[name]) for name in ("weight", "bias"))
    source = given["input"]
    _require_one_dtype(source, output, given["running_mean"])
    affine = Affine.from_batch_norm(mean, var, gamma, beta, given["eps"])
    shift = abs(mean.reshape(-1) * affine.scale) + (0.0 if beta is None else abs(beta.reshape(-1)))
    axis = None if affine.channels == 1 else 1
    kind = operation(node).removeprefix("aten::")
    return Norm(kind, source, output, (node,), axis, affine, Affine(abs(affine.scale), shift))


def _decomposed_batch_norm(graph: TorchGraph, node: Node) -> Norm:
    """Return the norm of an exported program that was decomposed, whose first result is the normalised value."""
    used = [part for part in node.users if part.users]
    if len(used) != 1 or operation(used[0]) != "getitem" or used[0].args[1] != 0:
        raise Refusal(RefusalCode.BATCH_STATS, f"'{node.name}' gives more than the normalised value")
    norm = _batch_norm(graph, node, used[0])
    unused = (part for part in node.users if part is not used[0])
    return replace(norm, kind="batch_norm", nodes=(node, *unused, used[0]))


READERS: dict[str, Callable[[TorchGraph, Node], Norm]] = {
    "aten::batch_norm": _batch_norm,
    "aten::instance_norm": _batch_norm,
    "aten::_native_batch_norm_legit_no_training": _decomposed_batch_norm,
}


def _statistic(graph: TorchGraph, value: object) -> Array:
    if not isinstance(value, Node) or not graph.is_constant(value):
        raise Refusal(RefusalCode.UNTRACKED, "statistics or affine parameters of the norm change from call to call")
    return graph.constant(value).double().numpy()


def _require_one_dtype(source: Node, output: Node, statistics: Node) -> None:
    if len({dtype(node) for node in (source, output, statistics)}) > 1 or not dtype(source).is_floating_point:
        raise Refusal(
            RefusalCode.DTYPE,
            f"the norm turns {dtype(source)} into {dtype(output)} with statistics in {dtype(statistics)}",
        )


@dataclass(frozen=True)
class AffineNode:
    """y = scale * x + shift with constant tensors that broadcast over x.

    Attributes:
        source: x.
        scale: float64, any shape that broadcasts.
        shift: float64, any shape that broadcasts.
        is_tensor: True when the constant is a tensor with axes, False for a plain number.
    """

    source: Node
    scale: Tensor
    shift: Tensor
    is_tensor: bool

    def axes(self, rank: int) -> list[int]:
        """Return the axes of a value of `rank` axes along which scale or shift varies."""
        parts = (self.scale, self.shift)
        return [rank - p.ndim + axis for p in parts for axis, size in enumerate(p.shape) if size > 1]

    def affine(self, channels: int) -> Affine:
        """Return the step for `channels` channels, of which scale and shift have as many, or one."""
        rows = [part.reshape(-1).expand(channels).numpy() for part in (self.scale, self.shift)]
        return Affine(rows[0], rows[1])


def read_affine_node(graph: TorchGraph, node: Node) -> AffineNode | None:
    """Return the node as a step when it adds a constant to one value, or multiplies, subtracts, divides by one."""
    name = operation(node).removesuffix("_")
    if name == "aten::addcmul":
        return _addcmul_step(graph, node)
    if name not in _STEPS or not is_tensor(node) or not dtype(node).is_floating_point:
        return None
    operands: list[Any] = list(node.args[:2]) if name != "aten::neg" else [node.args[0]]
    operands = [graph.unexpanded(a) or a if isinstance(a, Node) else a for a in operands]
    moving = [a for a in operands if is_tensor(a) and not graph.is_constant(a)]
    if len(moving) != 1 or node.kwargs.get("rounding_mode") is not None:
        return None
    source = moving[0]
    assert isinstance(source, Node)
    if dtype(source) != dtype(node) or not same_shape(source, node):
        return None
    constants = [_constant(graph, a) for a in operands if a is not source]
    if len([c for c in constants if c is not None]) < len(constants):
        return None
    alpha: Any = node.kwargs.get("alpha", 1)
    scale, shift = _STEPS[name](operands[0] is source, constants[0] if constants else None, float(alpha))
    has_axes = any(is_tensor(a) and shape(a) for a in operands if a is not source)
    return AffineNode(source, scale, shift, has_axes)


def _addcmul_step(graph: TorchGraph, node: Node) -> AffineNode | None:
    """Return shift + value * scale * x as a step, when x alone is no constant."""
    given = arguments(node)
    shift, one, other = (graph.unexpanded(given[name]) or given[name] for name in ("self", "tensor1", "tensor2"))
    source, scale = (one, other) if graph.is_constant(other) else (other, one)
    constant = graph.is_constant(shift) and graph.is_constant(scale) and not graph.is_constant(source)
    if not constant or dtype(source) != dtype(node) or not same_shape(source, node):
        return None
    factor = float(given["value"]) * graph.constant(scale).double()
    return AffineNode(source, factor, graph.constant(shift).double(), bool(shape(scale) or shape(shift)))


def _constant(graph: TorchGraph, operand: object) -> Tensor | None:
    if isinstance(operand, int | float):
        return torch.tensor(float(operand), dtype=torch.float64)
    known = isinstance(operand, Node) and is_tensor(operand) and graph.is_constant(operand)
    return graph.constant(operand).double() if known else None  # type: ignore[arg-type]


_ONE, _ZERO = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
_STEPS: dict[str, Callable[[bool, Any, float], tuple[Tensor, Tensor]]] = {
    "aten::add": lambda first, c, alpha: (_ONE, alpha * c) if first else (alpha * _ONE, c),
    "aten::sub": lambda first, c, alpha: (_ONE, -alpha * c) if first else (-alpha * _ONE, c),
    "aten::rsub": lambda first, c, alpha: (-alpha * _ONE, c) if first else (_ONE, -alpha * c),
    "aten::mul": lambda first, c, alpha: (c, _ZERO),
    "aten::div": lambda first, c, alpha: (1.0 / c, _ZERO) if first else (torch.full((), float("nan")), _ZERO),
    "aten::neg": lambda first, c, alpha: (-_ONE, _ZERO),
}


def _affine_chain(graph: TorchGraph, first: Node) -> Norm | None:
    """Return the chain of constant steps that starts at `first`, when it scales and shifts by tensors: a norm."""
    step = read_affine_node(graph, first)
    if step is None or _is_reciprocal(graph, first):
        return None
    nodes, steps, last = [first], [step], first
    while (following := _next_step(graph, last)) is not None:
        last = following[0]
        nodes.append(last)
        steps.append(following[1])
    normalises = any(operation(node) in _NORMALISES for node in nodes)
    if not _is_norm(steps) or not (normalises or _has_own_module(graph, nodes)):
        return None
    return _unwrapped(graph, _composed(graph, steps, tuple(nodes)))


def _unwrapped(graph: TorchGraph, norm: Norm) -> Norm:
    """Return the norm together with a reshape before it and one after it that restores the shape."""
    before, readers = norm.source, graph.readers(norm.output)
    if operation(before) not in RESHAPES or len(readers) != 1 or operation(readers[0]) not in RESHAPES:
        return norm
    source, after = before.all_input_nodes[0], readers[0]
    alone = graph.readers(before) == [norm.nodes[0]] and not graph.outputs & {before, norm.output}
    if not alone or not same_shape(source, after) or call_key(before) != call_key(after):
        return norm
    axis = axis_before(before, norm.axis)
    return replace(norm, source=source, output=after, nodes=(before, *norm.nodes, after), axis=axis)


def _is_reciprocal(graph: TorchGraph, node: Node) -> bool:
    """True for constant / x, which no affine describes."""
    return operation(node).removesuffix("_") == "aten::div" and (
        not isinstance(node.args[0], Node)
        or graph.is_constant(node.args[0])
        or graph.unexpanded(node.args[0]) is not None
    )


def _next_step(graph: TorchGraph, last: Node) -> tuple[Node, AffineNode] | None:
    readers = graph.readers(last)
    if last in graph.outputs or len(readers) != 1 or call_key(readers[0]) != call_key(last):
        return None
    step = read_affine_node(graph, readers[0])
    return (readers[0], step) if step is not None and not _is_reciprocal(graph, readers[0]) else None


_NORMALISES = {f"aten::{name}" for name in ("sub", "div", "sub_", "div_")}


def _has_own_module(graph: TorchGraph, nodes: list[Node]) -> bool:
    """True when a module does nothing but these steps: a frozen norm, not a residual with a learned scale."""
    key, inside = call_key(nodes[0]), set(nodes)
    others = (n for n in graph.nodes if n not in inside and n.op == "call_function" and call_key(n) == key)
    return module_path(nodes[0]) != "" and all(
        not is_tensor(n) or graph.is_constant(n) or graph.unexpanded(n) is not None for n in others
    )


def _is_norm(steps: list[AffineNode]) -> bool:
    scales = any(s.is_tensor and s.scale.ndim > 0 for s in steps)
    shifts = any(s.is_tensor and s.shift.ndim > 0 for s in steps)
    return scales and shifts


def _composed(graph: TorchGraph, steps: list[AffineNode], nodes: tuple[Node, ...]) -> Norm:
    source, output = steps[0].source, nodes[-1]
    rank = len(shape(output))
    axes = {axis for step in steps for axis in step.axes(rank)}
    if len(axes) > 1:
        raise Refusal(RefusalCode.AXIS, f"the constants of the norm vary along the axes {sorted(axes)}, not along one")
    if not all(bool(torch.isfinite(step.scale).all()) for step in steps):
        raise Refusal(RefusalCode.ZERO_DENOMINATOR, "the norm divides by zero, or by a value that is not finite")
    channels = max(part.numel() for step in steps for part in (step.scale, step.shift))
    affine = magnitude = Affine.identity(channels)
    for step in steps:
        one = step.affine(channels)
        affine, magnitude = affine.then(one), magnitude.then(Affine(abs(one.scale), abs(one.shift)))
    return Norm("affine chain", source, output, nodes, axes.pop() if axes else None, affine, magnitude)
