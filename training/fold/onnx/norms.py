"""Finds the norms of an ONNX graph and reads each as a per-channel affine on a named axis.

Third in the ONNX flow: a BatchNormalization node, the Sub, Div, Mul, Add that a hand-written norm exports to, or a
chain of both. It does not look at what makes the norm's input or reads its output; `producers` and `consumers` do.
"""

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, defs

from ..core import Affine, Array
from ..failures import during
from ..refusals import Refusal, RefusalCode
from .axes import SHAPE_OPERATIONS, Axes
from .constants import read_constant
from .graph import OnnxGraph
from .protos import attributes, label, operation

_DEFAULT_EPSILON = float(np.float32(1e-5))
_BATCH_NORM = "BatchNormalization"
_NORMALISED = frozenset({"InstanceNormalization", "GroupNormalization", "LayerNormalization", "Div", "Mul"})
_SHIFTS, _SCALES = ("Add", "Sub"), ("Mul", "Div")


@dataclass(frozen=True)
class AffineOp:
    """One node of a norm: `node` reads `source` and computes `affine` along `axes`; () is every element alike."""

    node: NodeProto
    source: str
    affine: Affine
    axes: Axes


@dataclass(frozen=True)
class Norm:
    """A chain of affine operations as one affine from `source` to `result`.

    Attributes:
        ops: in data order, each value between them read once.
        axes: the channel axis, not negative; () when one scalar serves every element, several for one of each position.
    """

    ops: tuple[AffineOp, ...]
    affine: Affine
    axes: Axes

    @property
    def source(self) -> str:
        """The value that the norm reads."""
        return self.ops[0].source

    @property
    def result(self) -> str:
        """The value that the norm makes."""
        return str(self.ops[-1].node.output[0])

    @property
    def nodes(self) -> list[NodeProto]:
        """The norm's nodes in data order."""
        return [op.node for op in self.ops]

    @property
    def batch_norms(self) -> list[NodeProto]:
        """Those of its nodes that are BatchNormalization."""
        return [node for node in self.nodes if operation(node) == _BATCH_NORM]

    @property
    def reported_nodes(self) -> list[NodeProto]:
        """The nodes that the report names: each BatchNormalization, or the first node of a chain without one."""
        return self.batch_norms or self.nodes[:1]

    @property
    def kind(self) -> str:
        """What the report calls it."""
        return "batch_norm" if self.batch_norms else "affine chain"

    @property
    def scales_and_shifts(self) -> bool:
        """True when the chain does both, so that it may be a norm written by hand."""
        kinds = {node.op_type for node in self.nodes}
        return bool(kinds & {*_SHIFTS} and kinds & {*_SCALES})

    @property
    def centres(self) -> bool:
        """True when something is subtracted before something is scaled, which is what makes it a norm."""
        kinds = [node.op_type for node in self.nodes]
        first_shift = next((i for i, kind in enumerate(kinds) if kind in _SHIFTS), len(kinds))
        return bool(self.batch_norms) or any(kind in _SCALES for kind in kinds[first_shift:])


def find_norms(graph: OnnxGraph) -> list[tuple[NodeProto, Norm | Refusal]]:
    """Return every norm of the main graph in order: what it computes, or why it cannot be read.

    Elementwise operations that scale and shift count as one, too: a norm may have been exported that way.
    """
    norms: list[tuple[NodeProto, Norm | Refusal]] = []
    taken: set[int] = set()
    for node in graph.nodes:
        if id(node) in taken:
            continue
        try:
            with during(f"reading {node.op_type} {node.name!r}"):
                op = read_affine_op(graph, node)
        except Refusal as refusal:
            if operation(node) == _BATCH_NORM or _has_other_half_next_to_it(graph, node):
                norms.append((node, refusal))
                taken.update(id(use.node) for use in graph.uses(node.output[0]))  # one norm, one report
            continue
        if op is None:
            continue
        norm = _longest_chain(graph, op)
        taken.update(id(node) for node in norm.nodes)
        if norm.batch_norms or norm.scales_and_shifts:
            norms.append((norm.reported_nodes[0], norm))
    return norms


def ends_a_normalisation(graph: OnnxGraph, norm: Norm) -> bool:
    """True for scale and shift after another normalisation, such as a GroupNorm's: they belong to that."""
    node = None if norm.centres else graph.producer(norm.source)
    while node is not None and node.op_type in SHAPE_OPERATIONS:
        node = graph.producer(str(node.input[0]))
    return node is not None and node.op_type in _NORMALISED


def read_affine_op(graph: OnnxGraph, node: NodeProto) -> AffineOp | None:
    """Return the node as an affine operation, or None when it is none.

    Raises:
        Refusal: it is a norm that cannot be read.
    """
    if operation(node) == _BATCH_NORM:
        return _read_batch_norm(graph, node)
    if operation(node) not in _SHIFTS + _SCALES or graph.opset < 7:
        return None
    constants = [read_constant(graph, name) for name in node.input]
    if (constants[0] is None) == (constants[1] is None):
        return None
    at = 1 if constants[0] is None else 0
    operand, source = constants[at], str(node.input[1 - at])
    if operand is None or operand.dtype is None or (node.op_type == "Div" and at == 0):
        return None
    if _enlarges(graph, source, operand.values):
        return None
    axis = _channel_axis(graph, source, operand.values)
    if axis is None and operand.values.size != 1:
        return None
    affine = _elementwise(node, operand.values.reshape(-1), is_reversed=at == 0)
    return AffineOp(node, source, affine, () if axis is None else (axis,))


def composed(first: Affine, first_axes: Axes, second: Affine, second_axes: Axes) -> tuple[Affine, Axes] | None:
    """Return two affines, one after the other, as one and its axes; None when they run over different axes."""
    channels = max(first.channels, second.channels)
    if {first.channels, second.channels} - {1, channels} or len({first_axes, second_axes} - {()}) > 1:
        return None
    return first.spread(channels).then(second.spread(channels)), first_axes or second_axes


def _read_batch_norm(graph: OnnxGraph, node: NodeProto) -> AffineOp:
    """Return a BatchNormalization of opset 7 or later in inference mode as an affine on axis 1.

    Raises:
        Refusal: training-mode, spatial, batch-stats, overridable, and what `Affine.from_batch_norm` refuses.
    """
    fields = attributes(node)
    revision = defs.get_schema(_BATCH_NORM, graph.opset).since_version
    if not 7 <= revision <= 15:
        reason = f"BatchNormalization of opset {graph.opset} is that of opset {revision}; known are those of 7 to 15"
        raise Refusal(RefusalCode.UNKNOWN_OP, reason)
    if fields.get("training_mode", 0):
        raise Refusal(RefusalCode.TRAINING_MODE, "training_mode is 1: it normalises by each batch's own statistics")
    shape = graph.shape(node.input[0])
    if shape is not None and len(shape) < 2:
        raise Refusal(RefusalCode.AXIS, f"its input has {len(shape)} axes, so that no axis 1 holds its channels")
    if any(node.output[1:]):
        raise Refusal(RefusalCode.TRAINING_MODE, f"it has {len(node.output)} outputs, as in training; expected one")
    gamma, beta, mean, var = (_statistic(graph, node, i) for i in range(1, 5))
    shapes = {statistic.shape for statistic in (gamma, beta, mean, var)}
    if len(shapes) > 1 or not mean.size:
        raise Refusal(RefusalCode.AXIS, f"its scale, bias, mean and variance have the shapes {sorted(shapes)}")
    epsilon = float(fields.get("epsilon", _DEFAULT_EPSILON))
    affine = Affine.from_batch_norm(mean, var, gamma, beta, epsilon)
    if mean.ndim > 1:
        affine, mean = _once_per_channel(affine, mean)
    return AffineOp(node, str(node.input[0]), affine, tuple(range(1, mean.ndim + 1)))


def _once_per_channel(affine: Affine, mean: Array) -> tuple[Affine, Array]:
    """Return the affine of a norm with statistics of each position (spatial=0) for its channels, if those are alike."""
    rows = np.arange(affine.channels).reshape(len(mean), -1)
    each = affine.pick(rows[:, 0])
    alike = [affine.pick(column) for column in rows.T]
    if all(np.array_equal([one.scale, one.shift], [each.scale, each.shift]) for one in alike):
        return each, mean.reshape(len(mean), -1)[:, 0]
    return affine, mean


def _statistic(graph: OnnxGraph, node: NodeProto, index: int) -> Array:
    name = ("", "scale", "bias", "mean", "variance")[index]
    constant = read_constant(graph, node.input[index])
    if constant is None and graph.is_sparse(node.input[index]):
        raise Refusal(RefusalCode.DTYPE, f"its {name} {node.input[index]!r} is sparse")
    if constant is None and node.input[index] in graph.constants:
        raise Refusal(
            RefusalCode.UNKNOWN_OP, f"its {name} {node.input[index]!r} is a constant that cannot be worked out"
        )
    if constant is None:
        raise Refusal(RefusalCode.BATCH_STATS, f"its {name} {node.input[index]!r} is computed while the model runs")
    return constant.values


def _elementwise(node: NodeProto, operand: Array, *, is_reversed: bool) -> Affine:
    ones, zeros = np.ones_like(operand), np.zeros_like(operand)
    if node.op_type == "Add":
        return Affine(ones, operand)
    if node.op_type == "Sub":
        return Affine(-ones, operand) if is_reversed else Affine(ones, -operand)
    if node.op_type == "Mul":
        return Affine(operand, zeros)
    if np.any(operand == 0):
        raise Refusal(RefusalCode.ZERO_DENOMINATOR, f"{label(node)!r} divides by zero")
    return Affine(1.0 / operand, zeros)


def _longest_chain(graph: OnnxGraph, first: AffineOp) -> Norm:
    """Return the norm that starts with `first` and goes on as long as one reader on the same axis follows another."""
    ops, affine, axes = [first], first.affine, first.axes
    while True:
        result = str(ops[-1].node.output[0])
        uses = graph.readers(result)
        if result in graph.outputs or len(uses) != 1 or uses[0].index < 0:
            break
        try:
            op = read_affine_op(graph, uses[0].node)
        except Refusal:
            break  # a BatchNormalization that cannot be read is reported by itself
        both = None if op is None or op.source != result else composed(affine, axes, op.affine, op.axes)
        if op is None or both is None:
            break
        affine, axes = both
        ops.append(op)
    return Norm(tuple(ops), affine, axes)


def _has_other_half_next_to_it(graph: OnnxGraph, node: NodeProto) -> bool:
    """True when an elementwise node that cannot be read has the other half of a norm right before or after it."""
    other = _SCALES if node.op_type in _SHIFTS else _SHIFTS
    neighbours = [graph.producer(name) for name in node.input] + [use.node for use in graph.uses(node.output[0])]
    return any(one is not None and one.op_type in other for one in neighbours)


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
