"""The new parameters of an ONNX layer that takes a norm: Conv, ConvTranspose, Gemm in all its forms, MatMul.

Fifth in the ONNX flow, after `producers` and `consumers`. It says where each operator keeps its channels and calls
`core` for the arithmetic; a `Change` is worked out and rounded before anything is written, so that a refusal leaves no
trace.
"""

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from ..core import (
    Affine,
    Array,
    Layout,
    border_kernel,
    fold_consumer,
    fold_producer,
    in_channels,
    out_channels,
)
from ..refusals import Refusal, RefusalCode
from ..rounding import max_ulp, round_once
from .border import add_border, require_border
from .constants import Constant, read_constant
from .flow import TargetLayer
from .graph import OnnxGraph
from .operators import QUANTISED
from .passing import has_padding
from .protos import attributes, set_attribute


@dataclass(frozen=True)
class Change:
    """What a layer's parameters become.

    Attributes:
        layer: the node.
        weight_at: which of its inputs is the weight.
        weight: float64, not yet rounded, in the layer's own layout.
        bias: float64, in the shape in which the layer (or an Add after a MatMul) takes it.
        dtype: of both, as stored.
        ulp: largest distance of the stored values from these, in units in the last place.
        cancellation: largest (|s b| + |t|) / |b'|.
        border: (out, 1, *kernel), float64, what makes up for zero padding; None nearly always. See `border`.
    """

    layer: NodeProto
    weight_at: int
    weight: Array
    bias: Array
    dtype: str
    ulp: float
    cancellation: float
    border: Array | None = None


def change_producer(graph: OnnxGraph, target: TargetLayer) -> Change:
    """Return the change of a layer whose output the affine rescales.

    Raises:
        Refusal: axis when the affine runs over another axis, quantised, overridable, no-producer for a weight that is
            not constant, and what `core` refuses.
    """
    layer = target.layer
    is_second = layer.op_type in ("Gemm", "MatMul") and read_constant(graph, layer.input[1]) is None
    if is_second and read_constant(graph, layer.input[0]) is None:
        sparse = [name for name in layer.input if graph.is_sparse(name)]
        if sparse:
            raise Refusal(RefusalCode.DTYPE, f"weight {sparse[0]!r} of {layer.op_type} {layer.name!r} is sparse")
        raise Refusal(RefusalCode.NO_PRODUCER, f"{layer.op_type} {layer.name!r} multiplies two values of the data")
    if is_second and layer.op_type == "Gemm":
        raise Refusal(RefusalCode.AXIS, f"Gemm {layer.name!r} has its constant on the rows, the norm its columns")
    weight_at, layout = _weight_at(layer, 1 if is_second else 0)
    _require_axis(graph, target, str(layer.output[0]), weight_at)
    weight = _weight(graph, layer, weight_at)
    groups = _groups(layer, weight)
    affine = _fitted(target, out_channels(weight.values, layout, groups))
    bias = _bias(graph, layer, affine.channels)
    new_weight, new_bias = fold_producer(weight.values, bias, affine, layout, groups)
    return _change(layer, weight_at, new_weight, new_bias, weight, np.abs(affine.scale * bias) + np.abs(affine.shift))


def change_consumer(graph: OnnxGraph, target: TargetLayer, *, exact_padding: bool = False) -> Change:
    """Return the change of a layer whose data input the affine rescales.

    Args:
        graph: holds the layer.
        target: the layer and its affine.
        exact_padding: give a zero-padded Conv a correction at the border instead of refusing.

    Raises:
        Refusal: pad when the layer adds zeros that the affine would have shifted; otherwise as `change_producer`.
    """
    layer, fields = target.layer, attributes(target.layer)
    weight_at, layout = _weight_at(layer, target.data_input)
    if layer.op_type != "MatMul" and (target.data_input != 0 or fields.get("transA", 0)):
        reason = f"input {target.data_input} of {layer.op_type} {layer.name!r} does not hold its channels on axis 1"
        raise Refusal(RefusalCode.AXIS, reason)
    _require_axis(graph, target, str(layer.input[target.data_input]), weight_at)
    weight = _weight(graph, layer, weight_at)
    groups = _groups(layer, weight)
    affine, border = _fitted(target, in_channels(weight.values, layout, groups)), None
    if _shifts_into_padding(graph, layer, affine, exact_padding):
        border, affine = border_kernel(weight.values, affine, groups, layout), affine.without_shift()
    bias = _bias(graph, layer, out_channels(weight.values, layout, groups))
    new_weight, moved = fold_consumer(weight.values, None, affine, layout, groups)
    moved = float(fields.get("alpha", 1.0)) * moved if layer.op_type == "Gemm" else moved
    return _change(layer, weight_at, new_weight, bias + moved, weight, np.abs(bias) + np.abs(moved), border)


def apply(graph: OnnxGraph, change: Change) -> tuple[str, ...]:
    """Write the change into the graph and return remarks, such as that a shared weight now has its own copy."""
    layer, old = change.layer, str(change.layer.input[change.weight_at])
    stem = old[: -len("weight")] + "bias" if old.endswith("weight") else f"{old}_bias"
    notes: list[str] = []
    if layer.op_type == "MatMul":
        _add_bias_after(graph, layer, change, stem)
    else:
        notes += _write(graph, layer, 2, change.bias, change.dtype, stem)
        if change.border is not None:
            add_border(graph, layer, change.border, change.dtype, stem)
            notes.append(f"the border of the {layer.op_type} gets a correction: a convolution of one channel of ones")
        graph.sweep()  # a bias made from the weight's shape was a second reader of the weight
    if layer.op_type == "Gemm" and "beta" in attributes(layer):
        set_attribute(layer, "beta", 1.0)
    return (*_write(graph, layer, change.weight_at, change.weight, change.dtype, old), *notes)


def _write(graph: OnnxGraph, layer: NodeProto, index: int, exact: Array, dtype: str, wish: str) -> list[str]:
    """Store `exact` for input `index`: in place when nothing else reads the old tensor, else under a fresh name."""
    old = str(layer.input[index]) if len(layer.input) > index else ""
    if old in graph.initializers and len(graph.uses(old)) == 1 and old not in graph.outputs:
        graph.store(old, exact, dtype)
        return []
    name = graph.fresh(wish)
    graph.store(name, exact, dtype)
    is_shared = bool(old) and len(graph.uses(old)) > 1
    graph.set_input(layer, index, name)
    return [f"untied {old!r}, which others read"] if is_shared else []


def _add_bias_after(graph: OnnxGraph, layer: NodeProto, change: Change, wish: str) -> None:
    """Give a MatMul its bias as an Add; a bias of zeros needs none."""
    if not np.any(change.bias):
        return
    bias, output = graph.fresh(wish), str(layer.output[0])
    inner = graph.fresh(f"{output}_unbiased")
    graph.store(bias, change.bias, change.dtype)
    graph.rename_output(layer, output, inner)
    node = helper.make_node("Add", [inner, bias], [output], name=graph.fresh(f"{layer.name or output}_add_bias"))
    graph.insert_after(layer, node)


def _weight_at(layer: NodeProto, data: int) -> tuple[int, Layout]:
    """Return which input is the weight and how it is laid out, when input number `data` carries the data."""
    if layer.op_type in ("Conv", "ConvTranspose"):
        return 1, Layout.CONV if layer.op_type == "Conv" else Layout.CONV_TRANSPOSE
    if layer.op_type == "Gemm":
        return 1, Layout.LINEAR if attributes(layer).get("transB", 0) else Layout.MATMUL
    return (1, Layout.MATMUL) if data == 0 else (0, Layout.LINEAR)


def _require_axis(graph: OnnxGraph, target: TargetLayer, value: str, weight_at: int) -> None:
    """Raise Refusal unless the affine runs over the channels of `value`, the layer's output or data input."""
    axis, expected = target.flow.axis, 1
    if target.layer.op_type == "MatMul":
        expected = len(graph.shape(value) or ()) - (1 if weight_at == 1 else 2)
    if axis is not None and axis != expected:
        where = "an axis that is not known" if expected < 0 else f"axis {expected}"
        layer = f"{target.layer.op_type} {target.layer.name!r}"
        raise Refusal(RefusalCode.AXIS, f"the norm runs over another axis than {layer}, whose is {where}")


def _weight(graph: OnnxGraph, layer: NodeProto, index: int) -> Constant:
    name = str(layer.input[index])
    constant, producer = read_constant(graph, name), graph.producer(name)
    what = f"weight {name!r} of {layer.op_type} {layer.name!r}"
    if constant is None:
        is_quantised = producer is not None and producer.op_type in QUANTISED
        code = RefusalCode.QUANTISED if is_quantised else RefusalCode.NO_PRODUCER
        raise Refusal(code, f"{what} is no floating-point constant")
    is_matrix, rank = layer.op_type in ("MatMul", "Gemm"), constant.values.ndim
    if rank != 2 if is_matrix else rank < 3:
        raise Refusal(RefusalCode.AXIS, f"{what} has {rank} axes, not {'2' if is_matrix else '3 or more'}")
    if constant.dtype is None:
        raise Refusal(RefusalCode.DTYPE, f"{what} is no floating-point tensor")
    return constant


def _groups(layer: NodeProto, weight: Constant) -> int:
    """Return the number of groups, which share out the first axis of the weight."""
    groups, rows = int(attributes(layer).get("group", 1)), len(weight.values)
    if groups < 1 or rows % groups:
        reason = (
            f"{layer.op_type} {layer.name!r} has group={groups}, which does not divide the {rows} rows of its weight"
        )
        raise Refusal(RefusalCode.AXIS, reason)
    return groups


def _bias(graph: OnnxGraph, layer: NodeProto, channels: int) -> Array:
    """Return the layer's own bias as (channels,), times beta for a Gemm; zeros when it has none.

    Raises:
        Refusal: no-producer for a bias that is not constant, axis for a C of a Gemm that differs from row to row.
    """
    if layer.op_type == "MatMul" or len(layer.input) < 3 or not layer.input[2]:
        return np.zeros(channels)
    constant = read_constant(graph, layer.input[2])
    if constant is None or constant.dtype is None:
        reason = f"bias {layer.input[2]!r} of {layer.op_type} {layer.name!r} is no constant"
        raise Refusal(RefusalCode.NO_PRODUCER, reason)
    values = np.asarray(constant.values, np.float64)
    if layer.op_type == "Gemm":
        values = values * float(attributes(layer).get("beta", 1.0))
        if values.ndim == 2 and values.shape[0] != 1:
            raise Refusal(RefusalCode.AXIS, f"C of Gemm {layer.name!r} has shape {values.shape}: it differs per row")
    return np.broadcast_to(values.reshape(-1), (channels,)).copy()


def _fitted(target: TargetLayer, channels: int) -> Affine:
    affine, layer = target.flow.affine, target.layer
    if affine.channels not in (1, channels):
        reason = f"the norm has {affine.channels} channels, {layer.op_type} {layer.name!r} has {channels}"
        raise Refusal(RefusalCode.AXIS, reason)
    return affine.spread(channels)


def _shifts_into_padding(graph: OnnxGraph, layer: NodeProto, affine: Affine, exact_padding: bool) -> bool:
    """Return True when the layer needs a correction at its border, which then is allowed and possible."""
    if layer.op_type not in ("Conv", "ConvTranspose") or not np.any(affine.shift):
        return False
    if layer.op_type == "Conv" and not has_padding(layer):
        return False
    if layer.op_type == "ConvTranspose" and not exact_padding:
        raise Refusal(
            RefusalCode.PAD,
            f"ConvTranspose {layer.name!r} reaches its border positions with part of its kernel only, "
            "so that a shift before it is no constant after it",
            'pass padding="exact", or put the norm after the transposed convolution',
        )
    if not exact_padding:
        raise Refusal(
            RefusalCode.PAD, f"Conv {layer.name!r} pads with zeros, which the norm before it would have shifted"
        )
    require_border(graph, layer)
    return True


def _change(
    layer: NodeProto, at: int, weight: Array, bias: Array, old: Constant, kappa: Array, border: Array | None = None
) -> Change:
    """Return the change, rounded once for its figures; `kappa` is the bias' magnitude before anything cancelled."""
    assert old.dtype is not None
    written = (weight, bias) if border is None else (weight, bias, border)
    ulp = max(max_ulp(round_once(values, old.dtype), values, old.dtype) for values in written)
    cancelled = kappa[bias != 0] / np.abs(bias[bias != 0])
    column = bias[:, None] if layer.op_type == "MatMul" and at == 0 else bias  # as it broadcasts: for `W @ x`
    return Change(layer, at, weight, column, old.dtype, ulp, float(cancelled.max(initial=0.0)), border)
