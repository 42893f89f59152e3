"""Each rule of the verifier is needed: with it a bad comparison is caught at every door, without it that one passes.

The rules: both models draw from the same random state; no limit grows without bound; every channel has its own scale;
what saturates is compared before it does; what is empty, not a number or all equal is no evidence. The doors: `verify`,
`fold` and `verify_onnx`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from foldserve.training.errors import CannotJudge, FoldError
from foldserve.training.fold import comparison, fold, verdict, verify
from foldserve.training.fold.onnx import evaluator, pair
from foldserve.training.fold.onnx.api import verify_onnx
from foldserve.training.fold.pytorch import agreement, fold_plan, model_proof, parameters, tails
from tests.support.fold_cases import randomise
from tests.support.onnx_cases import Net

IMAGES = torch.randn((2, 3, 6, 6), generator=torch.Generator().manual_seed(0))


class Behind(nn.Module):
    """A convolution and a norm from a seed, and what is behind them."""

    def __init__(self, seed: int, behind: Callable[[Tensor], Tensor]):
        super().__init__()
        torch.manual_seed(seed)
        self.layers, self.behind = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), behind

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.layers(x))


def network(seed: int, behind: Callable[[Tensor], Tensor]) -> nn.Module:
    return Behind(seed, behind).eval()


def model(seed: int, behind: Callable[[Net, str], str]) -> onnx.ModelProto:
    net = Net(rng=np.random.default_rng(seed))
    c = net.node("Conv", [net.input("x", 2, 3, 6, 6), net.constant("w", 4, 3, 3, 3)])
    net.node("Identity", [behind(net, net.norm(c, 4, prefix="bn"))], "y")
    net.output("y", 4)
    return net.model()


def number(net: Net, value: Any) -> str:
    return net.put(f"c{len(net.tensors)}", value, np.float32)


def chaos(y: Tensor) -> Tensor:
    for _ in range(12):
        y = torch.sin(30 * y)
    return y


def chaos_of_file(net: Net, x: str) -> str:
    for _ in range(12):
        x = net.node("Sin", [net.node("Mul", [x, number(net, 30.0)])])
    return x


def beside_of_file(net: Net, x: str) -> str:
    return net.node("Concat", [x, net.node("Add", [x, number(net, 1e12)])], axis=1)


# For each case what stands behind the norm, in PyTorch and in ONNX.
TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda y: y + torch.randn_like(y),
    "cap": chaos,
    "scale": lambda y: torch.cat([y, torch.full_like(y[:, :1], 1e12)], 1),
    "saturation": lambda y: torch.relu(y - 1e6),
    "empty": lambda y: y[:0],
    "not a number": lambda y: y * float("nan"),
    "equal": lambda y: y * 0 + 3,
}
ONNX: dict[str, Callable[[Net, str], str]] = {
    "random": lambda net, x: net.node("Add", [x, net.node("RandomNormalLike", [x])]),
    "cap": chaos_of_file,
    "scale": beside_of_file,
    "saturation": lambda net, x: net.node("Relu", [net.node("Sub", [x, number(net, 1e6)])]),
    "empty": lambda net, x: net.node(
        "Slice", [x, *(net.put(f"i{v}{n}", [v], np.int64) for n, v in enumerate((2, 2, 1)))]
    ),
    "not a number": lambda net, x: net.node("Mul", [x, number(net, np.nan)]),
    "equal": lambda net, x: net.node("Conv", [x, number(net, np.zeros((2, 4, 1, 1))), number(net, [3.0, 3.0])]),
}
NO_EVIDENCE = ("cap", "empty", "not a number", "equal")


def verify_says_no(case: str) -> bool:
    """Two different networks do not pass; for random ones, a network and itself do."""
    one, other = network(0, TORCH[case]), network(1, TORCH[case])
    if case == "random":
        return passes(lambda: verify(one, network(0, TORCH[case]), (IMAGES,)))
    return not passes(lambda: verify(one, other, (IMAGES,)))


def verify_onnx_says_no(case: str) -> bool:
    """The same for files."""
    if case == "random":
        return passes(lambda: verify_onnx(model(0, ONNX[case]), model(0, ONNX[case])))
    return not passes(lambda: verify_onnx(model(0, ONNX[case]), model(1, ONNX[case])))


def fold_says_no(case: str) -> bool:
    """A fold with wrong numbers does not come back as folded; for random networks, a right one does."""
    if case == "random":
        return len(fold(network(0, TORCH[case]), (IMAGES,), dynamic=False).report.folded) == 1
    with wrong_arithmetic():
        try:
            return not fold(network(0, TORCH[case]), (IMAGES,), dynamic=False).report.folded
        except FoldError:
            return True


DOORS = {"verify": verify_says_no, "fold": fold_says_no, "verify_onnx": verify_onnx_says_no}


def passes(compare: Callable[[], Any]) -> bool:
    try:
        compare()
    except (FoldError, CannotJudge):
        return False
    return True


@contextmanager
def wrong_arithmetic() -> Iterator[None]:
    """A fold that is a tenth off, and a proof of sites that does not look, so that the whole has to be judged."""
    right = parameters.fold_producer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parameters, "fold_producer", lambda *given: tuple(1.1 * one for one in right(*given)))
        patch.setattr(fold_plan, "prove_sites", lambda _, placement, __: (dict.fromkeys(placement.folded, 0.0), {}))
        yield


@contextmanager
def nothing() -> Iterator[None]:
    yield


def one_scale(expected: Tensor, got: Tensor, noise: float = comparison.NOISE) -> Tensor:
    """The deviation as it would be with one scale for all channels."""
    size = expected.double().abs().max()
    return ((expected.double() - got.double()).abs().max() / size).reshape(1)


def broken(case: str, patch: pytest.MonkeyPatch) -> None:
    """Take the rule of a case out of both front ends, and what would show the difference beside it."""
    patch.setattr(agreement, "other_values", lambda _: iter(()))  # a hundred million times as large, little hides it
    if case == "random":
        draw, calls = evaluator.draw, iter(range(10**6))
        patch.setattr(model_proof, "same_random_state", nothing)
        patch.setattr(evaluator, "draw", lambda node, like, _: draw(node, like, next(calls)))
    elif case == "cap":
        patch.setattr(verdict, "CAP", 1e12)
    elif case == "scale":
        patch.setattr(verdict, "deviation", one_scale)
    elif case == "saturation":
        patch.setattr(tails.TailRecorder, "before", lambda *_: [])
        patch.setattr(pair, "tail_of", lambda *_: [])
        without_flaws(patch)
    else:
        without_flaws(patch)


def without_flaws(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verdict, "flaw", lambda *_: "")
    patch.setattr(verdict.Runs, "still", lambda _, moved: [[False] * len(tensors) for tensors in moved])


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", TORCH)
def test_a_rule_is_kept_and_needed(case: str, door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The door says no, and would not if the rule were broken."""
    says_no = DOORS[door]
    assert says_no(case)
    broken(case, monkeypatch)
    assert not says_no(case)
