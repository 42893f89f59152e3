"""ONNX cases about who else is there: second readers, shared weights, taken names."""

from collections.abc import Iterator

import numpy as np
import onnx

from tests.support.onnx_cases.net import Case, Net


def _with_second_reader(kind: str) -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)], "c")
    net.output(net.norm(c, 6, "y"))
    net.output(c if kind == "output" else net.node("Relu", [c], "other"))
    return net.model()


def _shared_weight(second_norm: bool, shared_bias: bool = False) -> onnx.ModelProto:
    net = Net()
    parameters = [net.constant("w", 6, 4, 3, 3)] + ([net.constant("b", 6)] if shared_bias else [])
    first = net.node("Conv", [net.input("x", "N", 4, 9, 9), *parameters])
    second = net.node("Conv", [net.input("z", "N", 4, 9, 9), *parameters])
    net.output(net.norm(first, 6, "y"))
    net.output(net.norm(second, 6, "y2") if second_norm else net.node("Relu", [second], "y2"))
    return net.model()


def _weight_is_statistic() -> onnx.ModelProto:
    net = Net()
    stats = net.statistics("bn", 6)
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3), stats[1]])
    net.output(net.node("BatchNormalization", [c, *stats], "y"))
    return net.model()


def _overridable(name: str) -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    net.output(net.norm(c, 6, "y", prefix="bn"))
    shape = net.tensors[name].shape
    net.input(name, *shape)
    return net.model()


def _clash() -> onnx.ModelProto:
    net = Net()
    x = net.input("w_bias", "N", 4, 9, 9)
    c = net.node("Conv", [x, net.constant("w", 6, 4, 3, 3)])
    net.output(net.norm(c, 6, "y"))
    net.output(net.node("Relu", [x], "z"))
    return net.model()


def _clash_parameter() -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    y = net.norm(c, 6)
    net.output(net.node("Conv", [net.node("Relu", [y]), net.constant("w_bias", 3, 6, 1, 1)], "y"))
    return net.model()


def _computed_statistics() -> onnx.ModelProto:
    net = Net(opset=20)
    c = net.node("Conv", [net.input("x", 3, 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    axes = net.put("axes", [0, 2, 3], np.int64)
    mean = net.node("ReduceMean", [c, axes], keepdims=0)
    stats = net.statistics("bn", 6)
    net.output(net.node("BatchNormalization", [c, stats[0], stats[1], mean, stats[3]], "y"))
    return net.model()


def neighbours() -> Iterator[Case]:
    yield Case("Conv output read twice", lambda: _with_second_reader("relu"), "multi-use", 1)
    yield Case("Conv output is a graph output", lambda: _with_second_reader("output"), "graph-output", 1)
    yield Case("weight shared, two norms", lambda: _shared_weight(True))
    yield Case("weight shared, one norm", lambda: _shared_weight(False))
    yield Case("weight and bias shared, one norm", lambda: _shared_weight(False, shared_bias=True))
    yield Case("bias shared with the norm's own", _weight_is_statistic)
    yield Case("overridable weight", lambda: _overridable("w"), "overridable", 1)
    yield Case("overridable variance", lambda: _overridable("bn_var"), "overridable", 1)
    yield Case("name w_bias is an input", _clash)
    yield Case("name w_bias is a parameter", _clash_parameter)
    yield Case("statistics of the batch", _computed_statistics, "batch-stats", 1)
