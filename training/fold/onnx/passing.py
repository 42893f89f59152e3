"""The ONNX operations that a per-channel affine may pass, and under which conditions.

The closed table that `producers` and `consumers` go by: `op(s x + t) = s op(x) + t` holds for an operation exactly when
each element of its output is a copy of one element or a mean of several of one channel, or the largest or smallest of
several where s is not negative. Nothing else is passed.
Source of the conditions: the identity itself; each is checked in float64 by the tests.
"""

from collections.abc import Callable

import numpy as np
from onnx import NodeProto

from ..core import Affine
from ..refusals import Refusal, RefusalCode
from .constants import integers_at, read_constant
from .graph import OnnxGraph
from .operators import ACTIVATIONS, CONTROL_FLOW, QUANTISED
from .protos import attributes, label, operation

Rule = Callable[[OnnxGraph, NodeProto, Affine, int | None], None]


def require_passing(graph: OnnxGraph, node: NodeProto, affine: Affine, axis: int | None) -> None:
    """Return when the affine along `axis` passes through `node`, whose axes stay where they are.

    Args:
        graph: holds the node.
        node: the operation between norm and layer.
        affine: what has to pass.
        axis: channel axis of the node's first input and output, None for a scalar affine.

    Raises:
        Refusal: with the code that says what stands in the way.
    """
    rule = _RULES.get(operation(node))
    if rule is None:
        raise blocked(node)
    rule(graph, node, affine, axis)


def blocked(node: NodeProto) -> Refusal:
    """Return the refusal for an operation that lets no affine pass."""
    what = f"{node.op_type} {label(node)!r}"
    if not operation(node):
        return Refusal(RefusalCode.UNKNOWN_OP, f"{what} is of the domain {node.domain!r}, whose meaning is not known")
    if node.op_type in CONTROL_FLOW:
        return Refusal(RefusalCode.CONTROL_FLOW, f"{what} decides while the model runs")
    if node.op_type in ("LpPool", "GlobalLpPool"):
        return Refusal(RefusalCode.POOL, f"{what} does not average")
    if node.op_type in ("Cast", "CastLike"):
        return Refusal(RefusalCode.DTYPE, f"{what} changes the dtype between the norm and the weights")
    code = RefusalCode.UNKNOWN_OP
    if node.op_type in QUANTISED | ACTIVATIONS:
        code = RefusalCode.QUANTISED if node.op_type in QUANTISED else RefusalCode.ACTIVATION_BETWEEN
    return Refusal(code, f"{what} stands between the norm and the weights")


def has_padding(node: NodeProto) -> bool:
    """True when a convolution or a pool may read beyond its input."""
    fields = attributes(node)
    same = fields.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER")
    return same or any(fields.get("pads", ()))


def _copies(graph: OnnxGraph, node: NodeProto, affine: Affine, axis: int | None) -> None:
    return


def _alone(graph: OnnxGraph, node: NodeProto, affine: Affine, axis: int | None) -> None:
    """Of a single value it is a copy."""
    if len(node.input) > 1:
        raise blocked(node)


def _cast(graph: OnnxGraph, node: NodeProto, affine: Affine, axis: int | None) -> None:
    """A cast to the dtype that the values have is a copy, as tools for half precision leave it."""
    before, after = graph.dtype(node.input[0]), graph.dtype(node.output[0])
    if before is None or before != after:
        raise blocked(node)


def _dropout(graph: OnnxGraph, node: NodeProto, affine: Affine, axis: int | None) -> None:
    if len(node.output) > 1 and graph.uses(node.output[1]):
        raise Refusal(RefusalCode.UNKNOWN_OP, f"the mask of Dropout {node.name!r} is used")
    if len(node.input) > 2 and node.input[2]:
        training = read_constant(graph, node.input[2])
        if training is None or bool(np.any(training.values)):
            raise Refusal(RefusalCode.TRAINING, f"Dropout {node.name!r} may run in training mode")


def _average_pool(graph: OnnxGraph, node: NodeProto, affine: Affine, axis: int | None) -> None:
    _require_channels(node, axis)
    counts = attributes(node).get("count_include_pad", 0)
    if counts and (has_padding(node) or attributes(node).get("ceil_mode", 0)):
        raise Refusal(RefusalCode.POOL, f"AveragePool {node.name!r} counts its padding")


def _max_pool(graph: OnnxGraph, node: NodeProto, affine: Affine, axis: int | None) -> None:
    _require_channels(node, axis)
    if len(node.output) > 1 and node.output[1]:
        raise Refusal(RefusalCode.POOL, f"MaxPool {node.name!r} returns indices")
    _require_no_turn(node, affine)


def _require_no_turn(node: NodeProto, affine: Affine) -> None:
    """A largest value is the smallest one once its sign has changed."""
    if np.any(affine.scale < 0):
        count = int(np.sum(affine.scale < 0))
        raise Refusal(RefusalCode.SIGN, f"{count} of {affine.channels} scales are negative before {node.op_type}")


def _global_pool(graph: OnnxGraph, node: NodeProto, affine: Affine, axis: int | None) -> None:
    _require_channels(node, axis)


def _reduce_mean(graph: OnnxGraph, node: NodeProto, affine: Affine, axis: int | None) -> None:
    """A mean over other axes passes; where it takes them away, they have to stand behind the channels."""
    fields = attributes(node)
    axes = integers_at(graph, node, 1) or list(fields.get("axes", []))
    shape = graph.shape(node.input[0])
    if axis is None and axes:
        return
    is_other = bool(axes) and shape is not None and axis not in {a % len(shape) for a in axes}
    moves = not is_other or (not fields.get("keepdims", 1) and any(a % len(shape or ()) < (axis or 0) for a in axes))
    if moves:
        raise Refusal(RefusalCode.AXIS, f"{node.op_type} {node.name!r} does not keep the channel axis in its place")


def _reduce_max(graph: OnnxGraph, node: NodeProto, affine: Affine, axis: int | None) -> None:
    _reduce_mean(graph, node, affine, axis)
    _require_no_turn(node, affine)


def _pad(graph: OnnxGraph, node: NodeProto, affine: Affine, axis: int | None) -> None:
    """Padding with copies passes, and so does negative padding, which cuts off."""
    fields, shape = attributes(node), graph.shape(node.input[0])
    pads = integers_at(graph, node, 1) or list(fields.get("pads", []))
    if fields.get("mode", b"constant") == b"constant" and (not pads or max(pads) > 0):
        raise Refusal(RefusalCode.PAD, f"Pad {node.name!r} adds a constant around the values")
    axes = list(range(len(pads) // 2))
    if len(node.input) > 3 and node.input[3]:
        named = integers_at(graph, node, 3)
        if not named or shape is None:
            raise Refusal(RefusalCode.PAD, f"Pad {node.name!r} names its axes in an input")
        axes = [a % len(shape) for a in named]
    sides = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    if not pads or (axis is not None and any(sides.get(axis, ()))):
        raise Refusal(RefusalCode.AXIS, f"Pad {node.name!r} does not keep the channel axis as it is")


def _copies_along_others(graph: OnnxGraph, node: NodeProto, affine: Affine, axis: int | None) -> None:
    """Tile copies; along the channels it must not."""
    before, after = graph.shape(node.input[0]), graph.shape(node.output[0])
    if axis is None:
        return
    is_kept = before is not None and after is not None and len(before) == len(after)
    if not is_kept or not isinstance((before or ())[axis], int) or (before or ())[axis] != (after or ())[axis]:
        raise Refusal(RefusalCode.AXIS, f"{node.op_type} {node.name!r} does not keep the channel axis as it is")


def _gather(graph: OnnxGraph, node: NodeProto, affine: Affine, axis: int | None) -> None:
    """Whatever it picks along another axis is a copy; only a list of indices keeps the axes in their places."""
    shape, fields = graph.shape(node.input[1]) or (), attributes(node)
    is_list = shape[1:] == (1,) and not fields.get("batch_dims", 0) if node.op_type == "GatherND" else len(shape) == 1
    if axis is not None and not is_list:
        raise Refusal(RefusalCode.AXIS, f"{node.op_type} {node.name!r} does not keep the channel axis in its place")


def _resize(graph: OnnxGraph, node: NodeProto, affine: Affine, axis: int | None) -> None:
    """Nearest copies, linear averages with weights that sum to one; extrapolation and cubic overshoot are left out."""
    fields = attributes(node)
    means = fields.get("mode", b"nearest") in (b"nearest", b"linear", b"bilinear")
    if not means or fields.get("coordinate_transformation_mode", b"half_pixel") == b"tf_crop_and_resize":
        raise Refusal(RefusalCode.UNKNOWN_OP, f"{node.op_type} {node.name!r} is neither nearest nor linear")
    if axis is None:
        return
    before, after = graph.shape(node.input[0]), graph.shape(node.output[0])
    if before is None or after is None or before[axis] != after[axis]:
        raise Refusal(RefusalCode.AXIS, f"{node.op_type} {node.name!r} does not keep the channel axis as it is")


def _require_channels(node: NodeProto, axis: int | None) -> None:
    if axis not in (None, 1):
        raise Refusal(RefusalCode.AXIS, f"{node.op_type} {node.name!r} runs over axis {axis}, the one of the norm")


_RULES: dict[str, Rule] = {
    "Identity": _copies,
    "Cast": _cast,
    "CastLike": _cast,
    "Dropout": _dropout,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool,
    "MaxPool": _max_pool,
    "GlobalMaxPool": _max_pool,
    "ReduceMean": _reduce_mean,
    "ReduceMax": _reduce_max,
    "ReduceMin": _reduce_max,
    "Tile": _copies_along_others,
    "Max": _alone,
    "Mean": _alone,
    "Min": _alone,
    "Sum": _alone,
    "Pad": _pad,
    "Gather": _gather,
    "GatherND": _gather,
    "SequenceAt": _copies,
    "Slice": _copies,
    "Split": _copies,
    "Resize": _resize,
    "Upsample": _resize,
}
