"""Every norm of the module tree is in the report, also one that the exported graph does not show as a norm."""

import pytest
import torch
from torch import Tensor, nn

from foldserve.training.errors import FoldError
from foldserve.training.fold import Affine, explain, fold, register_norm
from foldserve.training.fold.refusals import RefusalCode
from tests.support.fold_cases import Forward, randomise
from tests.support.fold_networks import BookNorm

IMAGES = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))


class Disguised(nn.BatchNorm2d):
    """Computes what its base does, by operations that nobody takes for a norm."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return torch.einsum("nchw,c->nchw", x - self.running_mean[:, None, None], scale) + self.bias[:, None, None]


class DisguisedBook(BookNorm):
    """A hand-written norm that keeps a moving mean as a plain tensor, and hides its arithmetic."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,c->nchw", x, self.gamma.flatten() / torch.sqrt(self.moving_var.flatten() + 1e-5))


class Registered(nn.Module):
    """A norm without statistics of a known name, which only its reader knows."""

    def __init__(self, channels: int):
        super().__init__()
        self.level = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.level[:, None, None]


register_norm(Registered, lambda norm: Affine(norm.level.detach().numpy(), norm.level.detach().numpy() * 0))


def with_auxiliary_head() -> nn.Module:
    """A network in the style of GoogLeNet: its second head works in training alone."""

    def forward(self: nn.Module, x: Tensor) -> object:
        x = self.norm(self.conv(x))
        return (x, self.head(x)) if self.training else x

    head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    return randomise(Forward(forward, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), head=head))


def behind(norm: nn.Module) -> nn.Module:
    return randomise(nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU()))


def test_a_norm_that_is_never_called_is_refused() -> None:
    """It stays in the folded model, so the report says so, and strict raises."""
    model = with_auxiliary_head()
    report = fold(model, (IMAGES,)).report
    assert [site.path for site in report.folded] == ["norm"]
    assert [(site.path, site.code, site.kind) for site in report.refused] == [
        ("head.1", RefusalCode.CONTROL_FLOW, "BatchNorm2d")
    ]
    assert "no output depends on" in report.refused[0].reason
    assert report.refused == explain(model, (IMAGES,)).refused
    with pytest.raises(FoldError, match=r"head\.1 \(control-flow\)"):
        fold(model, (IMAGES,), strict=True)


@pytest.mark.parametrize("norm", [Disguised(4), DisguisedBook(4, 4)], ids=lambda norm: type(norm).__name__)
def test_a_norm_that_dissolves_in_the_graph_is_refused(norm: nn.Module) -> None:
    """Arithmetic that no front end recognises is named, with the way out."""
    report = fold(behind(norm), (IMAGES,)).report
    assert [(site.path, site.code) for site in report.refused] == [("1", RefusalCode.UNKNOWN_OP)]
    assert "einsum" in report.refused[0].reason
    assert "register_norm" in report.refused[0].remedy


def test_a_registered_norm_that_is_never_called_is_refused() -> None:
    """What its owner declared a norm counts as one."""
    model = Forward(lambda self, x: self.conv(x), conv=nn.Conv2d(3, 4, 3), norm=Registered(4)).eval()
    assert [site.path for site in fold(model, (IMAGES,)).report.refused] == ["norm"]
    assert [site.path for site in fold(behind(Registered(4)), (IMAGES,)).report.folded] == ["1"]


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(4), nn.SyncBatchNorm(4), nn.InstanceNorm2d(4, track_running_stats=True), BookNorm(4, 4)],
    ids=lambda norm: type(norm).__name__,
)
def test_a_norm_that_is_seen_is_reported_once(norm: nn.Module) -> None:
    """Folded or refused elsewhere, a norm is not refused again; nor is one under a second name."""
    tied = Forward(lambda self, x: self.body(x), body=behind(norm), second=norm).eval()
    assert (len(fold(tied, (IMAGES,)).report.folded), fold(tied, (IMAGES,)).report.refused) == (1, ())
    kept = fold(nn.Sequential(nn.ReLU(), norm, nn.ReLU()).eval(), (torch.randn(2, 4, 6, 6),))
    assert (len(kept.report.folded), len(kept.report.refused)) == (0, 1)


def test_a_norm_of_a_graph_module_is_known_by_its_tensors() -> None:
    """A folded GraphModule has no calls of modules, and its remaining norms are still found once."""
    conv = nn.Conv2d(3, 4, 3)
    model = randomise(
        Forward(
            lambda self, x: self.norm(torch.relu(nn.functional.batch_norm(self.conv(x), self.m, self.v))),
            conv=conv,
            norm=nn.BatchNorm2d(4),
        )
    )
    model.register_buffer("m", torch.ones(4))
    model.register_buffer("v", torch.ones(4))
    folded = fold(model, (IMAGES,))
    again = fold(folded.model, (IMAGES,)).report
    assert (folded.report.form, len(folded.report.folded), len(folded.report.refused)) == ("graph", 1, 1)
    assert (len(again.folded), len(again.refused)) == (0, 1)
