"""ONNX cases about the way from norm to layer: what stands between them, and norms that come before their layer."""

from collections.abc import Iterator

import numpy as np
import onnx

from benchmarks.folding_net import Case, Net


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


def _norm_first(consumer: str, way: str = "", **attributes: object) -> onnx.ModelProto:
    net = Net()
    x = net.input("x", "N", 4, 9, 9)
    if consumer in ("Conv", "ConvTranspose"):
        groups = int(attributes.get("group", 1))  # type: ignore[call-overload]
        h = net.norm(x, 4, prefix="bn")
        if way == "no shift":
            stats = net.tensors
            stats["bn_bias"], stats["bn_mean"] = stats["bn_bias"] * 0, stats["bn_mean"] * 0  # type: ignore[operator]
        elif way:
            extra = [net.put("pads", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)] if way == "Pad" else []
            h = net.node(way, [h, *extra], **({"mode": "reflect"} if way == "Pad" else {}))
        shape = (4, 6) if consumer == "ConvTranspose" else (6, 4 // groups)
        net.output(net.node(consumer, [h, net.constant("w", *shape, 3, 3), net.constant("b", 6)], "y", **attributes))
        return net.model()
    net = Net()
    if way == "Flatten":
        h = net.node("Flatten", [net.norm(net.input("x", "N", 3, 2, 2), 3)])
        width = 12
    else:
        width = 5
        h = net.norm(net.input("x", "N", width), width)
        h = net.node(way, [h]) if way else h
    more = [net.constant("c", 4)] if consumer == "Gemm" else []
    shape = (4, width) if attributes.get("transB") else (width, 4)
    net.output(net.node(consumer, [h, net.constant("w", *shape), *more], "y", **attributes))
    return net.model()


def _norm_norm_conv() -> onnx.ModelProto:
    net = Net()
    h = net.node("Dropout", [net.norm(net.input("x", "N", 4, 9, 9), 4)])
    net.output(net.node("Conv", [net.norm(h, 4), net.constant("w", 6, 4, 3, 3)], "y"))
    return net.model()


def _norm_read_twice() -> onnx.ModelProto:
    net = Net()
    h = net.norm(net.input("x", "N", 4, 9, 9), 4)
    net.output(net.node("Conv", [h, net.constant("w", 6, 4, 3, 3)], "y"))
    net.output(net.node("Relu", [h], "z"))
    return net.model()


def forward() -> Iterator[Case]:
    yield Case("norm -> Conv", lambda: _norm_first("Conv"))
    yield Case("norm -> Conv grouped", lambda: _norm_first("Conv", group=2))
    yield Case("norm -> Conv with zero padding", lambda: _norm_first("Conv", pads=[1] * 4), "pad", 1)
    yield Case("norm -> Conv same padding", lambda: _norm_first("Conv", auto_pad="SAME_LOWER"), "pad", 1)
    yield Case("norm without shift -> padded Conv", lambda: _norm_first("Conv", "no shift", pads=[1] * 4))
    yield Case("norm -> Pad reflect -> Conv", lambda: _norm_first("Conv", "Pad"))
    yield Case("norm -> Relu -> Conv", lambda: _norm_first("Conv", "Relu"), "activation-between", 1)
    yield Case("norm -> ConvTranspose", lambda: _norm_first("ConvTranspose"), "pad", 1)
    yield Case("norm -> Gemm", lambda: _norm_first("Gemm"))
    yield Case("norm -> Gemm alpha, beta, transB", lambda: _norm_first("Gemm", alpha=0.5, beta=3.0, transB=1))
    yield Case("norm -> Dropout -> MatMul", lambda: _norm_first("MatMul", "Dropout"))
    yield Case("norm -> Flatten -> Gemm", lambda: _norm_first("Gemm", "Flatten"))
    yield Case("norm, Dropout, norm -> Conv", _norm_norm_conv)
    yield Case("norm read twice, then Conv", _norm_read_twice, "multi-use", 1)
    yield Case("norm alone", _alone, "no-producer", 1)


def _alone() -> onnx.ModelProto:
    net = Net()
    net.output(net.norm(net.input("x", "N", 4, 9, 9), 4, "y"))
    return net.model()
