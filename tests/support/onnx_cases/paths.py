"""ONNX cases about the way from a norm back to its layer: what stands between them, and where several layers meet."""

from collections.abc import Iterator

import numpy as np
import onnx

from tests.support.onnx_cases.net import Case, Net


def _between_nodes(op: str, positive: bool = False, **attributes: object) -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 10, 10), net.constant("w", 6, 4, 3, 3), net.constant("b", 6)])
    extra = [net.put(f"p{i}", v) for i, v in enumerate(attributes.pop("extra", []))]  # type: ignore[arg-type, var-annotated]
    y = net.norm(net.node(op, [c, *extra], **attributes), 6, "y", prefix="bn")
    if positive:
        net.tensors["bn_scale"] = np.abs(net.tensors["bn_scale"])  # type: ignore[type-var]
    net.output(y)
    return net.model()


def _norm_twice(between: str = "") -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    first = net.norm(c, 6)
    first = net.node(between, [first]) if between else first
    net.output(net.norm(first, 6, "y"))
    return net.model()


def _joined(op: str, second: str) -> onnx.ModelProto:
    net = Net()
    x = net.input("x", "N", 6, 9, 9)
    one = net.node("Conv", [x, net.constant("w1", 6, 6, 3, 3), net.constant("b1", 6)], pads=[1] * 4)
    two = x
    if second != "identity":
        two = net.node("Conv", [x, net.constant("w2", 6, 6, 1, 1), net.constant("b2", 6)])
    if second == "relu":
        two = net.node("Relu", [two])
    attributes = {"axis": 1} if op == "Concat" else {}
    net.output(net.norm(net.node(op, [one, two], **attributes), 12 if op == "Concat" else 6, "y"))
    return net.model()


def between() -> Iterator[Case]:
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    padded = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    yield Case("norm twice", _norm_twice)
    yield Case("norm, Dropout, norm", lambda: _norm_twice("Dropout"))
    yield Case("Identity between", lambda: _between_nodes("Identity"))
    yield Case("Dropout between", lambda: _between_nodes("Dropout"))
    yield Case("AveragePool between", lambda: _between_nodes("AveragePool", **pool))
    yield Case("AveragePool, padding not counted", lambda: _between_nodes("AveragePool", **padded))
    yield Case(
        "AveragePool, padding counted", lambda: _between_nodes("AveragePool", count_include_pad=1, **padded), "pool", 1
    )
    yield Case("GlobalAveragePool between", lambda: _between_nodes("GlobalAveragePool"))
    yield Case("MaxPool, scales positive", lambda: _between_nodes("MaxPool", positive=True, **pool))
    yield Case("MaxPool, scales of both signs", lambda: _between_nodes("MaxPool", **pool), "sign", 1)
    yield Case("LpPool between", lambda: _between_nodes("LpPool", **pool), "pool", 1)
    sizes = {"extra": [np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)]}
    yield Case("Resize nearest between", lambda: _between_nodes("Resize", mode="nearest", **sizes))
    yield Case("Resize linear between", lambda: _between_nodes("Resize", mode="linear", **sizes))
    pads = {"extra": [np.array([0, 0, 1, 1, 0, 0, 1, 1])]}
    yield Case("Pad reflect between", lambda: _between_nodes("Pad", mode="reflect", **pads))
    yield Case("Pad with zeros between", lambda: _between_nodes("Pad", mode="constant", **pads), "pad", 1)
    crop = {"extra": [np.array([1, 1]), np.array([5, 6]), np.array([2, 3])]}
    yield Case("crop between", lambda: _between_nodes("Slice", **crop))
    for op in ("Relu", "Sigmoid", "LeakyRelu"):
        yield Case(f"{op} between", lambda op=op: _between_nodes(op), "activation-between", 1)
    yield Case("Concat of two Convs", lambda: _joined("Concat", "conv"))
    yield Case("Concat of Conv and input", lambda: _joined("Concat", "identity"), "no-producer", 1)
    yield Case("Concat of Conv and Relu", lambda: _joined("Concat", "relu"), "activation-between", 1)
    yield Case("Sum of two Convs", lambda: _joined("Add", "conv"))
    yield Case("difference of two Convs", lambda: _joined("Sub", "conv"))
    yield Case("residual identity", lambda: _joined("Add", "identity"), "no-producer", 1)
