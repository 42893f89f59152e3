"""The proof under attack: every way in which a fold is usually wrong has to be caught by it."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from foldserve.training.errors import FoldError
from foldserve.training.fold.core import Array
from foldserve.training.fold.onnx.graph import OnnxGraph
from foldserve.training.fold.onnx.model_proof import compare_models, prove_onnx
from foldserve.training.fold.onnx.site_proof import Segment
from foldserve.training.fold.refusals import Refusal
from tests.support.onnx_cases import Net

torch.set_num_threads(1)

GROUPS = 2
EPSILON = float(np.float32(1e-5))


def network() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", "N", 4, 9, 9)
    c = net.node("Conv", [x, net.constant("w", 6, 2, 3, 3), net.constant("b", 6)], "c", group=GROUPS, pads=[1] * 4)
    net.output(net.node("Sigmoid", [net.norm(c, 6, "n", prefix="bn")], "y"))
    return net.model()


MODEL = network()
GIVEN = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in MODEL.graph.initializer}
DEVIATION = np.sqrt(GIVEN["bn_var"] + EPSILON)
SCALE = GIVEN["bn_scale"] / DEVIATION
SHIFT = GIVEN["bn_bias"] - GIVEN["bn_mean"] * SCALE


def right(scale: Array = SCALE, shift: Array = SHIFT) -> tuple[Array, Array]:
    return GIVEN["w"] * scale[:, None, None, None], GIVEN["b"] * scale + shift


def swapped() -> tuple[Array, Array]:
    order = [1, 0, 2, 3, 4, 5]
    return right(SCALE[order], SHIFT[order])


def one_sign() -> tuple[Array, Array]:
    signs = np.array([1, 1, -1, 1, 1, 1])
    return right(SCALE * signs, SHIFT)


def no_epsilon() -> tuple[Array, Array]:
    scale = GIVEN["bn_scale"] / np.sqrt(GIVEN["bn_var"])
    return right(scale, GIVEN["bn_bias"] - GIVEN["bn_mean"] * scale)


def variance_for_deviation() -> tuple[Array, Array]:
    scale = GIVEN["bn_scale"] / (GIVEN["bn_var"] + EPSILON)
    return right(scale, GIVEN["bn_bias"] - GIVEN["bn_mean"] * scale)


def bias_not_scaled() -> tuple[Array, Array]:
    return right()[0], GIVEN["b"] + SHIFT


def group_off_by_one() -> tuple[Array, Array]:
    return GIVEN["w"] * np.roll(SCALE, 6 // GROUPS)[:, None, None, None], right()[1]


def shifted_by_a_pixel() -> tuple[Array, Array]:
    weight, bias = right()
    return np.roll(weight, 1, axis=3), bias


def scaled_along_inputs() -> tuple[Array, Array]:
    return GIVEN["w"] * SCALE[:2][None, :, None, None], right()[1]


def folded_with(weight: Array, bias: Array) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The folded network with these parameters, written as a fold would write them."""
    graph = OnnxGraph(MODEL)
    norm = next(node for node in graph.nodes if node.op_type == "BatchNormalization")
    graph.store("w", weight, "float32")
    graph.store("b", bias, "float32")
    graph.remove([norm])
    graph.rename_output(graph.nodes[0], "c", "n")
    return graph.finish(), graph.exact


def prove(weight: Array, bias: Array) -> float:
    model, exact = folded_with(weight, bias)
    (verdict,), _ = prove_onnx(MODEL, model, exact, [[Segment("n", ("x",), frozenset({"c"}))]])
    if isinstance(verdict, Refusal):
        raise verdict
    return verdict


def test_right_fold_is_proved_far_below_the_limit():
    """What the mutants are mutations of passes, with orders of magnitude to spare."""
    assert prove(*right()) < 1e-14


MUTANTS = [
    swapped,
    one_sign,
    no_epsilon,
    variance_for_deviation,
    bias_not_scaled,
    group_off_by_one,
    shifted_by_a_pixel,
    scaled_along_inputs,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutant_is_caught(mutant: Callable[[], tuple[Array, Array]]):
    """A fold with one mistake in it is not returned."""
    with pytest.raises(FoldError, match="unjudged: the fold is not proved"):
        prove(*mutant())


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
@pytest.mark.parametrize("knows_exact", [True, False])
def test_mutant_is_caught_by_verify(mutant: Callable[[], tuple[Array, Array]], knows_exact: bool):
    """Nor does `verify_onnx` let it pass, which knows no site, and of a foreign file not even the exact parameters."""
    model, exact = folded_with(*mutant())
    if mutant is no_epsilon and not knows_exact:
        return  # eps is 1e-5 of variances near 1: less than the rounding of parameters that nobody can check
    with pytest.raises(FoldError, match="does not compute"):
        compare_models(MODEL, model, exact if knows_exact else None)


def test_right_fold_passes_verify():
    """What the mutants are mutations of is accepted, with its exact parameters and without."""
    model, exact = folded_with(*right())
    assert compare_models(MODEL, model, exact).algebra_error < 1e-14
    assert compare_models(MODEL, model).algebra_error < 1e-6


def test_parameter_one_ulp_off_is_caught():
    """Stored parameters are the exact values rounded once: the neighbouring float32 is not good enough."""
    model, exact = folded_with(*right())
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    values = numpy_helper.to_array(tensor).copy()
    values.flat[7] = np.nextafter(values.flat[7], np.float32(np.inf))
    tensor.CopyFrom(numpy_helper.from_array(values, "w"))
    with pytest.raises(FoldError, match="'w' is not its float64 value rounded once"):
        prove_onnx(MODEL, model, exact, [[Segment("n", ("x",), frozenset({"c"}))]])


def test_a_change_elsewhere_in_the_network_is_caught_end_to_end():
    """A mistake outside every site is seen at the outputs."""
    model, exact = folded_with(*right())
    model.graph.node[-1].op_type = "Tanh"
    with pytest.raises(FoldError, match="does not compute"):
        prove_onnx(MODEL, model, exact, [[Segment("n", ("x",), frozenset({"c"}))]])
