"""Finds the norms of an ONNX graph and reads each as a per-channel affine on a named axis.

Third in the ONNX flow: a BatchNormalization node, the Sub, Div, Mul, Add that a hand-written norm exports to, or a
run of both. It does not ask what stands before or behind; `producers` and `consumers` do.
"""

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from ..core import Affine, Array
from ..refusals import Refusal, RefusalCode
from .constants import read_constant
from .graph import OnnxGraph
from .protos import attributes

_DEFAULT_EPSILON = float(np.float32(1e-5))
_BATCH_NORM = "BatchNormalization"


@dataclass(frozen=True)
class AffineOp:
    """One node of a norm: `node` reads `source` and computes `affine` along `axis`; None is every element alike."""

    node: NodeProto
    source: str
    affine: Affine
    axis: int | None


@dataclass(frozen=True)
class Norm:
    """A run of steps as one affine from `source` to `result`.

    Attributes:
        steps: in data order, each value between them read once.
        axis: the channel axis, not negative; None when one scalar serves every element.
        centres: True when something is subtracted before something is scaled, which is what makes it a norm.
    """

    steps: tuple[AffineOp, ...]
    affine: Affine
    axis: int | None
    centres: bool

    @property
    def source(self) -> str:
        """The value that the norm reads."""
        return self.steps[0].source

    @property
    def result(self) -> str:
        """The value that the norm makes."""
        return str(self.steps[-1].node.output[0])

    @property
    def nodes(self) -> list[NodeProto]:
        """The norm's nodes in data order."""
        return [step.node for step in self.steps]

    @property
    def batch_norms(self) -> list[NodeProto]:
        """Those of its nodes that are BatchNormalization."""
        return [node for node in self.nodes if node.op_type == _BATCH_NORM]


def is_batch_norm(node: NodeProto) -> bool:
    """True for the standard BatchNormalization operator."""
    return node.op_type == _BATCH_NORM and node.domain in ("", "ai.onnx")


def read_batch_norm(graph: OnnxGraph, node: NodeProto) -> AffineOp:
    """Return a BatchNormalization of opset 7 to 24 in inference mode as a step on axis 1.

    Raises:
        Refusal: training-mode, spatial, batch-stats, overridable, and what `Affine.from_batch_norm` refuses.
    """
    fields = attributes(node)
    if not 7 <= graph.opset <= 24:
        raise Refusal(RefusalCode.UNKNOWN_OP, f"BatchNormalization of opset {graph.opset}; opsets 7 to 24 are known")
    if fields.get("training_mode", 0):
        raise Refusal(RefusalCode.TRAINING_MODE, "training_mode is 1: it normalises by each batch's own statistics")
    shape = graph.shape(node.input[0])
    if shape is not None and len(shape) < 2:
        raise Refusal(RefusalCode.AXIS, f"its input has {len(shape)} axes, so that no axis 1 holds its channels")
    if any(node.output[1:]):
        raise Refusal(RefusalCode.TRAINING_MODE, f"it has {len(node.output)} outputs, as in training; expected one")
    if not fields.get("spatial", 1):
        raise Refusal(RefusalCode.SPATIAL, "spatial is 0: every position has statistics of its own")
    gamma, beta, mean, var = (_statistic(graph, node, i) for i in range(1, 5))
    epsilon = float(fields.get("epsilon", _DEFAULT_EPSILON))
    return AffineOp(node, str(node.input[0]), Affine.from_batch_norm(mean, var, gamma, beta, epsilon), 1)


def find_norms(graph: OnnxGraph) -> list[tuple[NodeProto, Norm | Refusal]]:
    """Return every norm of the main graph in order: what it computes, or why it cannot be read.

    Elementwise steps that scale and shift count as one, too: a norm may have been exported that way.
    """
    found: list[tuple[NodeProto, Norm | Refusal]] = []
    taken: set[int] = set()
    for node in graph.nodes:
        if id(node) in taken:
            continue
        try:
            step = read_affine_op(graph, node)
        except Refusal as refusal:
            if is_batch_norm(node) or (id(node) not in taken and _shifts_and_scales_beside(graph, node)):
                found.append((node, refusal))
                taken.update(id(use.node) for use in graph.uses(node.output[0]))  # one norm, one report
            continue
        if step is None:
            continue
        norm = _longest_run(graph, step)
        taken.update(id(node) for node in norm.nodes)
        if norm.batch_norms or _scales_and_shifts(norm):
            found.append((norm.batch_norms[0] if norm.batch_norms else norm.nodes[0], norm))
    return found


def _longest_run(graph: OnnxGraph, first: AffineOp) -> Norm:
    """Return the norm that starts with `first` and goes on as long as one reader on the same axis follows another."""
    steps, affine, axis = [first], first.affine, first.axis
    while True:
        result = str(steps[-1].node.output[0])
        uses = graph.readers(result)
        if result in graph.outputs or len(uses) != 1 or uses[0].index < 0:
            break
        try:
            step = read_affine_op(graph, uses[0].node)
        except Refusal:
            break  # a BatchNormalization that cannot be read is reported by itself
        if step is None or step.source != result or (None not in (axis, step.axis) and axis != step.axis):
            break
        channels = max(affine.channels, step.affine.channels)
        if {affine.channels, step.affine.channels} - {1, channels}:
            break
        affine = affine.spread(channels).then(step.affine.spread(channels))
        axis = step.axis if axis is None else axis
        steps.append(step)
    return Norm(tuple(steps), affine, axis, _centres(steps))


def _shifts_and_scales_beside(graph: OnnxGraph, node: NodeProto) -> bool:
    """True when an elementwise node that cannot be read has the other half of a norm right before or behind it."""
    halves = ("Sub", "Add"), ("Div", "Mul")
    other = halves[1] if node.op_type in halves[0] else halves[0]
    beside = [graph.producer(name) for name in node.input] + [use.node for use in graph.uses(node.output[0])]
    return any(one is not None and one.op_type in other for one in beside)


def _scales_and_shifts(norm: Norm) -> bool:
    return any(_scales(step) for step in norm.steps) and any(_shifts(step) for step in norm.steps)


def _centres(steps: list[AffineOp]) -> bool:
    shifts = [i for i, step in enumerate(steps) if _shifts(step)]
    scales = [i for i, step in enumerate(steps) if _scales(step)]
    is_norm = any(is_batch_norm(step.node) for step in steps)
    return is_norm or bool(shifts and scales and shifts[0] < scales[-1])


def _scales(step: AffineOp) -> bool:
    return step.node.op_type in ("Mul", "Div")


def _shifts(step: AffineOp) -> bool:
    return step.node.op_type in ("Add", "Sub")


def read_affine_op(graph: OnnxGraph, node: NodeProto) -> AffineOp | None:
    """Return the node as an affine step, or None when it is none; raise Refusal for a norm that cannot be read."""
    if is_batch_norm(node):
        return read_batch_norm(graph, node)
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or node.domain not in ("", "ai.onnx") or graph.opset < 7:
        return None
    constants = [read_constant(graph, name) for name in node.input]
    if (constants[0] is None) == (constants[1] is None):
        return None
    at = 1 if constants[0] is None else 0
    operand = constants[at]
    source = str(node.input[1 - at])
    if operand is None or operand.dtype is None or (node.op_type == "Div" and at == 0):
        return None
    if _enlarges(graph, source, operand.values):
        return None
    axis = _channel_axis(graph, source, operand.values)
    if axis is None and operand.values.size != 1:
        return None
    affine = _elementwise(node, operand.values.reshape(-1), is_reversed=at == 0)
    return AffineOp(node, source, affine, axis)


def _elementwise(node: NodeProto, operand: Array, *, is_reversed: bool) -> Affine:
    ones, zeros = np.ones_like(operand), np.zeros_like(operand)
    if node.op_type == "Add":
        return Affine(ones, operand)
    if node.op_type == "Sub":
        return Affine(-ones, operand) if is_reversed else Affine(ones, -operand)
    if node.op_type == "Mul":
        return Affine(operand, zeros)
    if np.any(operand == 0):
        raise Refusal(RefusalCode.ZERO_DENOMINATOR, f"{node.name or node.output[0]!r} divides by zero")
    return Affine(1.0 / operand, zeros)


def _enlarges(graph: OnnxGraph, source: str, operand: Array) -> bool:
    """True when broadcasting the operand may make the result larger than the source: no affine of the source."""
    shape = graph.shape(source)
    if shape is None or operand.ndim > len(shape):
        return operand.ndim > 0
    facing = shape[len(shape) - operand.ndim :]
    return any(size not in (1, dim) for size, dim in zip(operand.shape, facing, strict=True))


def _channel_axis(graph: OnnxGraph, source: str, operand: Array) -> int | None:
    """Return the one axis of `source` along which `operand` varies, None for a scalar or when there are several."""
    shape = graph.shape(source)
    axes = [i for i, size in enumerate(operand.shape) if size != 1]
    return len(shape) - operand.ndim + axes[0] if shape is not None and len(axes) == 1 else None


def _statistic(graph: OnnxGraph, node: NodeProto, index: int) -> Array:
    name = ("", "scale", "bias", "mean", "variance")[index]
    constant = read_constant(graph, node.input[index])
    if constant is None:
        raise Refusal(RefusalCode.BATCH_STATS, f"its {name} {node.input[index]!r} is computed while the model runs")
    return constant.values
