"""What a norm passes on its way to a layer of a file: folded as onnxruntime computes it, or refused with the reason."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from foldserve.training.fold.onnx.api import fold_onnx
from tests.support.onnx_cases import Net

torch.set_num_threads(1)


def ints(net: Net, *values: int) -> str:
    return net.put(f"i{len(net.tensors)}", values, np.int64)


def floats(net: Net, *values: float) -> str:
    return net.put(f"f{len(net.tensors)}", values, np.float32)


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


def require_same(model: onnx.ModelProto, folded: onnx.ModelProto, *shapes: tuple[int, ...]) -> None:
    for shape in shapes:
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        for one, other in zip(run(model, x), run(folded, x), strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(other, one, rtol=0, atol=1e-4 * float(np.abs(one).max()))


def require_folded(net: Net, value: str, channels: int, rank: int, *shapes: tuple[int, ...]) -> None:
    """Put a norm with positive scales behind `value`: it is gone, and the output what it was."""
    net.norm(value, channels, "y", prefix="last")
    net.tensors["last_scale"] = np.abs(net.tensors["last_scale"])
    net.output("y", rank)
    require_one_folded(net.model(), *shapes)


def require_one_folded(model: onnx.ModelProto, *shapes: tuple[int, ...]) -> None:
    result = fold_onnx(model)
    assert len(result.report.folded) == 1, result.report.table()
    require_same(model, result.model, *shapes)


PASSES: dict[str, Callable[[Net, str], str]] = {
    "Pad that cuts off": lambda net, x: net.node("Pad", [x, ints(net, 0, 0, -1, 0, 0, 0, -1, -2)]),
    "Pad that cuts off the last axis": lambda net, x: net.node("Pad", [x, ints(net, -1, -2), "", ints(net, -1)]),
    "Pad that repeats, with axes": lambda net, x: net.node(
        "Pad", [x, ints(net, 1, 0, 2, 1), "", ints(net, 3, 2)], mode="edge"
    ),
    "Tile": lambda net, x: net.node("Tile", [x, ints(net, 1, 1, 2, 3)]),
    "Tile of the batch": lambda net, x: net.node("Tile", [x, ints(net, 2, 1, 1, 1)]),
    "Expand": lambda net, x: net.node("Expand", [net.node("GlobalAveragePool", [x]), ints(net, 1, 4, 5, 6)]),
    "ReduceMean": lambda net, x: net.node("ReduceMean", [x, ints(net, 2)], keepdims=1),
    "Cast to the same dtype": lambda net, x: net.node("Cast", [x], to=TensorProto.FLOAT),
    "CastLike of the same dtype": lambda net, x: net.node("CastLike", [x, "x"]),
}
LEFT: dict[str, tuple[str, Callable[[Net, str], str]]] = {
    "Pad with zeros": ("pad", lambda net, x: net.node("Pad", [x, ints(net, 0, 0, 1, 1, 0, 0, 1, 1)])),
    "Pad that cuts off and adds": ("pad", lambda net, x: net.node("Pad", [x, ints(net, 0, 0, 1, 0, 0, 0, -1, 0)])),
    "Pad that cuts off channels": ("axis", lambda net, x: net.node("Pad", [x, ints(net, 0, -1, 0, 0, 0, -1, 0, 0)])),
    "Tile of the channels": ("axis", lambda net, x: net.node("Tile", [x, ints(net, 1, 2, 1, 1)])),
    "Expand of a channel": (
        "axis",
        lambda net, x: net.node("Expand", [net.node("ReduceMean", [x, ints(net, 1)]), ints(net, 1, 4, 1, 1)]),
    ),
    "ReduceMax of both signs": ("sign", lambda net, x: net.node("ReduceMax", [x, ints(net, 2)], keepdims=1)),
    "ReduceSum": ("unknown-op", lambda net, x: net.node("ReduceSum", [x, ints(net, 2)], keepdims=1)),
    "Cast to half and back": (
        "dtype",
        lambda net, x: net.node("Cast", [net.node("Cast", [x], to=TensorProto.FLOAT16)], to=TensorProto.FLOAT),
    ),
    "Mean": ("unknown-op", lambda net, x: net.node("Mean", [x, "x"])),
}


def before_conv(between: Callable[[Net, str], str], channels: int = 4) -> onnx.ModelProto:
    net = Net(opset=18)
    x = between(net, net.norm(net.input("x", "N", 4, 8, 8), 4))
    net.node("Conv", [x, net.constant("w", 3, channels, 1, 1)], "y")
    net.output("y", 4)
    return net.model()


@pytest.mark.parametrize("name", PASSES)
def test_a_norm_passes_what_copies_or_averages(name: str) -> None:
    """Before the Conv that takes it, and after one."""
    require_one_folded(before_conv(PASSES[name]), (1, 4, 8, 8), (3, 4, 8, 8))
    net = Net(opset=18)
    x = PASSES[name](net, net.node("Conv", [net.input("x", "N", 3, 8, 8), net.constant("w", 4, 3, 1, 1)]))
    require_folded(net, x, 4, 4, (1, 3, 8, 8), (3, 3, 8, 8))


@pytest.mark.parametrize("name", LEFT)
def test_a_norm_stays_before_what_does_more(name: str) -> None:
    """With the code that is true; its model computes what it did."""
    code, between = LEFT[name]
    channels = {"Pad that cuts off channels": 2, "Tile of the channels": 8}
    model = before_conv(between, channels.get(name, 4))
    result = fold_onnx(model)
    assert [site.code for site in result.report.refused] == [code], result.report.table()
    require_same(model, result.model, (2, 4, 8, 8))


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_reduction_behind_the_channels_is_passed(op: str, keepdims: int) -> None:
    """Also where it takes the axes away; a largest value only by scales that are not negative."""
    net = Net(opset=18)
    c = net.node("Conv", [net.input("x", "N", 3, 8, 8), net.constant("w", 4, 3, 3, 3)])
    reduced = net.node(op, [c, ints(net, 2, -1)], keepdims=keepdims)
    require_folded(net, reduced, 4, 4 if keepdims else 2, (2, 3, 8, 8))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "fields",
    [
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 1]},
        {"auto_pad": "VALID", "strides": [2, 2]},
        {"output_shape": [10, 13], "strides": [2, 2]},
        {"strides": [2, 2], "output_padding": [1, 1]},
    ],
)
def test_a_norm_behind_a_transposed_convolution_of_every_padding(fields: dict[str, object], groups: int) -> None:
    """The proof computes it in float64 as the runtime does in float32, grouped ones too."""
    net = Net(opset=18)
    c = net.node(
        "ConvTranspose", [net.input("x", "N", 4, 5, 7), net.constant("w", 4, 6 // groups, 3, 2)], group=groups, **fields
    )
    require_folded(net, c, 6, 4, (1, 4, 5, 7), (2, 4, 5, 7))


def test_a_norm_with_outputs_without_names_does_not_end_the_process() -> None:
    """The runtime writes to the empty ones of opset 9, so that the proof does not show them to it."""
    net = Net(opset=9)
    c = net.node("Conv", [net.input("x", "N", 3, 8, 8), net.constant("w", 4, 3, 3, 3)])
    net.nodes.append(helper.make_node("BatchNormalization", [c, *net.statistics("bn", 4)], ["n", "", "", "", ""]))
    net.node("BatchNormalization", ["n", *net.statistics("other", 4)], "y")
    net.output("y", 4)
    report = fold_onnx(net.model(ir_version=7)).report
    assert len(report.folded) + len(report.refused) == 2


def behind_a_conv(end: Callable[[Net, str], str], *dims: int | str) -> onnx.ModelProto:
    net = Net(opset=18)
    c = net.node("Conv", [net.input("x", *dims), net.constant("w", 4, 3, 3, 3)])
    net.node("Identity", [end(net, net.norm(c, 4, prefix="bn"))], "y")
    net.output("y", 4)
    return net.model()


def test_an_optional_value_behind_the_norm_is_proved() -> None:
    """The reference implementation wraps it; the proof compares the value itself."""
    model = behind_a_conv(lambda net, x: net.node("OptionalGetElement", [net.node("Optional", [x])]), "N", 3, 8, 8)
    require_one_folded(model, (2, 3, 8, 8))


BETWEEN: dict[str, Callable[[Net, str], str]] = {
    "blocks": lambda net, x: net.node(
        "Conv", [net.node("SpaceToDepth", [x], blocksize=2), net.constant("w", 4, 12, 1, 1)]
    ),
    "other order": lambda net, x: net.node(
        "Transpose",
        [net.node("MatMul", [net.node("Transpose", [x], perm=[0, 2, 3, 1]), net.constant("w", 3, 4)])],
        perm=[0, 3, 1, 2],
    ),
    "pool": lambda net, x: net.node(
        "Conv", [net.node("AveragePool", [x], kernel_shape=[2, 2]), net.constant("w", 4, 3, 3, 3)]
    ),
    "two layers": lambda net, x: net.node(
        "Add",
        [
            net.node("Conv", [net.node("GlobalAveragePool", [x]), net.constant("w", 4, 3, 1, 1)]),
            net.node("Conv", [net.node("AveragePool", [x], kernel_shape=[2, 2]), net.constant("v", 4, 3, 3, 3)]),
        ],
    ),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_a_layer_takes_the_norm_before_it_past_something_and_the_one_behind_it(name: str) -> None:
    """What the layer reads means something else after the first fold, so that the second is proved from before it."""
    net = Net(opset=18)
    x = BETWEEN[name](net, net.norm(net.input("x", "N", 3, 8, 8), 3, prefix="first"))
    net.norm(x, 4, "y", prefix="second")
    net.output("y", 4)
    model = net.model()
    result = fold_onnx(model)
    assert len(result.report.folded) == 2, result.report.table()
    require_same(model, result.model, (1, 3, 8, 8), (3, 3, 8, 8))


def two_before_a_product(net: Net) -> str:
    """norm -> Transpose -> norm -> MatMul, which gets a bias by the one and another by the other."""
    x = net.node("Transpose", [net.norm(net.input("x", "N", 3, 8, 8), 3)], perm=[0, 1, 3, 2])
    x = net.node("Transpose", [net.norm(x, 3)], perm=[0, 2, 3, 1])
    return net.node("Transpose", [net.node("MatMul", [x, net.constant("w", 3, 4)])], perm=[0, 3, 1, 2])


def two_before_a_border(net: Net) -> str:
    x = net.node("Transpose", [net.norm(net.input("x", "N", 3, 8, 8), 3)], perm=[0, 1, 3, 2])
    return net.node("Conv", [net.norm(x, 3), net.constant("w", 4, 3, 3, 3)], pads=[1] * 4)


def last_of_three(net: Net, *, between: bool) -> str:
    """A norm that two read goes forward after the norms behind both."""
    x = net.norm(net.input("x", "N", 3, 8, 8), 3)
    one = net.node("Conv", [net.norm(x, 3), net.constant("v", 4, 3, 1, 1)])
    other = net.node("Conv", [x, net.constant("w", 4, 3, 1, 1)])
    other = net.node("Identity", [other]) if between else other
    return net.node("Add", [net.node("Relu", [one]), net.node("Relu", [net.norm(other, 4)])])


SEVERAL: dict[str, tuple[int, Callable[[Net], str]]] = {
    "two before a product": (2, two_before_a_product),
    "two before a border": (2, two_before_a_border),
    "one behind, then one before": (3, lambda net: last_of_three(net, between=False)),
    "one behind something, then one before": (3, lambda net: last_of_three(net, between=True)),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_norms_fold_into_one_layer_in_any_order(name: str) -> None:
    """A later fold ends where the first one has moved the end, or changed it: both are proved together."""
    count, build = SEVERAL[name]
    net = Net(opset=18)
    net.node("Identity", [build(net)], "y")
    net.output("y", 4)
    model = net.model()
    result = fold_onnx(model, padding="exact")
    assert [site.code for site in result.report.refused] == [], result.report.table()
    assert len(result.report.folded) == count
    require_same(model, result.model, (1, 3, 8, 8), (3, 3, 8, 8))


def test_a_batch_of_no_rows_is_said_to_be_empty() -> None:
    """It is no mistake of the fold, and nothing to be reported."""
    report = fold_onnx(behind_a_conv(lambda net, x: x, 0, 3, 8, 8)).report
    assert [site.code for site in report.refused] == ["unjudged"]
    assert "is empty for inputs of x 0x3x8x8" in report.refused[0].reason


def test_a_sparse_weight_is_named() -> None:
    """It is a constant, in a form that no fold writes."""
    net = Net(opset=13)
    net.norm(net.node("MatMul", [net.input("x", "N", 5), "w"]), 4, "y")
    net.output("y", 2)
    values, places = numpy_helper.from_array(np.float32([1, 2]), "w"), np.array([[0, 1], [3, 2]])
    indices = numpy_helper.from_array(places, "w_places")
    tensors = [numpy_helper.from_array(value, name) for name, value in net.tensors.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])]
    graph = helper.make_graph(net.nodes, "sparse", net.inputs, outputs, tensors)
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [5, 4]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    report = fold_onnx(model).report
    assert [(site.code, "'w' of MatMul" in site.reason) for site in report.refused] == [("dtype", True)]


@pytest.mark.parametrize("part", ["scale", "mean"])
def test_a_sparse_statistic_is_named(part: str) -> None:
    """It is not computed while the model runs, which would be said of one that is no constant."""
    model = behind_a_conv(lambda net, x: x, "N", 3, 8, 8)
    (dense,) = (tensor for tensor in model.graph.initializer if tensor.name == f"bn_{part}")
    model.graph.initializer.remove(dense)
    values = numpy_helper.from_array(np.float32([1, 2]), f"bn_{part}")
    places = numpy_helper.from_array(np.int64([0, 2]), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4]))
    report = fold_onnx(model).report
    assert [(site.code, f"'bn_{part}' is sparse" in site.reason) for site in report.refused] == [("dtype", True)]


@pytest.mark.parametrize("name", ["", "call"])
def test_a_norm_in_a_function_is_folded_whatever_its_call_is_called(name: str) -> None:
    """A call without a name is known by the value that it makes, as is the norm in it once that is written out."""
    model = behind_a_conv(lambda net, x: net.node("Relu", [x]), "N", 3, 8, 8)
    conv, norm, *others = model.graph.node
    names = ["a", "w", "s", "b", "m", "v"]
    body = [helper.make_node("Conv", names[:2], ["c"]), helper.make_node(norm.op_type, ["c", *names[2:]], ["o"])]
    function = helper.make_function("local", "ConvNorm", names, ["o"], body, [helper.make_opsetid("", 18)])
    call = helper.make_node("ConvNorm", [*conv.input, *norm.input[1:]], norm.output, name, domain="local")
    del model.graph.node[:]
    model.graph.node.extend([call, *others])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    require_one_folded(model, (2, 3, 8, 8))
