"""`fold_onnx` beyond the case list: what the parameters become, what the report says, what is no model at all."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from foldserve.training.errors import FoldError
from foldserve.training.fold.onnx.api import explain_onnx, fold_onnx, verify_onnx
from foldserve.training.fold.onnx.evaluator import Evaluator
from tests.support.onnx_cases import Net, cases

BY_NAME = {case.name: case for case in cases()}


def build(name: str) -> onnx.ModelProto:
    return BY_NAME[name].build()


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def operations(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_conv_parameters_are_the_float64_values_rounded_once():
    """Weight and bias equal the textbook formula in float64, rounded once, bit for bit."""
    model = build("Conv2d")
    given = {name: value.astype(np.float64) for name, value in arrays(model).items()}
    epsilon = float(np.float32(1e-5))
    scale = given["bn1_scale"] / np.sqrt(given["bn1_var"] + epsilon)
    shift = given["bn1_bias"] - given["bn1_mean"] * scale
    folded = arrays(fold_onnx(model).model)
    np.testing.assert_array_equal(folded["w"], (given["w"] * scale[:, None, None, None]).astype(np.float32))
    np.testing.assert_array_equal(folded["b"], (scale * given["b"] + shift).astype(np.float32))
    assert set(folded) == {"w", "b"}


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("Conv2d", ["Conv"]),
        ("ConvTranspose grouped", ["ConvTranspose"]),
        ("Gemm alpha and beta", ["Gemm"]),
        ("MatMul + Add", ["MatMul", "Add"]),
        ("norm twice", ["Conv"]),
        ("by hand: Sub, Div, Mul, Add", ["Conv"]),
        ("parameters are Constant nodes", ["Conv"]),
        ("Linear 3-D -> Transpose -> norm", ["MatMul", "Add", "Transpose", "Transpose"]),
        ("norm, Dropout, norm -> Conv", ["Dropout", "Conv"]),
    ],
)
def test_nothing_is_left_behind(name, left):
    """Where a norm was folded, only the layers stay: no constants, no arithmetic, no unread node."""
    assert operations(fold_onnx(build(name)).model) == left


def test_shared_weight_is_untied_and_reported():
    """The other reader of a shared weight keeps the old values, and the report says that there are two now."""
    model = build("weight shared, one norm")
    folded = fold_onnx(model)
    other = next(node for node in folded.model.graph.node if "z" in node.input)
    np.testing.assert_array_equal(arrays(folded.model)[other.input[1]], arrays(model)["w"])
    assert "untied 'w'" in folded.report.folded[0].notes[0]


def test_two_norms_in_a_row_round_once():
    """A chain is composed in float64: folding twice does not round twice."""
    model = build("norm, Dropout, norm")
    given = {name: value.astype(np.float64) for name, value in arrays(model).items()}
    epsilon = float(np.float32(1e-5))
    scales = [given[f"{p}_scale"] / np.sqrt(given[f"{p}_var"] + epsilon) for p in ("bn1", "bn3")]
    exact = given["w"] * scales[0][:, None, None, None] * scales[1][:, None, None, None]
    np.testing.assert_array_equal(arrays(fold_onnx(model).model)["w"], exact.astype(np.float32))


def test_report_names_site_layer_and_proof():
    """One site per norm with where, into what, its figures, and a proof of the whole."""
    report = fold_onnx(build("Conv grouped")).report
    (site,) = report.folded
    assert (site.node, site.into, site.channels) == ("BatchNormalization_1", ("Conv_0",), 6)
    assert site.max_ulp is not None
    assert site.max_ulp <= 0.5
    assert site.proof_error is not None
    assert site.proof_error <= 1e-13
    assert report.proof is not None
    assert report.proof.algebra_error <= report.proof.algebra_limit


def test_strict_raises_with_every_reason():
    """With strict, a norm that has to stay is an error that says which one and why."""
    with pytest.raises(FoldError, match=r"BatchNormalization_1 \(multi-use\)"):
        fold_onnx(build("Conv output read twice"), strict=True)


def test_explain_changes_nothing_and_reports_the_same():
    """The dry run gives the report of the fold."""
    model = build("Gemm")
    assert explain_onnx(model) == fold_onnx(model).report


def test_epsilon_is_the_float32_value_of_the_attribute():
    """With variance 0 the scale is gamma / sqrt(eps), eps being what a float32 attribute can hold."""
    net = Net()
    net.put("w", np.ones((1, 1, 1, 1), np.float32))
    c = net.node("Conv", [net.input("x", "N", 1, 4, 4), "w"])
    for name, value in (("g", 1.0), ("b", 0.0), ("m", 0.0), ("v", 0.0)):
        net.put(name, np.array([value], np.float32))
    net.output(net.node("BatchNormalization", [c, "g", "b", "m", "v"], "y", epsilon=1e-3))
    weight = arrays(fold_onnx(net.model()).model)["w"].item()
    assert weight == np.float32(1 / np.sqrt(np.float64(np.float32(1e-3))))


def test_a_model_without_norms_comes_back_as_it_is():
    """Nothing to fold is no error, and nothing changes."""
    net = Net()
    net.output(net.node("Relu", [net.node("Conv", [net.input("x", "N", 1, 4, 4), net.constant("w", 2, 1, 3, 3)])], "y"))
    model = net.model()
    folded = fold_onnx(model)
    assert folded.model == model
    assert not folded.report.folded
    assert not folded.report.refused


def test_the_end_of_a_layer_norm_is_not_missed():
    """A scale and a shift that follow no layer are not reported as a norm that stays."""
    net = Net()
    x = net.node("Softmax", [net.input("x", "N", 6)])
    net.output(net.node("Add", [net.node("Mul", [x, net.constant("g", 6)]), net.constant("b", 6)], "y"))
    report = fold_onnx(net.model()).report
    assert not report.folded
    assert not report.refused


def test_the_end_of_a_group_norm_is_not_missed():
    """Nor are those of a GroupNorm, which normalises a reshaped map and scales the map itself."""
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 3, 9, 9), net.constant("w", 6, 3, 3, 3)])
    flat = net.node("Reshape", [c, net.put("groups", [0, 2, -1], np.int64)])
    normal = net.node("InstanceNormalization", [flat, net.put("one", np.ones(2, np.float32)), net.constant("zero", 2)])
    back = net.node("Reshape", [normal, net.put("back", [-1, 6, 7, 7], np.int64)])
    net.output(net.node("Add", [net.node("Mul", [back, net.constant("g", 6, 1, 1)]), net.constant("b", 6, 1, 1)], "y"))
    report = fold_onnx(net.model()).report
    assert not report.folded
    assert not report.refused


def test_reckoning_with_sizes_is_no_norm():
    """Padding worked out from the input's size subtracts and multiplies, but numbers that belong to no channel."""
    net = Net()
    x = net.input("x", "N", 3, "H", "W")
    size = net.node("Cast", [net.node("Gather", [net.node("Shape", [x]), net.put("i", 2, np.int64)])], to=1)
    half = net.node(
        "Mul", [net.node("Sub", [net.node("Ceil", [size]), net.put("one", 1, np.float32)]), net.put("h", 2, np.float32)]
    )
    net.output(net.node("Mul", [x, half], "y"), 4)
    report = fold_onnx(net.model()).report
    assert not report.folded
    assert not report.refused


def test_what_another_domain_does_is_left_alone():
    """A network around an operator that nobody here knows is folded and proved site by site."""
    net = Net(extra_opsets=(("own.domain", 1),))
    c = net.node("Conv", [net.input("x", 2, 4, 9, 9), net.constant("w1", 6, 4, 3, 3)])
    own = net.node("Mystery", [net.norm(c, 6)], domain="own.domain")
    net.output(net.norm(net.node("Conv", [own, net.constant("w2", 5, 6, 3, 3)]), 5, "y"), 4)
    model = net.model()
    model.graph.value_info.append(helper.make_tensor_value_info(own, TensorProto.FLOAT, [2, 6, 7, 7]))
    report = fold_onnx(model).report
    assert len(report.folded) == 2
    assert report.proof is not None
    assert report.proof.deployed_error < 1e-6


def test_broken_model_is_refused_in_one_sentence():
    """A graph that reads a value nobody makes is no model to fold."""
    model = build("Conv2d")
    model.graph.node[1].input[0] = "nowhere"
    with pytest.raises(FoldError, match="the model is not valid ONNX"):
        fold_onnx(model)


def test_output_without_a_shape_gets_the_inferred_one():
    """Runtimes take outputs without a shape, the checker does not: the fold fills it in."""
    model = build("Conv2d")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    folded = fold_onnx(model).model
    onnx.checker.check_model(folded, full_check=True)
    assert len(folded.graph.output[0].type.tensor_type.shape.dim) == 4


def test_ir_3_keeps_initializers_and_inputs_in_step():
    """Before IR 4 each initializer is listed as an input: the new ones are, the old ones no longer."""
    model = fold_onnx(build("opset 7")).model
    listed = {value.name for value in model.graph.input}
    assert {tensor.name for tensor in model.graph.initializer} <= listed
    assert listed == {"x", "w", "b"}


def test_norm_that_several_layers_read_goes_into_each_of_them():
    """Two readers take the norm, each into its own weights, and the site names both."""
    folded = fold_onnx(build("norm -> Conv and Gemm"))
    (site,) = folded.report.folded
    assert len(site.into) == 2
    assert "BatchNormalization" not in operations(folded.model)


def test_border_of_a_map_of_fixed_size_is_a_constant_for_the_runtime():
    """The correction of a padded convolution reads no data when the size is known: a runtime works it out once."""
    model = fold_onnx(build("norm -> padded Conv, exact"), padding="exact").model
    assert operations(model) == ["Conv", "ConstantOfShape", "Conv", "Add"]
    assert fold_onnx(model, padding="exact").model == model


def test_weights_of_a_body_move_to_the_main_graph_under_names_of_their_own():
    """Both branches of an If read one weight: each gets its own copy, and the old one is gone."""
    folded = fold_onnx(build("inside If, outer weights"))
    assert {site.node for site in folded.report.folded} == {"norm0", "norm1"}
    assert all(site.proof_error <= 1e-13 for site in folded.report.folded)
    parameters = arrays(folded.model)
    assert "w" not in parameters
    assert sorted(values.shape for values in parameters.values()) == [(6,), (6,), (6, 4, 3, 3), (6, 4, 3, 3)]


def test_local_function_stays_a_function_when_no_norm_in_it_folds():
    """Functions are written out only where that makes a fold possible."""
    model = build("Relu between, in a local function")
    folded = fold_onnx(model)
    assert folded.model == model
    (site,) = folded.report.refused
    assert "activation-between" in site.reason


@pytest.mark.parametrize("name", ["Conv output captured by If", "Relu between, in a local function"])
def test_strict_sees_norms_in_other_scopes(name):
    """A norm in a body or a function that stays is an error under strict like any other."""
    with pytest.raises(FoldError, match="subgraph"):
        fold_onnx(build(name), strict=True)


def test_unknown_padding_is_refused():
    """A word that is no choice is an error, not the default."""
    with pytest.raises(FoldError, match="expected"):
        fold_onnx(build("Conv2d"), padding="same")


def test_verify_takes_any_other_model_of_the_same_interface():
    """A fold is verified with its exact parameters to 1e-11, any other file to the rounding of its parameters."""
    model = build("Conv2d")
    folded = fold_onnx(model)
    assert verify_onnx(model, folded).algebra_limit < 1e-9
    assert verify_onnx(model, folded.model).algebra_limit > 1e-9
    with pytest.raises(FoldError, match="inputs and outputs"):
        verify_onnx(model, build("weight shared, two norms"))


@pytest.mark.parametrize("name", ["local function, opset 11", "inside If, opset 11", "inside Loop"])
def test_float64_evaluation_agrees_with_onnxruntime_in_other_scopes(name):
    """The oracle runs norms in bodies and functions as the runtime does, in the opsets that the reference misreads."""
    model = build(name)
    dims = [dim.dim_value or 2 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": np.random.default_rng(0).normal(size=dims).astype(np.float32)}
    if len(model.graph.input) > 1:
        feeds["flag"] = np.array(False)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, feeds)
    wide = {key: value.astype(np.float64) if key == "x" else value for key, value in feeds.items()}
    found = Evaluator(model).run(wide, ["y"])["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("mode_opset", [11, 10])
def test_float64_evaluation_knows_pads_that_crop(mode_opset):
    """A pad of -1 takes a row away, as in NASNet; the fold beside it is proved all the same."""
    net = Net(opset=mode_opset)
    pads = [0, 0, -1, -1, 0, 0, 1, 1]
    x = net.input("x", "N", 4, 9, 9)
    more = {"pads": pads} if mode_opset < 11 else {}
    cropped = net.node("Pad", [x] if more else [x, net.put("pads", pads, np.int64)], **more)
    net.output(net.norm(net.node("Conv", [cropped, net.constant("w", 6, 4, 3, 3)]), 6, "y"))
    model = net.model()
    assert len(fold_onnx(model).report.folded) == 1
    values = np.random.default_rng(1).normal(size=(2, 4, 9, 9))
    expected = np.pad(values[:, :, 1:, 1:], ((0, 0), (0, 0), (0, 1), (0, 1)))
    np.testing.assert_array_equal(Evaluator(model).run({"x": values}, [cropped])[cropped], expected)


def test_nodes_in_another_order_are_sorted():
    """A graph whose nodes stand in any order, as some converters leave them, folds like the sorted one."""
    model = build("difference of two Convs")
    expected = fold_onnx(model).model
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    folded = fold_onnx(model)
    assert len(folded.report.folded) == 1
    assert {t.name: t for t in folded.model.graph.initializer} == {t.name: t for t in expected.graph.initializer}


def test_a_cycle_is_no_model():
    """Values that need one another are named by the check."""
    model = build("Conv2d")
    model.graph.node[0].input[0] = model.graph.node[1].output[0]
    with pytest.raises(FoldError, match="not valid ONNX"):
        fold_onnx(model)


def test_sequences_of_unequal_parts_are_evaluated():
    """What torch.split exports to is a sequence; the proof goes through it."""
    net = Net()
    c = net.norm(net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)]), 6)
    parts = net.node("SplitToSequence", [c, net.put("sizes", [4, 2], np.int64)], axis=1)
    net.output(net.node("Relu", [net.node("SequenceAt", [parts, net.put("at", 1, np.int64)])], "y"), 4)
    report = fold_onnx(net.model()).report
    assert len(report.folded) == 1
    assert report.proof is not None
    assert report.proof.algebra_error > 0  # the output itself was compared


def test_float16_network_with_float32_outputs_is_judged_by_its_parameters():
    """Parameters rounded to float16 move the outputs by more than float32 rounding, whatever the outputs' dtype."""
    net = Net(dtype=np.float16)
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3, scale=0.2)])
    wide = net.node("Cast", [net.norm(c, 6)], "y", to=TensorProto.FLOAT)
    net.dtype = np.float32
    net.output(wide)
    assert len(fold_onnx(net.model()).report.folded) == 1


@pytest.mark.parametrize("part", ["bn1_scale", "bn1_bias", "bn1_mean", "bn1_var"])
@pytest.mark.parametrize("size", [0, 1, 5])
def test_statistics_of_another_size_are_refused(part, size):
    """A file whose norm does not fit together is no traceback: the norm says so, or ONNX's check does."""
    model = build("Conv2d")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == part)
    tensor.CopyFrom(numpy_helper.from_array(np.ones(size, np.float32), part))
    report = fold_onnx(model).report
    assert [str(site.code) for site in report.refused] == ["axis"]


def test_what_no_step_foresaw_is_an_error_of_ours(monkeypatch):
    """Any exception inside a fold says what was being done and to which node, with its cause."""

    def fails(*_: object) -> None:
        raise IndexError("out of range")

    monkeypatch.setattr("foldserve.training.fold.onnx.rewrite.find_producers", fails)
    with pytest.raises(FoldError, match=r"folding 'BatchNormalization_1' failed: IndexError: out of range") as caught:
        fold_onnx(build("Conv2d"))
    assert isinstance(caught.value.__cause__, IndexError)
