"""Graphs that are valid, or that a runtime takes, and that few exporters write: each folds right, or is told why not.

Very long ones, graphs whose ways part and meet again, unsorted ones, maps and sequences for outputs, numbers that the
check of ONNX does not look at.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from foldserve.training.errors import FoldError
from foldserve.training.fold.onnx.api import fold_onnx, verify_onnx
from tests.support.onnx_cases import Net

ROWS = 3
LONG = 2000  # operations, twice as many as Python has frames
LINEAR_SECONDS = 60.0  # some 3 s; in quadratic time it were minutes


def outputs(model: onnx.ModelProto) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    sizes = {one.name: [dim if isinstance(dim, int) else ROWS for dim in one.shape] for one in session.get_inputs()}
    return list(session.run(None, {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}))


def require_folded(model: onnx.ModelProto, norms: int = 1) -> onnx.ModelProto:
    folded = fold_onnx(model)
    assert len(folded.report.folded) == norms
    assert not folded.report.refused
    for one, other in zip(outputs(model), outputs(folded.model), strict=True):
        np.testing.assert_allclose(np.asarray(other), np.asarray(one), rtol=1e-4, atol=1e-4)
    return folded.model


def copies_behind(net: Net, x: str) -> str:
    x = net.node("Conv", [x, net.constant("w", 4, 3, 3, 3)])
    for _ in range(LONG):
        x = net.node("Identity", [x])
    return net.norm(x, 4)


def copies_before(net: Net, x: str) -> str:
    x = net.norm(x, 3)
    for _ in range(LONG):
        x = net.node("Identity", [x])
    return net.node("Conv", [x, net.constant("w", 4, 3, 1, 1)])


def sums(net: Net, x: str) -> str:
    total = net.node("Conv", [x, net.constant("w", 4, 3, 1, 1)])
    for number in range(LONG // 2):
        total = net.node("Add", [total, net.node("Conv", [x, net.constant(f"w{number}", 4, 3, 1, 1, scale=0.1)])])
    return net.norm(total, 4)


def constants(net: Net, x: str) -> str:
    weight = net.constant("w", 4, 3, 3, 3)
    for _ in range(LONG):
        weight = net.node("Neg", [weight])
    return net.norm(net.node("Conv", [x, weight]), 4)


@pytest.mark.parametrize("build", [copies_behind, copies_before, sums, constants])
def test_a_way_of_thousands_of_operations_is_followed(build: Callable[[Net, str], str]):
    """In linear time, and not by recursion, whose depth Python limits."""
    net = Net()
    net.output(build(net, net.input("x", "N", 3, 5, 5)))
    start = time.perf_counter()
    require_folded(net.model())
    assert time.perf_counter() - start < LINEAR_SECONDS


@pytest.mark.parametrize("backward", [True, False])
def test_ways_that_part_and_meet_again_end(backward: bool):
    """Twenty-four times over they are sixteen million, which nobody waits for."""
    net = Net()
    x = net.input("x", "N", 4, 5, 5)
    x = net.node("Conv", [x, net.constant("w", 4, 4, 1, 1)]) if backward else net.norm(x, 4)
    for number in range(24):
        parts = net.node("Split", [x, net.put(f"s{number}", [1, 3], np.int64)], n_outputs=2, axis=1)
        x = net.node("Concat", [parts, f"{parts}_1"], axis=1)
    net.output(net.norm(x, 4) if backward else net.node("Conv", [x, net.constant("w", 4, 4, 1, 1)]))
    (site,) = fold_onnx(net.model()).report.refused
    assert "part and meet again" in site.reason


def classifier(kind: str) -> onnx.ModelProto:
    net = Net(opset=17, extra_opsets=(("ai.onnx.ml", 3),))
    x = net.norm(net.node("MatMul", [net.input("x", "N", 8), net.constant("w", 8, 3)]), 3)
    net.output(net.node("Softmax", [x], "y"))
    model = net.model()
    labels = {"classlabels_int64s": [3, 5, 7]} if kind == "numbers" else {"classlabels_strings": ["a", "b", "c"]}
    model.graph.node.append(helper.make_node("ZipMap", ["y"], ["z"], "zip", domain="ai.onnx.ml", **labels))
    key = TensorProto.INT64 if kind == "numbers" else TensorProto.STRING
    values = helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.output[0].CopyFrom(helper.make_value_info("z", helper.make_sequence_type_proto(values)))
    return model


@pytest.mark.parametrize("kind", ["numbers", "names"])
def test_a_classifier_that_gives_maps_is_folded(kind: str):
    """As skl2onnx writes it: a list of a map for each row."""
    model = classifier(kind)
    folded = fold_onnx(model)
    assert len(folded.report.folded) == 1
    for one, other in zip(outputs(model)[0], outputs(folded.model)[0], strict=True):
        assert other == pytest.approx(one, abs=1e-5)
    assert verify_onnx(model, folded).algebra_error < 1e-11


def test_other_keys_of_a_map_are_another_function():
    """The numbers are those of other classes."""
    model = classifier("numbers")
    other = classifier("numbers")
    other.graph.node[-1].attribute[0].ints[:] = [3, 5, 8]
    with pytest.raises(FoldError, match=r"keys \[3, 5, 8\]"):
        verify_onnx(model, other)


def test_sequences_of_whole_numbers_are_compared():
    """Each of their tensors by itself."""
    net = Net(opset=17)
    x = net.norm(net.node("Conv", [net.input("x", "N", 3, 5, 5), net.constant("w", 4, 3, 3, 3)]), 4)
    net.output(x)
    chosen = net.node("ArgMax", [x], axis=1)
    net.node("SequenceConstruct", [chosen, chosen], "z")
    model = net.model()
    model.graph.output.append(helper.make_tensor_sequence_value_info("z", TensorProto.INT64, None))
    folded = fold_onnx(model)
    assert len(folded.report.folded) == 1
    other = onnx.ModelProto()
    other.CopyFrom(model)
    next(node for node in other.graph.node if node.op_type == "ArgMax").op_type = "ArgMin"
    with pytest.raises(FoldError, match="'z' differs"):
        verify_onnx(model, other)


def test_constants_that_are_float32_whatever_reads_them_are_widened():
    """`value_floats` and the window of a sound: a norm by such statistics was called unproved, "report this model"."""
    net = Net(opset=17)
    conv = net.node("Conv", [net.input("x", "N", 3, 5, 5), net.constant("w", 4, 3, 3, 3)])
    numbers = [net.node("Constant", [], value_floats=[0.1, 0.7, 1.3, 2.9]) for _ in range(4)]
    net.output(net.node("BatchNormalization", [conv, *numbers], "y"))
    require_folded(net.model())


def reversed_copy(model: onnx.ModelProto, graph: Callable[[onnx.ModelProto], onnx.GraphProto]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = list(graph(copy).node)[::-1]
    del graph(copy).node[:]
    graph(copy).node.extend(nodes)
    return copy


def test_unsorted_graphs_are_sorted_by_fold_and_by_verify():
    """As runtimes do: the main graph and the body of an If, at either door."""
    inner = Net(opset=17)
    conv = inner.node("Conv", ["x", inner.constant("v", 3, 3, 1, 1)], "c")
    inner.norm(conv, 3, "o")
    tensors = [numpy_helper.from_array(values, name) for name, values in inner.tensors.items()]
    body = helper.make_graph(inner.nodes, "body", [], [helper.make_tensor_value_info("o", 1, ["N", 3, 5, 5])], tensors)
    plain = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["p"])], "plain", [], [helper.make_tensor_value_info("p", 1, None)]
    )
    net = Net(opset=17)
    net.input("x", "N", 3, 5, 5)
    total = net.node("ReduceSum", ["x"], keepdims=0)
    net.put("zero", np.float32(0))
    chosen = net.node("If", [net.node("Less", ["zero", total])], then_branch=body, else_branch=plain)
    y = net.node("Conv", [chosen, net.constant("w", 4, 3, 1, 1)])
    net.output(net.norm(y, 4, "y"), 4)
    model = net.model()
    for graph in (lambda m: m.graph, lambda m: next(n for n in m.graph.node if n.op_type == "If").attribute[1].g):
        unsorted = reversed_copy(model, graph)
        with pytest.raises(onnx.checker.ValidationError):
            onnx.checker.check_model(unsorted)
        folded = fold_onnx(unsorted)
        assert len(folded.report.folded) == 2
        assert verify_onnx(unsorted, folded).algebra_error < 1e-11


def conv_with(**attributes: int) -> onnx.ModelProto:
    net = Net()
    conv = net.node("Conv", [net.input("x", "N", 4, 5, 5), net.constant("w", 4, 2, 1, 1)], **attributes)
    net.output(net.norm(conv, 4), 4)
    return net.model()


@pytest.mark.parametrize("group", [0, -2, 3])
def test_groups_that_no_layer_can_have_are_a_refusal(group: int):
    """ONNX's check does not look at them."""
    (site,) = fold_onnx(conv_with(group=group)).report.refused
    assert f"has group={group}, which does not divide the 4 rows of its weight" in site.reason


@pytest.mark.parametrize("kind", ["ratio", "factor"])
def test_an_input_of_one_number_beside_the_rows(kind: str):
    """Where the runtime alone knows an operation, inputs are moved and handed to it again, as arrays."""
    net = Net(opset=17, extra_opsets=(("com.microsoft", 1),))
    conv = net.node("Conv", [net.input("x", "N", 4, 5, 5), net.constant("w", 4, 4, 1, 1)])
    x, r = net.norm(conv, 4), net.input("r")
    if kind == "ratio":
        y = net.node("Dropout", [x, r, net.put("is_training", np.array(True))])
    else:
        y = net.node("Gelu", [net.node("Mul", [x, r])])
        net.nodes[-1].domain = "com.microsoft"
    net.output(y, 4)
    model = net.model()
    folded = fold_onnx(model)
    assert len(folded.report.folded) == 1
    assert verify_onnx(model, folded).deployed_error < 1e-5


def test_types_that_onnx_does_not_know_are_named():
    """Nor at these: of an initializer and of an input."""
    model = conv_with(group=2)
    model.graph.initializer[0].data_type = 99
    with pytest.raises(FoldError, match="'w' has the data type 99, which ONNX does not know"):
        fold_onnx(model)
    model = conv_with(group=2)
    model.graph.input[0].type.tensor_type.elem_type = 77
    with pytest.raises(FoldError, match="'x' has the data type 77, which ONNX does not know"):
        verify_onnx(conv_with(group=2), model)


def test_a_sparse_constant_is_no_statistic_of_the_batch():
    """The reason says what it is."""
    net = Net(opset=17)
    conv = net.node("Conv", [net.input("x", "N", 3, 5, 5), net.constant("w", 4, 3, 3, 3)])
    values, places = numpy_helper.from_array(np.float32([1, 2])), numpy_helper.from_array(np.int64([0, 2]))
    scale = net.node("Constant", [], sparse_value=helper.make_sparse_tensor(values, places, [4]))
    net.output(net.node("BatchNormalization", [conv, scale, *net.statistics("bn", 4)[1:]], "y"), 4)
    (site,) = fold_onnx(net.model()).report.refused
    assert site.reason.endswith("is a constant that cannot be worked out")
