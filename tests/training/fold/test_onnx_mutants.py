"""The proof under attack: every way in which a fold is usually wrong has to be caught by it."""

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
from tests.support.fold_mutants import MUTANTS, Given
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
TENSORS = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in MODEL.graph.initializer}
GIVEN = Given(*(TENSORS[name] for name in ("w", "b", "bn_scale", "bn_bias", "bn_mean", "bn_var")), EPSILON, GROUPS)
IN_FLOAT32 = {"eps_in_float32"}  # what ONNX means by epsilon


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
    assert prove(*GIVEN.folded()) < 1e-14


@pytest.mark.parametrize("mutant", [name for name in MUTANTS if name not in IN_FLOAT32])
def test_mutant_is_caught(mutant: str):
    """A fold with one mistake in it is not returned."""
    with pytest.raises(FoldError, match="unjudged: the fold is not proved"):
        prove(*MUTANTS[mutant](GIVEN))


@pytest.mark.parametrize("mutant", [name for name in MUTANTS if name not in IN_FLOAT32])
@pytest.mark.parametrize("knows_exact", [True, False])
def test_mutant_is_caught_by_verify(mutant: str, knows_exact: bool):
    """Nor does `verify_onnx` let it pass, which knows no site, and of a foreign file not even the exact parameters."""
    model, exact = folded_with(*MUTANTS[mutant](GIVEN))
    if mutant in {"no_eps", "rounded_to_float32"} and not knows_exact:
        return  # eps is 1e-5 of variances near 1: less than the rounding of parameters that nobody can check
    with pytest.raises(FoldError, match="does not compute"):
        compare_models(MODEL, model, exact if knows_exact else None)


def test_right_fold_passes_verify():
    """What the mutants are mutations of is accepted, with its exact parameters and without."""
    model, exact = folded_with(*GIVEN.folded())
    assert compare_models(MODEL, model, exact).algebra_error < 1e-14
    assert compare_models(MODEL, model).algebra_error < 1e-6


def test_parameter_one_ulp_off_is_caught():
    """Stored parameters are the exact values rounded once: the neighbouring float32 is not good enough."""
    model, exact = folded_with(*GIVEN.folded())
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    values = numpy_helper.to_array(tensor).copy()
    values.flat[7] = np.nextafter(values.flat[7], np.float32(np.inf))
    tensor.CopyFrom(numpy_helper.from_array(values, "w"))
    with pytest.raises(FoldError, match="'w' is not its float64 value rounded once"):
        prove_onnx(MODEL, model, exact, [[Segment("n", ("x",), frozenset({"c"}))]])


def test_a_change_elsewhere_in_the_network_is_caught_end_to_end():
    """A mistake outside every site is seen at the outputs."""
    model, exact = folded_with(*GIVEN.folded())
    model.graph.node[-1].op_type = "Tanh"
    with pytest.raises(FoldError, match="does not compute"):
        prove_onnx(MODEL, model, exact, [[Segment("n", ("x",), frozenset({"c"}))]])
