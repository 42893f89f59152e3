"""Rewritten graphs against the published one: onnx checks their form, onnx's own reference evaluator their answers."""

from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from foldserve.service.engines.rewrites import fill_blocks, split_pooling
from tests.support import artifacts

REWRITES = {
    "split": split_pooling,
    "fill 16": partial(fill_blocks, channels=16, is_cut=True),
    "fill 8": partial(fill_blocks, channels=8, is_cut=False),
}
ACTIVATIONS = ("Sigmoid", "Relu", "Tanh", "Softplus", "HardSigmoid", "Elu")


def network(activation="Sigmoid", pool="AveragePool", *, conv=None, pooling=None, channels=6, opset=18, tail="conv"):
    """float32 `x` [batch,2,17,15] -> conv, activation, pool, then another conv or a plain reduction -> `y`."""
    rng = np.random.default_rng(5)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    weights = {"w": draw(channels, 2, 3, 4), "b": draw(channels), "w2": draw(5, channels, 2, 2)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], **(conv or {})),
        helper.make_node(activation, ["c"], ["a"]),
        helper.make_node(pool, ["a"], ["p"], **(pooling or {"kernel_shape": [2, 3], "strides": [2, 3]})),
    ]
    if tail == "conv":
        nodes.append(helper.make_node("Conv", ["p", "w2"], ["y"]))
    else:
        del weights["w2"]
        nodes.append(helper.make_node("Identity", ["p"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 17, 15])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "k", "h", "w"])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def rewritten(model, name):
    data = REWRITES[name](model.SerializeToString())
    if data is None:
        return None
    changed = onnx.load_from_string(data)
    onnx.checker.check_model(changed, full_check=True)
    return changed


def answers(model):
    x = np.random.default_rng(9).standard_normal((3, 2, 17, 15)).astype(np.float32)
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


def assert_same_function(model, name):
    changed = rewritten(model, name)
    assert changed is not None
    expected, result = answers(model), answers(changed)
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", REWRITES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_rewrite_is_the_same_function(name, activation):
    """With activations that give 0 for 0 and with those that do not."""
    assert_same_function(network(activation), name)


@pytest.mark.parametrize("name", REWRITES)
@pytest.mark.parametrize(
    "conv", [{"pads": [1, 2, 0, 3]}, {"strides": [2, 1]}, {"strides": [1, 2], "pads": [2, 2, 2, 2]}]
)
def test_pads_and_strides_of_the_convolution_are_kept(name, conv):
    """Also where the last pool is cut off by the edge, which the pool leaves out."""
    assert_same_function(network(conv=conv), name)


@pytest.mark.parametrize("name", ["fill 16", "fill 8"])
@pytest.mark.parametrize(
    "pooling", [{"kernel_shape": [3, 3]}, {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 0, 0]}]
)
@pytest.mark.parametrize("pool", ["AveragePool", "MaxPool"])
def test_channels_can_be_filled_before_any_pool(name, pooling, pool):
    """Maxima, overlapping pools and pools over the edge."""
    assert_same_function(network(pool=pool, pooling=pooling), name)


@pytest.mark.parametrize(
    "model",
    [
        network(pool="MaxPool"),
        network(pooling={"kernel_shape": [3, 3]}),
        network(pooling={"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 0, 0]}),
        network(pooling={"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        network(conv={"dilations": [2, 2]}),
        network(conv={"auto_pad": "SAME_UPPER"}),
        network(channels=16),
    ],
    ids=["max", "overlapping", "padded", "ceil", "dilated", "auto pad", "full blocks"],
)
def test_a_pool_that_cannot_be_split_is_left(model):
    """Where windows would not lie side by side, where the mean is no mean, and where nothing is to gain."""
    assert rewritten(model, "split") is None


def test_new_channels_are_cut_off_where_no_convolution_follows():
    """Zero weights need a place; a cut does not."""
    model = network(tail="identity")
    assert rewritten(model, "fill 8") is None
    assert_same_function(model, "fill 16")


@pytest.mark.parametrize("name", REWRITES)
def test_a_tensor_that_somebody_else_reads_is_left(name):
    """A second reader, the caller as reader, weights that the caller may replace, weights of a group."""
    model = network()
    model.graph.node.append(helper.make_node("Abs", ["a"], ["second"]))
    assert rewritten(model, name) is None
    model = network()
    model.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, ["batch", 6, "u", "v"]))
    assert rewritten(model, name) is None
    model = network()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 2, 3, 4]))
    assert rewritten(model, name) is None
    model = network(opset=11)
    assert rewritten(model, name) is None


def test_float_data_is_read_like_raw_data():
    """onnx has two places for the numbers of a tensor."""
    model = network()
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, values.shape, values.flatten().tolist()))
    assert_same_function(model, "split")


def test_nothing_but_the_graph_changes():
    """Inputs, outputs and metadata of a real classifier stay, unread weights do not."""
    model = artifacts.classifier_model()
    changed = rewritten(model, "split")
    assert changed.graph.input == model.graph.input
    assert changed.graph.output == model.graph.output
    assert changed.metadata_props == model.metadata_props
    names = {tensor.name for tensor in changed.graph.initializer}
    assert "conv.weight" not in names
    assert "fc.weight" in names
    assert REWRITES["split"](artifacts.echo_model().SerializeToString()) is None
