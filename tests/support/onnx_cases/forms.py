"""ONNX cases about how a norm is written: by hand, with constants in many forms, with statistics at their limits."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support.onnx_cases.net import Case, Net


def _by_hand(form: str, shape: tuple[int, ...] = (1, 6, 1, 1), linear: bool = False) -> onnx.ModelProto:
    """A hand-written norm as it is exported: (x - mean) / sqrt(var + eps) * gamma + beta."""
    net = Net()
    if linear:
        h = net.node("Gemm", [net.input("x", "N", 5), net.constant("w", 5, 6), net.constant("b", 6)])
    else:
        h = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3), net.constant("b", 6)])
    gamma, beta, mean, var = net.statistics("bn", 6)
    for name in (gamma, beta, mean, var):
        net.tensors[name] = net.tensors[name].reshape(shape)
    eps = net.put("eps", 1e-5, np.float32)
    if form == "scale and shift":
        net.output(net.node("Add", [net.node("Mul", [gamma, h]), beta], "y"))
        return net.model()
    h = net.node("Sub", [h, mean])
    deviation = net.node("Sqrt", [net.node("Add", [var, eps])])
    if form == "reciprocal":
        h = net.node("Mul", [h, net.node("Reciprocal", [deviation])])
    else:
        h = net.node("Div", [h, deviation])
    net.output(net.node("Add", [net.node("Mul", [gamma, h]), beta], "y"))
    return net.model()


def _per_pixel() -> onnx.ModelProto:
    net = Net()
    h = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    h = net.node("Sub", [h, net.constant("mean", 1, 6, 7, 7)])
    net.output(net.norm(net.node("Mul", [h, net.constant("scale", 1, 1, 7, 7)]), 6, "y"))
    return net.model()


def _along_width() -> onnx.ModelProto:
    """A statistic of shape (7,) runs over the width of a map of 7 channels, not over its channels."""
    net = Net()
    h = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 7, 4, 3, 3)])
    h = net.node("Sub", [h, net.constant("mean", 7)])
    net.output(net.node("Mul", [h, net.constant("scale", 7)], "y"))
    return net.model()


def _normalised_input(padding: int) -> onnx.ModelProto:
    net = Net()
    h = net.node("Div", [net.input("x", "N", 3, 9, 9), net.put("full", 255.0, np.float32)])
    h = net.node("Sub", [h, net.put("mean", np.array([0.48, 0.45, 0.4]).reshape(3, 1, 1), np.float32)])
    h = net.node("Div", [h, net.put("deviation", np.array([0.22, 0.23, 0.24]).reshape(1, 3, 1, 1), np.float32)])
    net.output(net.node("Conv", [h, net.constant("w", 6, 3, 3, 3)], "y", pads=[padding] * 4))
    return net.model()


def _constant_nodes() -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    stats = net.statistics("bn", 6)
    for name in [*stats, "w"]:
        tensor = numpy_helper.from_array(net.tensors.pop(name), name)
        net.nodes.insert(0, helper.make_node("Constant", [], [name], name=f"{name}_node", value=tensor))
    net.output(net.node("BatchNormalization", [c, *stats], "y"))
    return net.model()


def _zero_bias_from_shape() -> onnx.ModelProto:
    """What PyTorch's exporter writes for a convolution without bias, before it optimises."""
    net = Net()
    x, w = net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)
    zero = net.node("CastLike", [net.put("zero", 0.0, np.float32), x])
    bias = net.node("Expand", [zero, net.node("Shape", [w], start=0, end=1)])
    net.output(net.norm(net.node("Conv", [x, w, bias]), 6, "y"))
    return net.model()


def _transposed_weight() -> onnx.ModelProto:
    net = Net()
    w = net.node("Transpose", [net.constant("w", 6, 5)], perm=[1, 0])
    net.output(net.norm(net.node("MatMul", [net.input("x", "N", 5), w]), 6, "y"))
    return net.model()


def _statistics(**changes: float) -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    net.output(net.norm(c, 6, "y", prefix="bn"))
    for name, value in changes.items():
        net.tensors[f"bn_{name}"][2] = value  # type: ignore[index]
    return net.model()


def forms() -> Iterator[Case]:
    yield Case("by hand: Sub, Div, Mul, Add", lambda: _by_hand("divide"))
    yield Case("by hand: (C, 1, 1)", lambda: _by_hand("divide", (6, 1, 1)))
    yield Case("by hand: reciprocal deviation", lambda: _by_hand("reciprocal"))
    yield Case("by hand: after Gemm", lambda: _by_hand("divide", (1, 6), linear=True))
    yield Case("by hand: Mul, Add", lambda: _by_hand("scale and shift"))
    yield Case("by hand: per pixel, then norm", _per_pixel, "unknown-op", 1)
    yield Case("by hand: along the width", _along_width, "axis", 0)
    yield Case("normalised input -> Conv", lambda: _normalised_input(0))
    yield Case("normalised input -> padded Conv", lambda: _normalised_input(1), "pad", 0)
    yield Case("parameters are Constant nodes", _constant_nodes)
    yield Case("weight behind a Transpose", _transposed_weight)
    yield Case("bias of zeros from the weight's shape", _zero_bias_from_shape)
    yield Case("scale 0 in one channel", lambda: _statistics(scale=0.0))
    yield Case("variance 0 in one channel", lambda: _statistics(var=0.0))
    yield Case("mean 1e6 in one channel", lambda: _statistics(mean=1e6))
    yield Case("NaN in one channel", lambda: _statistics(mean=np.nan), "non-finite", 1)
    yield Case("negative variance", lambda: _statistics(var=-1.0), "zero-denominator", 1)
    yield Case("overflow", lambda: _statistics(scale=3e38, var=1e-9), "overflow", 1)
