"""ONNX cases about the dialect: dtypes, operator sets 7 to 24, training outputs, quantisation, custom operators."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support.onnx_cases.layers import conv
from tests.support.onnx_cases.net import Case, Net


def _half(mixed: bool) -> onnx.ModelProto:
    net = Net(opset=15, dtype=np.float16)
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3, scale=0.2)])
    stats = net.statistics("bn", 6, np.float32 if mixed else np.float16)
    net.output(net.node("BatchNormalization", [c, *stats], "y"))
    return net.model()


def _training(opset: int, outputs: int, **attributes: object) -> onnx.ModelProto:
    net = Net(opset=opset)
    c = net.node("Conv", [net.input("x", 3, 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    stats = net.statistics("bn", 6)
    net.output(net.node("BatchNormalization", [c, *stats], "y", n_outputs=outputs, **attributes), 4)
    return net.model()


def _spatial() -> onnx.ModelProto:
    net = Net(opset=7)
    c = net.node("Conv", [net.input("x", "N", 4, 5, 5), net.constant("w", 6, 4, 3, 3)])
    stats = net.statistics("bn", 6)
    for name in stats:
        rows = net.tensors[name].reshape(6, 1, 1) * np.linspace(1, 2, 9, dtype=np.float32).reshape(3, 3)
        net.tensors[name] = rows.astype(np.float32)
    net.output(net.node("BatchNormalization", [c, *stats], "y", spatial=0), 4)
    return net.model(ir_version=6)


def _quantised(where: str) -> onnx.ModelProto:
    net = Net(opset=13)
    x = net.input("x", "N", 4, 9, 9)
    scale, zero = net.put("q_scale", 0.05, np.float32), net.put("q_zero", 0, np.int8)
    if where == "weight":
        values = net.rng.integers(-127, 127, (6, 4, 3, 3)).astype(np.int8)
        w = net.node("DequantizeLinear", [net.put("w", values), scale, zero])
    else:
        w = net.constant("w", 6, 4, 3, 3)
    c = net.node("Conv", [x, w])
    if where == "between":
        c = net.node("DequantizeLinear", [net.node("QuantizeLinear", [c, scale, zero]), scale, zero])
    net.output(net.norm(c, 6, "y"))
    return net.model()


def _custom_domain() -> onnx.ModelProto:
    net = Net(extra_opsets=(("com.microsoft", 1),))
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    gelu = net.node("Gelu", [c], domain="com.microsoft")
    net.output(net.norm(gelu, 6, "y"), 4)
    return net.model()


def _epsilon(value: float | None) -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    net.output(net.norm(c, 6, "y", **({} if value is None else {"epsilon": value})))
    return net.model()


def _cast_between() -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    wide = net.node("Cast", [net.node("Cast", [c], to=TensorProto.FLOAT16)], to=TensorProto.FLOAT)
    net.output(net.norm(wide, 6, "y"))
    return net.model()


def dialects() -> Iterator[Case]:
    yield Case("float16 everywhere", lambda: _half(False), tolerance=2e-2)
    yield Case("float16 with float32 statistics", lambda: _half(True), tolerance=2e-2)
    yield Case("Cast between", _cast_between, "dtype", 1, tolerance=2e-2)
    for opset in (7, 9, 14, 15, 22, 24):
        ir_version = 3 if opset == 7 else 10
        yield Case(
            f"opset {opset}", lambda o=opset, i=ir_version: _conv_ir3(o) if i == 3 else conv(opset=o, ir_version=i)
        )
    yield Case("training_mode, 3 outputs", lambda: _training(14, 3, training_mode=1), "training-mode", 1)
    yield Case("training_mode, 1 output", lambda: _training(14, 1, training_mode=1), "training-mode", 1)
    yield Case("opset 9 with 5 outputs", lambda: _training(9, 5), "training-mode", 1)
    yield Case("opset 7 with spatial=0", _spatial, "spatial", 1)
    yield Case("epsilon missing", lambda: _epsilon(None))
    yield Case("epsilon 1e-3", lambda: _epsilon(1e-3))
    yield Case("quantised weight", lambda: _quantised("weight"), "quantised", 1)
    yield Case("Q/DQ between", lambda: _quantised("between"), "quantised", 1, tolerance=5e-2)
    yield Case("custom operator between", _custom_domain, "unknown-op", 1)


def _conv_ir3(opset: int) -> onnx.ModelProto:
    """IR 3 lists every initializer among the graph's inputs, where it is still no input of the caller's."""
    model = conv(opset=opset, ir_version=3)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return model
