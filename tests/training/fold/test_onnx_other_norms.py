"""Networks whose other norms stay: those that ONNX's own reference gets wrong, or cannot run, are evaluated right."""

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest

from foldserve.training.fold import fold_onnx
from tests.support.onnx_cases import Net

X = np.random.default_rng(0).normal(size=(3, 6, 5, 7)).astype(np.float32)


def group_norm(net: Net, x: str) -> str:
    return net.node("GroupNormalization", [x, net.constant("gs", 6), net.constant("gb", 6)], num_groups=2, epsilon=0.1)


def local_response(size: int) -> Callable[[Net, str], str]:
    return lambda net, x: net.node("LRN", [x], size=size, alpha=0.5, beta=0.6, bias=1.5)


def mean_variance(net: Net, x: str) -> str:
    return net.node("MeanVarianceNormalization", [x])


def mean_variance_of_rows(net: Net, x: str) -> str:
    return net.node("MeanVarianceNormalization", [x], axes=[1, 2, 3])


CASES: dict[str, tuple[int, Callable[[Net, str], str]]] = {
    "GroupNormalization 21": (21, group_norm),
    "GroupNormalization 25": (25, group_norm),
    "GroupNormalization 26": (26, group_norm),
    "LRN of 3": (13, local_response(3)),
    "LRN of 5": (22, local_response(5)),
    "MeanVarianceNormalization": (13, mean_variance),
    "MeanVarianceNormalization of rows": (13, mean_variance_of_rows),
}


@pytest.mark.parametrize("name", CASES)
def test_norms_on_both_sides_of_one_that_stays_are_folded(name: str) -> None:
    """onnxruntime says that the folded file computes what it did; the proof runs on the right numbers, and passes."""
    opset, stays = CASES[name]
    net = Net(opset=opset)
    first = net.norm(net.node("Conv", [net.input("x", "N", 6, 5, 7), net.constant("w", 6, 6, 1, 1)]), 6)
    second = net.node("Conv", [stays(net, first), net.constant("v", 4, 6, 3, 3)])
    net.output(net.norm(second, 4, "y"), 4)
    model = net.model(ir_version=11 if opset > 24 else 10)
    result = fold_onnx(model)
    assert len(result.report.folded) == 2
    assert result.report.proof.deployed_error < 1e-5
    before, after = (
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]
        for m in (model, result.model)
    )
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
