"""ONNX cases about the layer itself: each convolution, Gemm and MatMul with a norm right behind it."""

from collections.abc import Iterator

import onnx

from tests.support.onnx_cases.net import Case, Net


def conv(
    rank: int = 2,
    groups: int = 1,
    inside: int = 4,
    outside: int = 6,
    bias: bool = True,
    transposed: bool = False,
    opset: int = 20,
    padding: int = 1,
    kernel: int = 3,
    ir_version: int = 10,
) -> onnx.ModelProto:
    net = Net(opset=opset)
    x = net.input("x", "N", inside, *[9] * rank)
    shape = (inside, outside // groups) if transposed else (outside, inside // groups)
    parameters = [net.constant("w", *shape, *[kernel] * rank)] + ([net.constant("b", outside)] if bias else [])
    op = "ConvTranspose" if transposed else "Conv"
    c = net.node(op, [x, *parameters], group=groups, pads=[padding] * 2 * rank, kernel_shape=[kernel] * rank)
    net.output(net.norm(c, outside, "y"), rank + 2)
    return net.model(ir_version)


def convolutions() -> Iterator[Case]:
    for rank in (1, 2, 3):
        yield Case(f"Conv{rank}d", lambda rank=rank: conv(rank))
        yield Case(f"ConvTranspose{rank}d", lambda rank=rank: conv(rank, transposed=True))
    yield Case("Conv without bias", lambda: conv(bias=False))
    yield Case("Conv grouped", lambda: conv(groups=2))
    yield Case("Conv depthwise", lambda: conv(groups=4, outside=4))
    yield Case("Conv 1x1 with padding", lambda: conv(kernel=1))
    yield Case("ConvTranspose square", lambda: conv(inside=4, outside=4, transposed=True))
    yield Case("ConvTranspose grouped", lambda: conv(groups=2, transposed=True))
    yield Case("ConvTranspose grouped square", lambda: conv(inside=4, outside=4, groups=2, transposed=True))
    yield Case("ConvTranspose depthwise", lambda: conv(inside=4, outside=4, groups=4, transposed=True))
    yield Case("Conv with empty bias input", _empty_bias)
    yield Case("Conv strided and dilated", _strided)
    yield Case("Conv same padding", lambda: _attributes(auto_pad="SAME_UPPER", strides=[2, 2]))


def _attributes(**attributes: object) -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)], **attributes)
    net.output(net.norm(c, 6, "y"))
    return net.model()


def _strided() -> onnx.ModelProto:
    return _attributes(strides=[2, 1], dilations=[1, 2], pads=[0, 1, 2, 3])


def _empty_bias() -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3), ""])
    net.output(net.norm(c, 6, "y"))
    return net.model()


def _gemm(
    c_shape: tuple[int, ...] | None = None, rows: int | str = "N", opset: int = 20, **attributes: object
) -> onnx.ModelProto:
    net = Net(opset=opset)
    a = net.input("x", *((5, rows) if attributes.get("transA") else (rows, 5)))
    b = net.constant("w", *((4, 5) if attributes.get("transB") else (5, 4)))
    more = [] if c_shape is None else [net.constant("c", *c_shape)]
    net.output(net.norm(net.node("Gemm", [a, b, *more], **attributes), 4, "y"))
    return net.model()


def _gemm_constant_rows() -> onnx.ModelProto:
    net = Net()
    g = net.node("Gemm", [net.constant("w", 4, 5), net.input("x", 5, 4)])
    net.output(net.norm(g, 4, "y"))
    return net.model()


def _matmul(*x: int | str, bias: bool = False, norm: bool = True) -> onnx.ModelProto:
    net = Net()
    product = net.node("MatMul", [net.input("x", *x), net.constant("w", int(x[-1]), 6)])
    product = net.node("Add", [net.constant("b", 6), product]) if bias else product
    net.output(net.norm(product, 6 if len(x) == 2 else int(x[1]), "y"))
    return net.model()


def _matmul_left() -> onnx.ModelProto:
    net = Net()
    product = net.node("MatMul", [net.constant("w", 6, 5), net.input("x", "N", 5, 7)])
    net.output(net.norm(product, 6, "y"))
    return net.model()


def matrices() -> Iterator[Case]:
    yield Case("Gemm", lambda: _gemm((4,)))
    yield Case("Gemm without C", lambda: _gemm())
    yield Case("Gemm transA", lambda: _gemm((4,), transA=1))
    yield Case("Gemm transB", lambda: _gemm((4,), transB=1))
    yield Case("Gemm alpha and beta", lambda: _gemm((4,), alpha=0.5, beta=-2.0))
    yield Case("Gemm beta 0", lambda: _gemm((4,), beta=0.0))
    yield Case("Gemm C scalar", lambda: _gemm(()))
    yield Case("Gemm C (1,)", lambda: _gemm((1,)))
    yield Case("Gemm C (1, N)", lambda: _gemm((1, 4)))
    yield Case("Gemm C (M, 1)", lambda: _gemm((3, 1), rows=3), "axis", 1)
    yield Case("Gemm C (M, N)", lambda: _gemm((3, 4), rows=3, beta=2.0), "axis", 1)
    yield Case("Gemm C (N, N) square", lambda: _gemm((4, 4), rows=4), "axis", 1)
    yield Case("Gemm opset 9", lambda: _gemm((4,), opset=9))
    yield Case("Gemm with constant A", _gemm_constant_rows, "axis", 1)
    yield Case("MatMul 2-D", lambda: _matmul("N", 5))
    yield Case("MatMul + Add", lambda: _matmul("N", 5, bias=True))
    yield Case("MatMul 3-D, norm on axis 1", lambda: _matmul("N", 7, 5), "axis", 1)
    yield Case("MatMul 3-D, sizes coincide", lambda: _matmul("N", 6, 5), "axis", 1)
    yield Case("MatMul with constant left side", _matmul_left)
