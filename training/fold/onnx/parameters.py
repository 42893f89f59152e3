"""The new weights of an ONNX layer that takes a norm: Conv, ConvTranspose, Gemm in all its forms, MatMul.

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
from .graph import OnnxGraph
from .passing import QUANTISED, has_padding
from .producers import TargetLayer
from .protos import attributes, set_attribute


@dataclass(frozen=True)
class Change:
    """What a layer's parameters become.

    Attributes:
        layer: the node.
        weight_at: which of its inputs is the weight.
        weight: float64, not yet rounded, in the layer's own layout.
        bias: float64, in the shape in which the layer (or an Add behind a MatMul) takes it.
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
    layer, axis = target.layer, target.axis
    weight_at, layout = _output_layout(graph, layer, axis)
    weight, bias = _weight(graph, layer, weight_at), _bias(graph, layer)
    groups = int(attributes(layer).get("group", 1))
    affine = _fitted(target.affine, out_channels(weight.values, layout, groups), layer)
    vector = _bias_vector(layer, bias, affine.channels)
    new_weight, new_bias = fold_producer(weight.values, vector, affine, layout, groups)
    old_bias = np.zeros(affine.channels) if vector is None else vector
    kappa = np.abs(affine.scale * old_bias) + np.abs(affine.shift)
    return _change(layer, weight_at, new_weight, _bias_shape(layer, weight_at, new_bias), weight.dtype, kappa)


def change_consumer(graph: OnnxGraph, target: TargetLayer, *, exact_padding: bool = False) -> Change:
    """Return the change of a layer whose data input the affine rescales.

    Args:
        graph: holds the layer.
        target: the layer and its affine.
        exact_padding: give a zero-padded Conv a correction at the border instead of refusing.

    Raises:
        Refusal: pad when the layer adds zeros that the affine would have shifted; otherwise as `change_producer`.
    """
    layer = target.layer
    weight_at, layout = _input_layout(graph, layer, target.data, target.axis)
    weight, bias = _weight(graph, layer, weight_at), _bias(graph, layer)
    groups = int(attributes(layer).get("group", 1))
    affine = _fitted(target.affine, in_channels(weight.values, layout, groups), layer)
    border = None
    if _shifts_into_padding(graph, layer, affine, exact_padding):
        border, affine = border_kernel(weight.values, affine, groups), affine.without_shift()
    vector = _bias_vector(layer, bias, out_channels(weight.values, layout, groups))
    alpha = float(attributes(layer).get("alpha", 1.0)) if layer.op_type == "Gemm" else 1.0
    old_bias = np.zeros(out_channels(weight.values, layout, groups)) if vector is None else vector
    new_weight, moved = fold_consumer(weight.values, None, affine, layout, groups)
    new_bias = old_bias + alpha * moved
    kappa = np.abs(old_bias) + np.abs(alpha * moved)
    bias_as_read = _bias_shape(layer, weight_at, new_bias)
    return _change(layer, weight_at, new_weight, bias_as_read, weight.dtype, kappa, border)


def apply(graph: OnnxGraph, change: Change) -> tuple[str, ...]:
    """Write the change into the graph and return remarks, such as that a shared weight now has its own copy."""
    layer, old = change.layer, str(change.layer.input[change.weight_at])
    stem = old[: -len("weight")] + "bias" if old.endswith("weight") else f"{old}_bias"
    notes: list[str] = []
    if layer.op_type == "MatMul":
        _add_behind(graph, layer, change, stem)
    else:
        notes += _write(graph, layer, 2, change.bias, change.dtype, stem)
        if change.border is not None:
            add_border(graph, layer, change.border, change.dtype, stem)
            notes.append("the border of the padded Conv gets a correction: a convolution of one channel of ones")
        graph.sweep()  # a bias made from the weight's shape was a second reader of the weight
    if layer.op_type == "Gemm" and "beta" in attributes(layer):
        set_attribute(layer, "beta", 1.0)
    return (*_write(graph, layer, change.weight_at, change.weight, change.dtype, old), *notes)


def _write(graph: OnnxGraph, layer: NodeProto, index: int, exact: Array, dtype: str, wish: str) -> list[str]:
    """Store `exact` for input `index`: in place when nothing else reads the old tensor, else under a fresh name."""
    old = str(layer.input[index]) if len(layer.input) > index else ""
    is_own = old in graph.initializers and len(graph.uses(old)) == 1 and old not in graph.outputs
    if is_own:
        graph.store(old, exact, dtype)
        return []
    name = graph.fresh(wish)
    graph.store(name, exact, dtype)
    is_shared = bool(old) and len(graph.uses(old)) > 1
    graph.set_input(layer, index, name)
    return [f"untied {old!r}, which others read"] if is_shared else []


def _add_behind(graph: OnnxGraph, layer: NodeProto, change: Change, wish: str) -> None:
    """Give a MatMul its bias as an Add; a bias of zeros needs none."""
    if not np.any(change.bias):
        return
    bias, output = graph.fresh(wish), str(layer.output[0])
    inner = graph.fresh(f"{output}_unbiased")
    graph.store(bias, change.bias, change.dtype)
    graph.rename_output(layer, output, inner)
    node = helper.make_node("Add", [inner, bias], [output], name=graph.fresh(f"{layer.name or output}_add_bias"))
    graph.insert_after(layer, node)


def _output_layout(graph: OnnxGraph, layer: NodeProto, axis: int | None) -> tuple[int, Layout]:
    """Return which input is the weight and how it is laid out, for an affine on `axis` of the layer's output."""
    if layer.op_type in ("Conv", "ConvTranspose"):
        _require_axis(layer, axis, 1)
        return 1, Layout.CONV if layer.op_type == "Conv" else Layout.CONV_TRANSPOSE
    if layer.op_type == "Gemm":
        _require_axis(layer, axis, 1)
        if read_constant(graph, layer.input[1]) is None and read_constant(graph, layer.input[0]) is not None:
            raise Refusal(RefusalCode.AXIS, f"Gemm {layer.name!r} has its constant on the rows, the norm its columns")
        return 1, Layout.LINEAR if attributes(layer).get("transB", 0) else Layout.MATMUL
    rank = len(graph.shape(layer.output[0]) or ())
    weights = {i for i in (0, 1) if read_constant(graph, layer.input[i]) is not None}
    if 1 in weights:
        _require_axis(layer, axis, rank - 1 if rank else None)
        return 1, Layout.MATMUL
    if 0 in weights:
        _require_axis(layer, axis, rank - 2 if rank else None)
        return 0, Layout.LINEAR
    return 1, Layout.MATMUL


def _input_layout(graph: OnnxGraph, layer: NodeProto, data: int, axis: int | None) -> tuple[int, Layout]:
    """Return the same for an affine on `axis` of the layer's input number `data`."""
    if layer.op_type in ("Conv", "ConvTranspose"):
        _require_axis(layer, axis if data == 0 else -1, 1)
        return 1, Layout.CONV if layer.op_type == "Conv" else Layout.CONV_TRANSPOSE
    rank = len(graph.shape(layer.input[data]) or ())
    if layer.op_type == "Gemm":
        _require_axis(layer, axis if data == 0 and not attributes(layer).get("transA", 0) else -1, 1)
        return 1, Layout.LINEAR if attributes(layer).get("transB", 0) else Layout.MATMUL
    if data == 0:
        _require_axis(layer, axis, rank - 1 if rank else None)
        return 1, Layout.MATMUL
    _require_axis(layer, axis, rank - 2 if rank > 1 else None)
    return 0, Layout.LINEAR


def _require_axis(layer: NodeProto, axis: int | None, expected: int | None) -> None:
    if axis is not None and axis != expected:
        where = "an axis that is not known" if expected is None else f"axis {expected}"
        raise Refusal(
            RefusalCode.AXIS, f"the norm runs over another axis than {layer.op_type} {layer.name!r}, whose is {where}"
        )


def _weight(graph: OnnxGraph, layer: NodeProto, index: int) -> Constant:
    name = str(layer.input[index])
    constant = read_constant(graph, name)
    producer = graph.producer(name)
    if constant is None:
        is_quantised = producer is not None and producer.op_type in QUANTISED
        code = RefusalCode.QUANTISED if is_quantised else RefusalCode.NO_PRODUCER
        raise Refusal(code, f"weight {name!r} of {layer.op_type} {layer.name!r} is no floating-point constant")
    if layer.op_type in ("MatMul", "Gemm") and constant.values.ndim != 2:
        raise Refusal(RefusalCode.AXIS, f"weight {name!r} of {layer.op_type} has {constant.values.ndim} axes, not 2")
    if constant.dtype is None:
        raise Refusal(
            RefusalCode.DTYPE, f"weight {name!r} of {layer.op_type} {layer.name!r} is no floating-point tensor"
        )
    return constant


def _bias(graph: OnnxGraph, layer: NodeProto) -> Constant | None:
    """Return the layer's own bias; for a Gemm C, whatever its shape."""
    if layer.op_type == "MatMul" or len(layer.input) < 3 or not layer.input[2]:
        return None
    constant = read_constant(graph, layer.input[2])
    if constant is None or constant.dtype is None:
        raise Refusal(
            RefusalCode.NO_PRODUCER, f"bias {layer.input[2]!r} of {layer.op_type} {layer.name!r} is no constant"
        )
    return constant


def _bias_vector(layer: NodeProto, bias: Constant | None, channels: int) -> Array | None:
    """Return the bias as (channels,), times beta for a Gemm.

    Raises:
        Refusal: axis for a C that differs from row to row.
    """
    if bias is None:
        return None
    values = np.asarray(bias.values, np.float64)
    if layer.op_type == "Gemm":
        values = values * float(attributes(layer).get("beta", 1.0))
        if values.ndim == 2 and values.shape[0] != 1:
            raise Refusal(RefusalCode.AXIS, f"C of Gemm {layer.name!r} has shape {values.shape}: it differs per row")
    return np.broadcast_to(values.reshape(-1), (channels,)).copy()


def _bias_shape(layer: NodeProto, weight_at: int, bias: Array) -> Array:
    """Return the bias as it broadcasts: a column for `W @ x`, a vector otherwise."""
    return bias[:, None] if layer.op_type == "MatMul" and weight_at == 0 else bias


def _fitted(affine: Affine, channels: int, layer: NodeProto) -> Affine:
    if affine.channels not in (1, channels):
        raise Refusal(
            RefusalCode.AXIS, f"the norm has {affine.channels} channels, {layer.op_type} {layer.name!r} has {channels}"
        )
    return affine.spread(channels)


def _shifts_into_padding(graph: OnnxGraph, layer: NodeProto, affine: Affine, exact_padding: bool) -> bool:
    """Return True when the layer needs a correction at its border, which then is allowed and possible."""
    if layer.op_type not in ("Conv", "ConvTranspose") or not np.any(affine.shift):
        return False
    if layer.op_type == "ConvTranspose":
        raise Refusal(
            RefusalCode.PAD,
            f"ConvTranspose {layer.name!r} reaches its border positions with part of its kernel only, "
            "so that a shift before it is no constant behind it",
            "put the norm behind the transposed convolution",
        )
    if not has_padding(layer):
        return False
    if not exact_padding:
        raise Refusal(
            RefusalCode.PAD, f"Conv {layer.name!r} pads with zeros, which the norm before it would have shifted"
        )
    require_border(graph, layer)
    return True


def _change(
    layer: NodeProto,
    at: int,
    weight: Array,
    bias: Array,
    dtype: str | None,
    kappa: Array,
    border: Array | None = None,
) -> Change:
    assert dtype is not None
    written = (weight, bias) if border is None else (weight, bias, border)
    ulp = max(max_ulp(round_once(values, dtype), values, dtype) for values in written)
    flat = np.abs(bias.reshape(-1))
    cancelled = kappa[flat > 0] / flat[flat > 0]
    return Change(layer, at, weight, bias, dtype, ulp, float(cancelled.max(initial=0.0)), border)
