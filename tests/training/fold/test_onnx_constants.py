"""Statistics and weights that the graph works out of constants, by whatever operations."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto
from torch import nn

from foldserve.training.fold.onnx.api import fold_onnx
from foldserve.training.fold.onnx.constants import read_constant
from foldserve.training.fold.onnx.exporter import export_module
from foldserve.training.fold.onnx.graph import OnnxGraph
from tests.support.onnx_cases import Net

torch.set_num_threads(1)


def node(net: Net, op: str, *inputs: str, **attributes: object) -> str:
    return net.node(op, list(inputs), **attributes)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": x})
    return result


def ints(net: Net, *values: int) -> str:
    return net.put(f"i{len(net.tensors)}", list(values), np.int64)


WEIGHTS: dict[str, Callable[[Net, str], str]] = {
    "weight norm": lambda n, w: node(
        n, "Mul", n.constant("g", 6, 1, 1, 1), node(n, "Div", w, node(n, "ReduceL2", w, ints(n, 1, 2, 3), keepdims=1))
    ),
    "standardised": lambda n, w: node(n, "Sub", w, node(n, "ReduceMean", w, ints(n, 1, 2, 3), keepdims=1)),
    "clipped": lambda n, w: node(n, "Clip", w, n.put("low", -0.5, np.float32), n.put("high", 0.5, np.float32)),
    "spectral": lambda n, w: node(
        n, "Div", w, node(n, "ReduceMax", node(n, "Abs", node(n, "Reshape", w, ints(n, 6, -1))), ints(n, 0, 1))
    ),
    "transposed twice": lambda n, w: node(
        n, "Transpose", node(n, "Transpose", w, perm=[1, 0, 2, 3]), perm=[1, 0, 2, 3]
    ),
    "widened": lambda n, w: node(n, "Cast", node(n, "Cast", w, to=TensorProto.DOUBLE), to=TensorProto.FLOAT),
    "einsum": lambda n, w: node(n, "Einsum", w, n.constant("mask", 3, 3), equation="oihw,hw->oihw"),
    "padded": lambda n, w: node(n, "Pad", w, ints(n, 0, 0, 0, 0, 0, 0, 0, 0)),
}


@pytest.mark.parametrize("form", WEIGHTS)
def test_a_weight_that_is_worked_out_of_constants_takes_the_norm(form):
    """The new weight is a constant of its own; onnxruntime computes what it computed."""
    net = Net()
    weight = WEIGHTS[form](net, net.constant("w", 6, 4, 3, 3))
    net.output(net.norm(net.node("Conv", [net.input("x", "N", 4, 9, 9), weight]), 6, "y"), 4)
    model = net.model()
    folded = fold_onnx(model)
    assert [site.reason for site in folded.report.refused] == []
    assert [one.op_type for one in folded.model.graph.node] == ["Conv"]
    x = np.random.default_rng(0).normal(size=(2, 4, 9, 9)).astype("f")
    one, other = (run(model, x) for model in (model, folded.model))
    np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize("op", ["Tile", "Expand", "Concat", "Gather"])
def test_statistics_that_are_repeated_or_picked_are_read(op):
    """A mean for two halves of the channels, as a sub-network export writes it."""
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    names = net.statistics("bn", 6)
    mean = net.constant("half", 3)
    parts = {"Tile": [mean, ints(net, 2)], "Concat": [mean, mean], "Gather": [mean, ints(net, 0, 1, 2, 2, 1, 0)]}
    if op == "Expand":
        row = net.node("Expand", [net.put("one", [0.3], np.float32), ints(net, 6)])
    else:
        row = net.node(op, parts[op], **({"axis": 0} if op in ("Concat", "Gather") else {}))
    net.output(net.node("BatchNormalization", [c, *names[:2], row, names[3]], "y"), 4)
    assert len(fold_onnx(net.model()).report.folded) == 1


@pytest.mark.parametrize(("op", "verdict"), [("Floor", 0), ("Round", 0), ("Sign", 0), ("Abs", 1), ("Neg", 1)])
def test_what_jumps_is_not_worked_out(op, verdict):
    """A step of a float may fall on either side of a rounding: such a weight is no constant, others are."""
    net = Net()
    weight = net.node(op, [net.constant("w", 6, 4, 3, 3, scale=3)])
    net.output(net.norm(net.node("Conv", [net.input("x", "N", 4, 9, 9), weight]), 6, "y"), 4)
    assert len(fold_onnx(net.model()).report.folded) == verdict


@pytest.mark.parametrize(("values", "is_known"), [([0.5, -2.0, 0.25], True), ([0.1, -2.0, 0.25], False)])
def test_narrowing_is_worked_out_where_it_loses_nothing(values, is_known):
    """A cast that rounds is a rounding more, which exact algebra must not pass over."""
    net = Net()
    net.output(
        net.node("Add", [net.input("x", "N", 3), net.node("Cast", [net.put("c", values, np.float64)], "cast", to=1)])
    )
    graph = OnnxGraph(net.model())
    constant = read_constant(graph, "cast")
    assert (constant is not None) == is_known
    if constant is not None:
        assert constant.dtype == "float32"
        np.testing.assert_array_equal(constant.values, values)


def test_weight_norm_as_pytorch_exports_it_folds():
    """Without the exporter's own constant folding the weight stays an expression of magnitude and direction."""
    torch.manual_seed(0)
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3))
    norm = nn.BatchNorm2d(6)
    nn.init.normal_(norm.weight)
    norm.running_mean.normal_()
    model = export_module(nn.Sequential(conv, norm).eval(), (torch.randn(2, 3, 8, 8),), optimize=False)
    assert model.graph.node[0].op_type != "Conv"
    report = fold_onnx(model).report
    assert len(report.folded) == 1
    assert not report.refused


def test_a_constant_of_a_caller_is_no_constant():
    """An initializer that callers may replace makes nothing that could be folded."""
    net = Net()
    weight = node(net, "Abs", net.constant("w", 6, 4, 3, 3))
    net.output(net.norm(net.node("Conv", [net.input("x", "N", 4, 9, 9), weight]), 6, "y"), 4)
    model = net.model()
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 4, 3, 3]))
    report = fold_onnx(model).report
    assert [str(site.code) for site in report.refused] == ["overridable"]
