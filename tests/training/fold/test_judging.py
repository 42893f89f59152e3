"""The verifier can say no: what is no evidence is never taken for a proof, and one doubtful site ends nothing."""

import itertools
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from foldserve.training.errors import CannotJudge, FoldError, VerifyError
from foldserve.training.fold import fold, verify
from foldserve.training.fold.pytorch.fold_plan import make_fold_plan
from foldserve.training.fold.pytorch.parameters import Value
from foldserve.training.fold.pytorch.site_proof import prove_stored
from tests.support.fold_cases import randomise

IMAGES = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
CALLS = itertools.count()


class Behind(nn.Module):
    """A convolution and a norm from a seed, and a function behind them."""

    def __init__(self, seed: int, function: Callable[[Tensor], Tensor]):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layers(x))


def with_channel(value: float) -> Callable[[Tensor], Tensor]:
    return lambda y: torch.cat([y, torch.full_like(y[:, :1], value)], 1)


SHOW = {
    "nothing behind": lambda y: y,
    "a channel of 1e12": with_channel(1e12),
    "a channel of 1e20": with_channel(1e20),
    "a channel of 1e12, channels last": lambda y: with_channel(1e12)(y).permute(0, 2, 3, 1),
    "sigmoid at one": lambda y: torch.sigmoid(10 * y + 60),
    "sigmoid at zero": lambda y: torch.sigmoid(y - 60),
    "softmax with a winner": lambda y: with_channel(1e4)(y).softmax(1),
    "tanh, averaged": lambda y: torch.tanh(0.1 * y + 50).mean((2, 3)),
    "relu at zero": lambda y: torch.relu(y - 1e6),
    "relu at zero, in place": lambda y: torch.relu_(y - 1e6),
    "two relus at zero": lambda y: 3 * torch.relu(2 * torch.relu(y - 1e3)),
    "clamp": lambda y: y.clamp(100, 200),
    "exp at zero": lambda y: torch.exp(y - 1e4),
    "argmax": lambda y: y.argmax(1),
    "threshold": lambda y: y > 100,
    "a sum": lambda y: y.sum(),
    "noise": lambda y: y + torch.randn_like(y),
    "noise of Python": lambda y: y * random.random(),
    "dropout": lambda y: nn.functional.dropout(y, 0.5, True),
}
HIDE = {
    "all NaN": lambda y: y * float("nan"),
    "all zero": lambda y: y * 0,
    "all one value": lambda y: y.masked_fill(torch.ones_like(y).bool(), 3.0),
    "no row": lambda y: y[:0],
    "noise alone": torch.randn_like,
    "a counter": lambda y: y + next(CALLS),
    "chaos": lambda y: torch.sin(1e15 * y),
}


@pytest.mark.parametrize("name", SHOW)
def test_different_networks_are_told_apart(name: str) -> None:
    """Another network differs, and the fold passes, whatever hides or drowns the difference behind it."""
    with pytest.raises(FoldError, match="does not compute what the original computes"):
        verify(Behind(0, SHOW[name]).eval(), Behind(1, SHOW[name]).eval(), (IMAGES,))
    result = fold(Behind(0, SHOW[name]).eval(), (IMAGES,))
    assert [site.path for site in result.report.folded] == ["layers.1"]
    assert result.report.proof.algebra_limit <= 1e-3
    assert result.report.proof.deployed_limit <= 1e-3


@pytest.mark.parametrize("name", HIDE)
def test_what_is_no_evidence_is_not_judged(name: str) -> None:
    """Neither equal nor different is said; the fold refuses the norm with that reason and returns the model."""
    with pytest.raises(VerifyError) as raised:
        verify(Behind(0, HIDE[name]).eval(), Behind(1, HIDE[name]).eval(), (IMAGES,))
    assert isinstance(raised.value, CannotJudge)
    assert raised.value.node
    report = fold(Behind(0, HIDE[name]).eval(), (IMAGES,)).report
    assert [str(site.code) for site in report.refused] == ["unjudged"]


def test_an_empty_batch_proves_nothing() -> None:
    """Two networks on no rows are not compared."""
    with pytest.raises(CannotJudge, match="empty"):
        verify(Behind(0, SHOW["argmax"]).eval(), Behind(1, SHOW["argmax"]).eval(), (IMAGES[:0],))


def test_the_operation_that_differs_from_run_to_run_is_named() -> None:
    """A network that is no function of its input is named with the operation where that begins."""
    with pytest.raises(CannotJudge) as raised:
        verify(Behind(0, HIDE["a counter"]).eval(), Behind(0, HIDE["a counter"]).eval(), (IMAGES,))
    assert raised.value.node.startswith("aten::add")


class TwoHeads(nn.Module):
    """Two norms, each with an output of its own; the second one is zero whatever the input."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.left_norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.right, self.right_norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.left_norm(self.left(x)), self.right_norm(self.right(x)) * 0


def test_only_the_norms_of_the_doubtful_output_stay() -> None:
    """An output that says nothing keeps its own norm, and the others fold and are proved."""
    report = fold(randomise(TwoHeads()), (IMAGES,)).report
    assert [site.path for site in report.folded] == ["left_norm"]
    assert [(site.path, str(site.code)) for site in report.refused] == [("right_norm", "unjudged")]


def test_an_output_that_magnifies_rounding_is_judged_at_the_layers() -> None:
    """In float32 the outputs are off by more than a thousandth, folded or not; each layer by itself is not."""
    report = fold(Behind(0, lambda y: torch.sin(1e5 * y)).eval(), (IMAGES,)).report
    assert [site.path for site in report.folded] == ["layers.1"]
    assert report.proof.amplification > 1e4
    assert report.proof.algebra_error <= report.proof.algebra_limit <= 1e-3
    assert 0 < report.proof.deployed_error < report.proof.deployed_limit < 1e-4


def test_a_stored_parameter_that_is_off_is_seen_at_its_layer() -> None:
    """The layers in their own dtype are compared with the unfolded ones in float64."""
    plan = make_fold_plan(Behind(0, SHOW["argmax"]).eval(), (IMAGES,), True, "refuse")
    error, unfolded, limit = prove_stored(plan.graph, plan.placement, plan.changes)
    assert 0 < max(error, unfolded) < limit
    plan.changes[0].weight = Value(plan.changes[0].weight.exact * (1 + 1e-4), "float32")
    with pytest.raises(CannotJudge, match="stored parameters are off by"):
        prove_stored(plan.graph, plan.placement, plan.changes)


STAYING = {
    "layer norm": (nn.Sequential(nn.LayerNorm(16), nn.BatchNorm1d(16)), (4, 16)),
    "layer norm without affine, linear": (
        nn.Sequential(nn.LayerNorm(16, elementwise_affine=False), nn.BatchNorm1d(16, affine=False), nn.Linear(16, 4)),
        (4, 16),
    ),
    "group norm": (nn.Sequential(nn.GroupNorm(2, 4), nn.BatchNorm2d(4)), (2, 4, 8, 8)),
    "instance norm": (nn.Sequential(nn.InstanceNorm2d(4, affine=True), nn.BatchNorm2d(4)), (2, 4, 8, 8)),
    "norm and dropout": (
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Dropout(), nn.BatchNorm2d(4), nn.ReLU()),
        (2, 4, 8, 8),
    ),
    "bicubic": (
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.Upsample(scale_factor=2, mode="bicubic"), nn.BatchNorm2d(4)),
        (2, 4, 8, 8),
    ),
}


@pytest.mark.parametrize("name", STAYING)
@pytest.mark.parametrize("seed", range(5))
def test_a_norm_behind_a_norm_that_stays_is_proved(name: str, seed: int) -> None:
    """Its magnitude is its own, not that of a norm run on absolute values, which may be next to nothing."""
    model, shape = STAYING[name]
    torch.manual_seed(seed)
    report = fold(randomise(model), (torch.randn(shape),)).report
    assert len(report.folded) == 1
    assert report.folded[0].proof_error < 1e-13


def test_a_site_in_half_precision_is_not_probed_beyond_its_range() -> None:
    """4096 products of a large scale overflow float16 on unit values; the network itself and its fold are finite."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4096, 8), nn.BatchNorm1d(8)).eval()
    with torch.no_grad():
        model[0].weight.normal_()
        model[1].running_var.zero_()
        model[1].weight.fill_(5.0)
    report = fold(model.half(), ((torch.randn(2, 4096) * 1e-3).half(),)).report
    assert len(report.folded) == 1
