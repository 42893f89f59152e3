"""Every ONNX model of the scoreboard, held to its verdict, with onnxruntime as the judge of the numbers."""

from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from foldserve.training.fold.onnx.api import FoldedOnnx, fold_onnx
from tests.support.onnx_cases import FOLD, Case, cases

torch.set_num_threads(1)  # the proofs here are tiny: more threads only wait for one another

CASES = cases()
RUNNABLE = [case for case in CASES if case.verdict not in ("training-mode", "spatial")]


@cache
def once(name: str) -> FoldedOnnx:
    """The fold of one case, shared by the tests that only look at it."""
    case = next(case for case in CASES if case.name == name)
    return fold_onnx(case.build(), **case.options)


def named(case: Case) -> str:
    return case.name


def run(model: onnx.ModelProto, seed: int = 3) -> list[np.ndarray]:
    """Outputs of onnxruntime with every optimisation off, for inputs with three rows."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bool)": np.bool_}
    feeds = {}
    for value in session.get_inputs():
        shape = [dim if isinstance(dim, int) else 3 for dim in value.shape]
        feeds[value.name] = rng.normal(0.5, 2, shape).astype(kinds[value.type])
    return session.run(None, feeds)


def norms(model: onnx.ModelProto) -> int:
    """How many BatchNormalization nodes stand in the graph and in all bodies."""
    return str(model.graph).count('op_type: "BatchNormalization"')


def test_case_names_are_unique():
    """A row of the scoreboard names one model."""
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_verdict_is_the_one_that_exact_algebra_gives(case):
    """Each model is folded, or refused with the code of its reason, and nothing is left without either."""
    folded = once(case.name)
    codes = {str(site.code) for site in folded.report.refused}
    if case.verdict == FOLD:
        assert not codes
        assert folded.report.folded
        assert norms(folded.model) == 0
    else:
        assert codes == {case.verdict}
        assert all(site.reason and site.remedy for site in folded.report.refused)


@pytest.mark.parametrize("case", RUNNABLE, ids=named)
def test_folded_model_is_valid_and_computes_the_same(case):
    """The result passes ONNX's full check, and onnxruntime sees no difference beyond rounding."""
    original = case.build()
    folded = once(case.name).model
    onnx.checker.check_model(folded, full_check=True)
    for one, other in zip(run(original), run(folded), strict=True):
        largest = np.abs(np.asarray(one, np.float64)[np.isfinite(one)]).max(initial=0.0)
        np.testing.assert_allclose(other, one, rtol=0, atol=case.tolerance * max(largest, 1e-6), equal_nan=True)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_argument_untouched_result_deterministic_and_folding_again_a_no_op(case):
    """The caller's model keeps its bytes; two folds have equal bytes; a folded model folds to itself."""
    original = case.build()
    before = original.SerializeToString(deterministic=True)
    first, second = once(case.name).model, fold_onnx(original, **case.options).model
    assert original.SerializeToString(deterministic=True) == before
    expected = first.SerializeToString(deterministic=True)
    assert second.SerializeToString(deterministic=True) == expected
    again = fold_onnx(first, **case.options)
    assert not again.report.folded
    assert again.model.SerializeToString(deterministic=True) == expected
