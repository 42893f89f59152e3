"""ONNX cases about the channel axis: shape operations between layer and norm, sizes that agree by chance."""

from collections.abc import Iterator

import numpy as np
import onnx

from tests.support.onnx_cases.net import Case, Net


def _matmul_transposed(rows: int) -> onnx.ModelProto:
    net = Net()
    product = net.node("MatMul", [net.input("x", rows, 5), net.constant("w", 5, 6)])
    net.output(net.norm(net.node("Transpose", [product], perm=[1, 0]), rows, "y"))
    return net.model()


def _matmul_reshaped() -> onnx.ModelProto:
    net = Net()
    product = net.node("MatMul", [net.input("x", 6, 5), net.constant("w", 5, 6)])
    split = net.node("Reshape", [product, net.put("shape", [-1, 6, 2], np.int64)])
    net.output(net.norm(split, 6, "y"))
    return net.model()


def _linear_3d_transposed() -> onnx.ModelProto:
    """What `bn(linear(x).transpose(1, 2)).transpose(1, 2)` exports to."""
    net = Net()
    product = net.node("MatMul", [net.input("x", "N", 6, 5), net.constant("w", 5, 6)])
    product = net.node("Add", [product, net.constant("b", 6)])
    turned = net.node("Transpose", [product], perm=[0, 2, 1])
    net.output(net.node("Transpose", [net.norm(turned, 6)], "y", perm=[0, 2, 1]))
    return net.model()


def _linear_flattened() -> onnx.ModelProto:
    """What `bn(linear(x).flatten(0, 1)).reshape_as(x)` exports to."""
    net = Net()
    product = net.node("MatMul", [net.input("x", "N", 7, 5), net.constant("w", 5, 6)])
    flat = net.node("Reshape", [product, net.put("flat", [-1, 6], np.int64)])
    net.output(net.node("Reshape", [net.norm(flat, 6), net.put("back", [-1, 7, 6], np.int64)], "y"))
    return net.model()


def _linear_reshaped_back(again: bool) -> onnx.ModelProto:
    """The same with `reshape_as`, which reads the shape of what is normalised, or of the value within the norm."""
    net = Net()
    product = net.node("MatMul", [net.input("x", "N", 7, 5), net.constant("w", 5, 6)])
    flat = net.node("Reshape", [product, net.put("flat", [-1, 6], np.int64)])
    normed = net.norm(flat, 6)
    size = net.node("Shape", [normed if again else product])
    y = net.norm(normed, 6) if again else normed
    net.output(net.node("Reshape", [y, size], "y"), 2 if again else 3)
    return net.model()


def _linear_to_map() -> onnx.ModelProto:
    """A linear layer whose output is read as a map of channels, as in a DCGAN generator."""
    net = Net()
    g = net.node("Gemm", [net.input("x", "N", 5), net.constant("w", 5, 24), net.constant("b", 24)])
    net.output(net.norm(net.node("Reshape", [g, net.put("shape", [-1, 6, 2, 2], np.int64)]), 6, "y"))
    return net.model()


def _conv_flattened(size: int) -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 3, size + 2, size + 2), net.constant("w", 4, 3, 3, 3)])
    net.output(net.norm(net.node("Flatten", [c]), 4 * size * size, "y"))
    return net.model()


def _conv_through_axes() -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 3, 9), net.constant("w", 4, 3, 3)])
    wide = net.node("Unsqueeze", [c, net.put("axes", [3], np.int64)])
    turned = net.node("Transpose", [wide], perm=[2, 3, 0, 1])  # (L, 1, N, C)
    back = net.node("Transpose", [turned], perm=[2, 3, 0, 1])
    net.output(net.norm(net.node("Squeeze", [back, "axes"]), 4, "y"))
    return net.model()


def axes() -> Iterator[Case]:
    yield Case("MatMul -> Transpose, square", lambda: _matmul_transposed(6), "axis", 1)
    yield Case("MatMul -> Transpose, not square", lambda: _matmul_transposed(3), "axis", 1)
    yield Case("MatMul -> Reshape that splits rows", _matmul_reshaped, "axis", 1)
    yield Case("Linear 3-D -> Transpose -> norm", _linear_3d_transposed)
    yield Case("Linear 3-D -> flatten -> norm", _linear_flattened)
    yield Case("Linear 3-D -> flatten -> norm -> reshape_as", lambda: _linear_reshaped_back(False))
    yield Case("shape read between two norms", lambda: _linear_reshaped_back(True))
    yield Case("Linear -> view as channels", _linear_to_map)
    yield Case("Conv -> Flatten, map 1x1", lambda: _conv_flattened(1))
    yield Case("Conv -> Flatten, map 2x2", lambda: _conv_flattened(2), "axis", 1)
    yield Case("Conv -> Unsqueeze, Transpose, Squeeze", _conv_through_axes)
