"""`fold_pair`: a layer and a norm as two modules, in the order in which they run."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from foldserve import FoldError, RefusalCode, fold_pair
from foldserve.training.fold.refusals import Refusal
from tests.support.fold_cases import Frozen, randomise

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def pair(layer: nn.Module, norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    first, second = randomise(nn.Sequential(layer, norm)).children()
    return first, second


def values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def require_same(result: nn.Module, first: nn.Module, second: nn.Module, x: Tensor) -> None:
    """Independent of the fold's own proof: the two modules in float64, by PyTorch alone."""
    with torch.no_grad():
        expected = copy.deepcopy(nn.Sequential(first, second)).double()(x.double())
        assert float((result(x) - expected).abs().max()) < 3e-6 * float(expected.abs().max())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_convolution_agrees_with_pytorch(rank: int, bias: bool) -> None:
    """Equal to torch.nn.utils.fusion to rounding, for each rank, with groups and padding."""
    layer, norm = pair(CONVS[rank](4, 6, 3, padding=1, stride=2, groups=2, bias=bias), NORMS[rank](6))
    x = values(2, 4, *[7] * rank)
    result, theirs = fold_pair(layer, norm), fuse_conv_bn_eval(layer, norm)
    assert isinstance(result, CONVS[rank])
    assert torch.allclose(result.weight, theirs.weight, rtol=1e-6)
    assert torch.allclose(result.bias, theirs.bias, rtol=1e-5, atol=1e-6)
    require_same(result, layer, norm, x)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_transposed_convolution(rank: int) -> None:
    """PyTorch's function needs to be told that it is transposed, and knows no groups; this one needs neither."""
    layer, norm = pair(TRANSPOSED[rank](4, 4, 3, stride=2), NORMS[rank](4))
    result, x = fold_pair(layer, norm), values(2, 4, *[5] * rank)
    theirs = fuse_conv_bn_eval(layer, norm, transpose=True)
    assert torch.allclose(result.weight, theirs.weight, rtol=1e-6)
    require_same(result, layer, norm, x)
    grouped, norm = pair(TRANSPOSED[rank](4, 6, 3, groups=2), NORMS[rank](6))
    require_same(fold_pair(grouped, norm), grouped, norm, x)


@pytest.mark.parametrize("is_affine", [True, False])
def test_a_linear_layer(is_affine: bool) -> None:
    """As torch.nn.utils.fusion, and also for a norm without affine parameters, where that raises TypeError."""
    layer, norm = pair(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6, affine=is_affine))
    result = fold_pair(layer, norm)
    if is_affine:
        assert torch.allclose(result.weight, fuse_linear_bn_eval(layer, norm).weight, rtol=1e-6)
    require_same(result, layer, norm, values(4, 5))


@pytest.mark.parametrize(
    ("norm", "layer", "shape"),
    [
        (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 7)),
        (nn.BatchNorm1d(5), nn.Linear(5, 6), (4, 5)),
        (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 7)),
    ],
)
def test_a_norm_before_its_layer(norm: nn.Module, layer: nn.Module, shape: tuple[int, ...]) -> None:
    """The order of the arguments is the order in which the two run."""
    norm, layer = pair(norm, layer)
    require_same(fold_pair(norm, layer), norm, layer, values(*shape))


def test_a_norm_before_zero_padding() -> None:
    """Refused, or exact with a correction at the border; the scale alone would be wrong there."""
    norm, layer = pair(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, padding=1))
    with pytest.raises(Refusal) as refusal:
        fold_pair(norm, layer)
    assert refusal.value.code is RefusalCode.PAD
    require_same(fold_pair(norm, layer, padding="exact"), norm, layer, values(2, 3, 7, 7))


@pytest.mark.parametrize(
    "norm", [nn.SyncBatchNorm(6), nn.InstanceNorm2d(6, affine=True, track_running_stats=True), Frozen(6)]
)
def test_other_norms(norm: nn.Module) -> None:
    """Every norm that `fold` knows, hand-written ones included."""
    layer, norm = pair(nn.Conv2d(3, 6, 3), norm)
    require_same(fold_pair(layer, norm), layer, norm, values(2, 3, 7, 7))


class Block(nn.Module):
    """A norm between two activations, as one module."""

    def __init__(self, channels: int, before: bool, after: bool) -> None:
        super().__init__()
        self.norm, self.before, self.after = nn.BatchNorm2d(channels), before, after

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.relu() if self.before else x)
        return y.relu() if self.after else y


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (nn.Conv2d(4, 6, 3), nn.Sequential(nn.BatchNorm2d(6), nn.ReLU())),
        (nn.Conv2d(4, 6, 3), nn.Sequential(nn.AvgPool2d(2), nn.BatchNorm2d(6))),
        (nn.Conv2d(4, 6, 3), Block(6, before=False, after=True)),
        (nn.Conv2d(4, 6, 3), Block(6, before=False, after=False)),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), nn.Conv2d(4, 6, 3)),
        (Block(4, before=True, after=False), nn.Conv2d(4, 6, 3)),
    ],
    ids=["activation after", "pool before", "activation in forward", "forward alone", "activation first", "before"],
)
def test_what_a_norm_does_beside_normalising_stays(first: nn.Module, second: nn.Module) -> None:
    """An activation or a pool beside the norm is no part of it: no layer alone computes what the two compute."""
    first, second = pair(first, second)
    result = fold_pair(first, second)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in result.modules())
    require_same(result, first, second, values(2, 4, 9, 9))


def test_a_norm_in_a_sequential_leaves_one_layer() -> None:
    """Nothing is left of it but the layer."""
    first, second = pair(nn.Conv2d(4, 6, 3), nn.Sequential(nn.BatchNorm2d(6), nn.BatchNorm2d(6)))
    assert isinstance(fold_pair(first, second), nn.Conv2d)


def test_weight_norm_becomes_a_plain_weight() -> None:
    """A computed weight is materialised, in the result alone."""
    layer, norm = pair(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6))
    result = fold_pair(layer, norm)
    assert list(result.state_dict()) == ["bias", "weight"]
    require_same(result, layer, norm, values(2, 3, 7, 7))
    assert nn.utils.parametrize.is_parametrized(layer)


def test_the_arguments_are_untouched() -> None:
    """Same tensors, same bits, same mode."""
    layer, norm = pair(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6))
    before = {**layer.state_dict(), **norm.state_dict()}
    copies = {name: tensor.clone() for name, tensor in before.items()}
    result = fold_pair(layer, norm)
    assert layer.bias is None
    assert all(torch.equal(tensor, copies[name]) for name, tensor in before.items())
    assert all(value is not result.weight for value in layer.parameters())
    assert result.weight.dtype is torch.float32
    assert result.weight.requires_grad
    assert not result.training


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Linear(5, 6), nn.BatchNorm1d(6), (2, 6, 5)),
        (nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), (3, 8)),
        (nn.Conv2d(3, 6, 3), nn.SyncBatchNorm(6), (3, 8, 8)),
    ],
)
def test_values_of_another_rank_raise(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    """The norm would take another axis for its channels; the sizes coincide, so that nothing else would notice."""
    layer, norm = pair(layer, norm)
    assert norm(layer(values(*shape))).shape
    with pytest.raises(FoldError, match=f"a tensor of {len(shape)} axes"):
        fold_pair(layer, norm)(values(*shape))


BAD: list[tuple[str, Any, Any]] = [
    ("training", nn.Conv2d(3, 6, 3).eval(), nn.BatchNorm2d(6)),
    ("training", nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6).eval()),
    ("batch-stats", nn.Conv2d(3, 6, 3).eval(), nn.BatchNorm2d(6, track_running_stats=False).eval()),
    ("batch-stats", nn.Linear(5, 6).eval(), nn.LayerNorm(6).eval()),
    ("batch-stats", nn.Conv2d(3, 6, 3).eval(), nn.GroupNorm(2, 6).eval()),
    ("axis", nn.Conv2d(3, 6, 3).eval(), nn.BatchNorm2d(7).eval()),
    ("axis", nn.BatchNorm2d(7).eval(), nn.Conv2d(3, 7, 3).eval()),
    ("axis", nn.Conv2d(3, 6, 3).eval(), nn.BatchNorm1d(6).eval()),
    ("axis", nn.Linear(5, 6).eval(), nn.BatchNorm2d(6).eval()),
    ("no-producer", nn.ReLU().eval(), nn.BatchNorm2d(6).eval()),
    ("no-producer", nn.BatchNorm2d(6).eval(), nn.BatchNorm2d(6).eval()),
    ("unknown-op", nn.Conv2d(3, 6, 3).eval(), nn.ReLU().eval()),
    ("unknown-op", nn.Linear(5, 6).eval(), nn.Linear(6, 6).eval()),
    ("lazy", nn.LazyConv2d(6, 3).eval(), nn.BatchNorm2d(6).eval()),
    ("lazy", nn.Conv2d(3, 6, 3).eval(), nn.LazyBatchNorm2d().eval()),
    ("dtype", nn.Conv2d(3, 6, 3).half().eval(), nn.BatchNorm2d(6).eval()),
]


@pytest.mark.parametrize(("code", "layer", "norm"), BAD)
def test_what_cannot_be_folded_is_refused_with_its_code(code: str, layer: nn.Module, norm: nn.Module) -> None:
    """Each with a reason and a remedy, and none with a bare exception."""
    with pytest.raises(Refusal) as refusal:
        fold_pair(layer, norm)
    assert (refusal.value.code, bool(refusal.value.reason), bool(refusal.value.remedy)) == (code, True, True)


def test_numbers_that_are_broken_are_refused() -> None:
    """NaN, a negative variance, and a product that leaves the layer's dtype."""
    for change, code in (("running_mean", "non-finite"), ("running_var", "zero-denominator"), ("weight", "overflow")):
        layer, norm = pair(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        wrong = {"running_mean": float("nan"), "running_var": -1.0, "weight": 3e38}[change]
        with torch.no_grad():
            getattr(norm, change)[2] = wrong
        with pytest.raises(Refusal) as refusal:
            fold_pair(layer, norm)
        assert refusal.value.code == code


def test_no_module_at_all() -> None:
    """A sentence, for both arguments and for padding."""
    with pytest.raises(FoldError, match=r"layer is a int; expected a torch\.nn\.Module"):
        fold_pair(3, nn.BatchNorm2d(3))  # type: ignore[arg-type]
    with pytest.raises(FoldError, match="norm is a NoneType"):
        fold_pair(nn.Linear(3, 3).eval(), None)  # type: ignore[arg-type]
    with pytest.raises(FoldError, match='padding is \'zeros\'; expected "refuse" or "exact"'):
        fold_pair(nn.Linear(3, 3), nn.BatchNorm1d(3), padding="zeros")


class Standardised(nn.Conv2d):
    """Computes its weight in its forward, which only a graph can express when it is folded."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Rectified(nn.BatchNorm2d):
    """Does more than to normalise."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda: Standardised(4, 6, 3), lambda: nn.BatchNorm2d(6)),
        (lambda: nn.BatchNorm2d(4), lambda: Standardised(4, 6, 3)),
        (lambda: nn.Conv2d(4, 6, 3), lambda: Rectified(6)),
    ],
)
def test_a_pair_that_becomes_a_graph_takes_every_size(
    first: Callable[[], nn.Module], second: Callable[[], nn.Module]
) -> None:
    """The sizes of its example are ours, and say nothing of the values that it is for."""
    torch.manual_seed(0)
    one, two = randomise(nn.Sequential(first(), second())).double()
    folded = fold_pair(one, two)
    for shape in ((2, 4, 7, 9), (1, 4, 16, 5), (5, 4, 33, 32)):
        values = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(folded(values), two(one(values)), rtol=1e-10, atol=1e-10)
