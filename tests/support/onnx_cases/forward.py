"""ONNX cases about norms that come before their layer: one layer, several, joined by a Concat, with zero padding."""

from collections.abc import Iterator

import numpy as np
import onnx

from tests.support.onnx_cases.net import Case, Net

EXACT = {"padding": "exact"}


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
        shape = (4, 6 // groups) if consumer == "ConvTranspose" else (6, 4 // groups)
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


def _padded(
    *size: int | str, groups: int = 1, opset: int = 20, behind: bool = False, **attributes: object
) -> onnx.ModelProto:
    """A norm before a zero-padded convolution of one, two or three dimensions."""
    net = Net(opset=opset)
    h = net.norm(net.input("x", "N", 4, *size), 4)
    weight = net.constant("w", 6, 4 // groups, *[3] * len(size))
    c = net.node("Conv", [h, weight, net.constant("b", 6)], "" if behind else "y", group=groups, **attributes)
    net.output(net.norm(c, 6, "y") if behind else c, len(size) + 2)
    return net.model(ir_version=6 if opset < 9 else 10)


def _two_readers(way: str = "", second: str = "Conv") -> onnx.ModelProto:
    """A norm that two layers read, each in its own way."""
    net = Net()
    h = net.norm(net.input("x", "N", 4, 9, 9), 4)
    h = net.node(way, [h]) if way else h
    net.output(net.node("Conv", [h, net.constant("w1", 6, 4, 3, 3)], "y"))
    if second == "Gemm":
        flat = net.node("Flatten", [net.node("GlobalAveragePool", [h])])
        net.output(net.node("Gemm", [flat, net.constant("w2", 4, 3)], "z"))
    else:
        pads = [1 if second == "padded" else 0] * 4
        net.output(net.node("Conv", [h, net.constant("w2", 5, 4, 3, 3)], "z", pads=pads))
    return net.model()


def _into_concat(kind: str) -> onnx.ModelProto:
    """Norms that a Concat joins with one another, with the input, or along the height, before a Conv."""
    net = Net()
    x = net.input("x", "N", 4, 9, 9)
    one = net.norm(x, 4)
    other = {"input": x, "itself": one, "height": x}.get(kind) or net.norm(x, 4)
    parts = [x, one] if kind == "input" else [one, other]
    joined = net.node("Concat", parts, axis=2 if kind == "height" else 1)
    width = 4 if kind == "height" else 8
    net.output(net.node("Conv", [joined, net.constant("w", 6, width, 3, 3)], "y"))
    return net.model()


def _einsum(first: bool) -> onnx.ModelProto:
    net = Net()
    x, w = net.input("x", "N", 5), net.constant("w", 5, 6)
    h = net.norm(x, 5) if first else x
    product = net.node("Einsum", [h, w], "y" if first else "", equation="ni,io->no")
    net.output(product if first else net.norm(product, 6, "y"))
    return net.model()


def readers() -> Iterator[Case]:
    """Cases of norms that several layers read, that a Concat joins, or whose Conv gets a correction at the border."""
    yield Case("norm -> padded Conv, exact", lambda: _padded(9, 9, pads=[1] * 4), options=EXACT)
    yield Case("norm -> padded Conv 1-D, exact", lambda: _padded(9, pads=[2, 0]), options=EXACT)
    yield Case("norm -> padded Conv 3-D, exact", lambda: _padded(5, 5, 5, pads=[1] * 6), options=EXACT)
    yield Case(
        "norm -> padded Conv, grouped, strided, dilated, exact",
        lambda: _padded(9, 9, groups=2, pads=[0, 1, 2, 3], strides=[2, 1], dilations=[1, 2]),
        options=EXACT,
    )
    yield Case("norm -> padded Conv, any size, exact", lambda: _padded("H", "W", pads=[1] * 4), options=EXACT)
    yield Case("norm -> Conv same padding, exact", lambda: _padded(9, 9, auto_pad="SAME_UPPER"), options=EXACT)
    yield Case("norm -> padded Conv -> norm, exact", lambda: _padded(9, 9, behind=True, pads=[1] * 4), options=EXACT)
    yield Case(
        "norm -> padded Conv, opset 8, exact", lambda: _padded(9, 9, opset=8, pads=[1] * 4), "pad", 1, options=EXACT
    )
    yield Case("norm -> ConvTranspose, exact", lambda: _norm_first("ConvTranspose"), options=EXACT)
    strided = {"group": 2, "strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 0], "dilations": [1, 2]}
    yield Case(
        "norm -> ConvTranspose grouped, strided, padded, exact",
        lambda: _norm_first("ConvTranspose", **strided),
        options=EXACT,
    )
    yield Case("norm -> two Convs", _two_readers)
    yield Case("norm -> Dropout -> two Convs", lambda: _two_readers("Dropout"))
    yield Case("norm -> Conv and Gemm", lambda: _two_readers(second="Gemm"))
    yield Case("norm -> Conv and padded Conv", lambda: _two_readers(second="padded"), "pad", 1)
    yield Case("norm -> Conv and padded Conv, exact", lambda: _two_readers(second="padded"), options=EXACT)
    yield Case("norm and input -> Concat -> Conv", lambda: _into_concat("input"))
    yield Case("two norms -> Concat -> Conv", lambda: _into_concat("norm"))
    yield Case("norm twice in a Concat -> Conv", lambda: _into_concat("itself"))
    yield Case("norm -> Concat along the height -> Conv", lambda: _into_concat("height"), "axis", 1)
    yield Case("Einsum -> norm", lambda: _einsum(False), "unknown-op", 1)
    yield Case("norm -> Einsum", lambda: _einsum(True), "unknown-op", 1)
