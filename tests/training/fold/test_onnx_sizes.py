"""Sizes that are free, negative, large or unknown, and inputs that are no numbers: all fold, with their proof."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from foldserve.training.errors import ConfigError
from foldserve.training.fold.onnx.api import FoldedOnnx, fold_onnx, verify_onnx
from tests.support.onnx_cases import Net


def conv_and_norm(*dims: int | str, kernel: tuple[int, ...] = (3, 3), opset: int = 20, **attributes: object) -> Net:
    """A convolution of `dims[1]` channels to 6, and its norm."""
    net = Net(opset=opset)
    weight = net.constant("w", 6, int(dims[1]), *kernel)
    net.norm(net.node("Conv", [net.input("x", *dims), weight], **attributes), 6, "y")
    net.output("y", len(dims))
    return net


def outputs(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def require_folded(model: onnx.ModelProto, folded: FoldedOnnx, **feeds: np.ndarray) -> None:
    """The norm is gone, and onnxruntime computes what it computed."""
    assert len(folded.report.folded) == 1
    assert not folded.report.refused
    for one, other in zip(outputs(model, **feeds), outputs(folded.model, **feeds), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize("dims", [(-1, 3, "?", "?"), (-1, 3, -1, -1), (-1, 3, 8, 8), (2, 3, -3, -3)])
def test_negative_sizes_are_free_sizes(dims):
    """paddle2onnx writes -1 for a free size, and inference makes -3 of it: runtimes take both for any size."""
    model = conv_and_norm(*dims, opset=11).model(7)
    rows = 2 if dims[0] == 2 else 1
    for value, declared in ((model.graph.input[0], dims), (model.graph.output[0], (dims[0], 6, -1, -1))):
        for dim, size in zip(value.type.tensor_type.shape.dim, declared, strict=True):
            if isinstance(size, int):
                dim.dim_value = size
    if dims[2] == 8:
        for dim in model.graph.output[0].type.tensor_type.shape.dim[2:]:
            dim.dim_value = 6
    require_folded(model, fold_onnx(model), x=np.random.default_rng(0).normal(size=(rows, 3, 8, 8)).astype("f"))


@pytest.mark.parametrize(
    ("dims", "kernel", "strides"),
    [(("N", 1, "samples"), (400,), [160]), (("N", 2, "h", "w"), (230, 1), [20, 20]), (("N", 1, "t"), (20000,), [5000])],
)
def test_free_sizes_are_tried_until_the_network_runs(dims, kernel, strides):
    """A waveform of some thousand samples, or a window of 300 rows, is tried as well."""
    model = conv_and_norm(*dims, kernel=kernel, strides=strides).model()
    x = np.random.default_rng(0).normal(size=[size if isinstance(size, int) else 1 for size in dims[:2]])
    x = np.random.default_rng(0).normal(size=(*x.shape, *(2 * size for size in kernel))).astype("f")
    require_folded(model, fold_onnx(model), x=x)


def test_a_size_that_no_try_fits_can_be_given():
    """Two inputs that have to differ by 1000 samples: the caller says so."""
    net = Net()
    long, short = net.input("long", "N", 1, "t"), net.input("short", "N", 1, "s")
    cut = net.node("Slice", [long, *(net.put(n, [v], np.int64) for n, v in (("a", 1000), ("b", 2**31), ("c", 2)))])
    both = net.node("Concat", [cut, short], axis=1)
    net.output(net.norm(net.node("Conv", [both, net.constant("w", 6, 2, 5)]), 6, "y"), 3)
    model = net.model()
    shapes = {"long": (2, 1, 1100), "short": (2, 1, 100)}
    folded = fold_onnx(model, input_shapes=shapes)
    assert len(folded.report.folded) == 1
    assert verify_onnx(model, folded, input_shapes=shapes).algebra_error < 1e-12


@pytest.mark.parametrize("shape", [(2, 4, 9), (2, 3, 9), (0, 3, 9, 9), (2, 5, 9, 9)])
def test_a_shape_that_is_not_the_models_is_refused(shape):
    """Rank, fixed sizes and positive numbers are those that the model declares."""
    with pytest.raises(ConfigError, match="the model declares x"):
        fold_onnx(conv_and_norm("N", 3, 9, 9).model(), input_shapes={"x": shape})
    with pytest.raises(ConfigError, match="for the input 'other'"):
        fold_onnx(conv_and_norm("N", 3, 9, 9).model(), input_shapes={"other": (1,)})


@pytest.mark.parametrize("opset", [21, 24, 25, 26])
def test_later_operator_sets_fold(opset):
    """BatchNormalization has not changed since opset 15; what changes it would be refused by its number."""
    model = conv_and_norm(2, 3, 8, 8, opset=opset).model(11)
    require_folded(model, fold_onnx(model), x=np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype("f"))


@pytest.mark.parametrize("also", [False, True])
def test_an_output_of_unknown_rank_is_no_obstacle(also):
    """A Reshape by an input has a rank that cannot be known; beside an output of known rank, or alone."""
    net = conv_and_norm(2, 3, 8, 8)
    net.inputs.append(helper.make_tensor_value_info("shape", TensorProto.INT64, ["rank"]))
    net.node("Reshape", ["y", "shape"], "flat")
    net.outputs = [("flat", None), ("y", None)] if also else [("flat", None)]
    model = net.model()
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype("f")
    require_folded(model, fold_onnx(model), x=x, shape=np.array([8, -1]))


def test_string_inputs_beside_the_images_are_no_obstacle():
    """A label that is passed on as a string touches no number."""
    net = conv_and_norm("N", 3, 8, 8)
    net.inputs.append(helper.make_tensor_value_info("name", TensorProto.STRING, ["N"]))
    net.node("Identity", ["name"], "same_name")
    model = net.model()
    model.graph.output.append(helper.make_tensor_value_info("same_name", TensorProto.STRING, ["N"]))
    folded = fold_onnx(model)
    assert len(folded.report.folded) == 1
    assert folded.report.proof is not None
    assert folded.report.proof.original_error > 0  # onnxruntime ran it
    assert verify_onnx(model, folded).algebra_error < 1e-12


def test_a_sequence_among_the_inputs_is_no_obstacle():
    """What the probe cannot make stays unknown; the norm beside it is proved all the same."""
    net = conv_and_norm("N", 3, 8, 8)
    net.inputs.append(helper.make_tensor_sequence_value_info("boxes", TensorProto.FLOAT, ["n", 4]))
    net.node("SequenceLength", ["boxes"], "count")
    model = net.model()
    model.graph.output.append(helper.make_tensor_value_info("count", TensorProto.INT64, []))
    assert len(fold_onnx(model).report.folded) == 1


def turned_around(names: tuple[str, str], channels: int = 8) -> onnx.ModelProto:
    """(a, 5, b) -> (a, 8, b) -> (b, 8, a) by a Reshape to computed sizes, and a norm: no weight can take that."""
    net = Net(opset=17)
    rows = net.node("Transpose", [net.input("x", names[0], 5, names[1])], perm=[0, 2, 1])
    made = net.node("Transpose", [net.node("MatMul", [rows, net.constant("w", 5, channels)])], perm=[0, 2, 1])
    sizes = net.node("Gather", [net.node("Shape", [made]), net.put("order", [2, 1, 0], np.int64)], axis=0)
    net.output(net.norm(net.node("Reshape", [made, sizes]), channels, "y"), 3)
    return net.model()


@pytest.mark.parametrize("names", [("?", "?"), ("N", "N"), ("a", "b")])
def test_sizes_that_are_called_alike_need_not_be_equal(names):
    """Runtimes do not compare them, and "?" stands for whatever is not known: nothing may rest on it."""
    model = turned_around(names)
    folded = fold_onnx(model)
    assert [site.code for site in folded.report.refused] == ["axis"]
    x = np.random.default_rng(0).normal(size=(2, 5, 7)).astype("f")
    np.testing.assert_array_equal(outputs(model, x=x)[0], outputs(folded.model, x=x)[0])


def shaped_by_the_batch(claim: list[int | str] | None) -> onnx.ModelProto:
    """A Reshape that keeps the axes below a batch of seven and turns them around above it; `claim` is in the file."""
    net = Net(opset=17)
    rows = net.node("MatMul", [net.input("x", "N", 8, 8), net.constant("w", 8, 8)])
    turned = net.node("Transpose", [rows], perm=[0, 2, 1])
    batch = net.node("Gather", [net.node("Shape", [turned]), net.put("zero", [0], np.int64)], axis=0)
    few = net.node("Less", [batch, net.put("seven", [7], np.int64)])
    shapes = [net.put(name, shape, np.int64) for name, shape in (("kept", [0, 8, -1]), ("flat", [8, 8, -1]))]
    net.node("Reshape", [turned, net.node("Where", [few, *shapes])], "r")
    net.output(net.norm("r", 8, "y"), 3)
    model = net.model()
    if claim is not None:
        model.graph.value_info.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, claim))
    return model


@pytest.mark.parametrize("claim", [None, ["N", 8, 8], ["N", 8, "M"], [2, 8, 8]])
def test_what_a_file_says_of_values_in_between_is_not_believed(claim):
    """It was true at the exporter's batch; no runtime looks at it, and no size that is proved shows it."""
    model = shaped_by_the_batch(claim)
    folded = fold_onnx(model)
    assert not folded.report.folded
    x = np.random.default_rng(0).normal(size=(16, 8, 8)).astype("f")
    np.testing.assert_array_equal(outputs(model, x=x)[0], outputs(folded.model, x=x)[0])


def test_a_shape_that_callers_may_replace_proves_nothing():
    """An initializer that is an input as well is only a default."""
    net = Net(opset=17)
    rows = net.node("MatMul", [net.input("x", "N", 8, 8), net.constant("w", 8, 8)])
    turned = net.node("Transpose", [rows], perm=[0, 2, 1])
    net.output(net.norm(net.node("Reshape", [turned, net.put("shape", [0, 8, -1], np.int64)]), 8, "y"), 3)
    model = net.model()
    assert len(fold_onnx(model).report.folded) == 1
    model.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [3]))
    folded = fold_onnx(model)
    assert not folded.report.folded
    feeds = {"x": np.random.default_rng(0).normal(size=(8, 8, 8)).astype("f"), "shape": np.array([8, 8, 8])}
    np.testing.assert_array_equal(outputs(model, **feeds)[0], outputs(folded.model, **feeds)[0])


@pytest.mark.parametrize("op", ["Size", "Shape"])
def test_another_domain_s_operation_reads_numbers(op):
    """Only ONNX's own Shape and Size are known to look at sizes alone."""
    net = Net(opset=17, extra_opsets=(("my.own", 1),))
    c = net.node("Conv", [net.input("x", "N", 3, 8, 8), net.constant("w", 4, 3, 3, 3)])
    net.node(op, [c], "z", domain="my.own")
    net.output(net.norm(c, 4, "y"), 4)
    net.output("z", 4)
    assert [site.code for site in fold_onnx(net.model()).report.refused] == ["multi-use"]
