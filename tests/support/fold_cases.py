"""Small adversarial models with the verdict each must get: folds (how many norms) and refusals (which codes)."""

# ruff: noqa: E731 -- a forward of one line reads best as a lambda beside the modules that it uses

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    folded: int
    refused: tuple[str, ...] = ()
    form: str = "module"
    options: tuple[tuple[str, Any], ...] = ()


class Forward(nn.Module):
    """A model whose forward is given as a function of itself and its input."""

    def __init__(self, forward: Callable[..., Any], **modules: Any):
        super().__init__()
        self._forward = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def randomise(model: nn.Module, seed: int = 0, lowest_variance: float = 0.05) -> nn.Module:
    """Fill norms with statistics and affine parameters of both signs; a fresh BatchNorm is the identity."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    with torch.no_grad():
        for module in model.modules():
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if not tensor.is_floating_point():
                    continue
                if "var" in name:
                    tensor.copy_(torch.rand(tensor.shape, generator=generator).to(tensor) * 2 + lowest_variance)
                elif (name in {"weight", "bias", "gamma", "beta"} and tensor.squeeze().ndim <= 1) or "mean" in name:
                    tensor.copy_(draw(tensor))
    return model.eval()


CASES: list[Case] = []


def case(
    name: str,
    shape: tuple[int, ...],
    folded: int,
    refused: tuple[str, ...] | str = (),
    form: str = "module",
    **options: Any,
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    codes = (refused,) if isinstance(refused, str) else refused

    def add(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        CASES.append(Case(name, build, shape, folded, codes, form, tuple(options.items())))
        return build

    return add


def plain(name: str, shape: tuple[int, ...], folded: int, refused: tuple[str, ...] | str, *layers: Any, **options: Any):
    """Add a sequential model; modules are given as functions, so that each build has its own."""
    case(name, shape, folded, refused, **options)(lambda: randomise(nn.Sequential(*(make() for make in layers))))


def make(kind: Any, *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: kind(*args, **kwargs)


C, BN = nn.Conv2d, nn.BatchNorm2d
IMAGE = (2, 3, 9, 9)

# Producers ----------------------------------------------------------------------------------------------------------
for rank, (conv, norm) in enumerate([(nn.Conv1d, nn.BatchNorm1d), (C, BN), (nn.Conv3d, nn.BatchNorm3d)], start=1):
    size = (2, 4) + (7,) * rank
    for bias in (False, True):
        plain(f"conv{rank}d bias={bias}", size, 1, (), make(conv, 4, 6, 3, padding=1, bias=bias), make(norm, 6))
    plain(f"conv{rank}d grouped", size, 1, (), make(conv, 4, 6, 3, groups=2), make(norm, 6))
    plain(f"conv{rank}d depthwise, multiplier 2", size, 1, (), make(conv, 4, 8, 3, groups=4), make(norm, 8))
for rank, (conv, norm) in enumerate(
    [(nn.ConvTranspose1d, nn.BatchNorm1d), (nn.ConvTranspose2d, BN), (nn.ConvTranspose3d, nn.BatchNorm3d)], start=1
):
    for groups in (1, 2, 4):
        plain(
            f"conv_transpose{rank}d {groups} groups, equal channels",
            (2, 4) + (5,) * rank,
            1,
            (),
            make(conv, 4, 4, 3, stride=2, padding=1, output_padding=1, groups=groups, bias=groups == 1),
            make(norm, 4),
        )
plain(
    "conv_transpose2d unequal channels", (2, 4, 5, 5), 1, (), make(nn.ConvTranspose2d, 4, 6, 3, groups=2), make(BN, 6)
)
plain("conv2d same padding", IMAGE, 1, (), make(C, 3, 5, 3, padding="same", dilation=2), make(BN, 5))
plain("conv2d reflect padding", IMAGE, 1, (), make(C, 3, 5, 3, padding=1, padding_mode="reflect"), make(BN, 5))
plain("linear (N, C)", (4, 5), 1, (), make(nn.Linear, 5, 7), make(nn.BatchNorm1d, 7))
plain("linear square", (4, 5), 1, (), make(nn.Linear, 5, 5, bias=False), make(nn.BatchNorm1d, 5))
plain("linear with N == C", (5, 5), 1, (), make(nn.Linear, 5, 5), make(nn.BatchNorm1d, 5))
plain("linear, norm without affine", (4, 5), 1, (), make(nn.Linear, 5, 7), make(nn.BatchNorm1d, 7, affine=False))
plain("conv, norm without affine", IMAGE, 1, (), make(C, 3, 5, 3), make(BN, 5, affine=False))
plain("linear (N, C, L), C != L", (2, 6, 5), 0, "axis", make(nn.Linear, 5, 7), make(nn.BatchNorm1d, 6))
plain("linear (N, C, L), C == L", (2, 6, 5), 0, "axis", make(nn.Linear, 5, 6), make(nn.BatchNorm1d, 6))
plain("linear (N, 1, L)", (3, 1, 5), 1, (), make(nn.Linear, 5, 6), make(nn.BatchNorm1d, 1))
plain("conv1d unbatched, C == L", (3, 8), 0, "axis", make(nn.Conv1d, 3, 6, 3), make(nn.BatchNorm1d, 6))
plain("two norms in a row", IMAGE, 2, (), make(C, 3, 5, 3), make(BN, 5), make(BN, 5))
plain("sync norm", IMAGE, 1, (), make(C, 3, 5, 3), make(nn.SyncBatchNorm, 5))
plain(
    "instance norm with running statistics",
    IMAGE,
    1,
    (),
    make(C, 3, 5, 3),
    make(nn.InstanceNorm2d, 5, affine=True, track_running_stats=True),
)
plain("instance norm of the batch", IMAGE, 0, "batch-stats", make(C, 3, 5, 3), make(nn.InstanceNorm2d, 5))
plain("untracked statistics", IMAGE, 0, "batch-stats", make(C, 3, 5, 3), make(BN, 5, track_running_stats=False))
plain("momentum None", IMAGE, 1, (), make(C, 3, 5, 3), make(BN, 5, momentum=None))
plain("relu between", IMAGE, 0, "activation-between", make(C, 3, 5, 3), make(nn.ReLU), make(BN, 5))
plain("gelu between", IMAGE, 0, "activation-between", make(C, 3, 5, 3), make(nn.GELU), make(BN, 5))
plain("in-place relu behind", IMAGE, 1, (), make(C, 3, 5, 3), make(BN, 5), make(nn.ReLU, inplace=True))
plain("dropout between", IMAGE, 1, (), make(C, 3, 5, 3), make(nn.Dropout2d), make(nn.Identity), make(BN, 5))
plain("no layer at all", IMAGE, 0, "no-producer", make(BN, 3), make(nn.ReLU))
plain("nothing to fold", IMAGE, 0, (), make(C, 3, 5, 3), make(nn.ReLU))
plain("twenty pairs in a row", (2, 3, 4, 4), 20, (), *[make(C, 3, 3, 1), make(BN, 3)] * 20)

# Values on the way --------------------------------------------------------------------------------------------------
plain("avg pool", IMAGE, 1, (), make(C, 3, 5, 3), make(nn.AvgPool2d, 2, ceil_mode=True), make(BN, 5))
plain(
    "avg pool, padding not counted",
    IMAGE,
    1,
    (),
    make(C, 3, 5, 3),
    make(nn.AvgPool2d, 3, padding=1, count_include_pad=False),
    make(BN, 5),
)
plain("avg pool, padding counted", IMAGE, 0, "pool", make(C, 3, 5, 3), make(nn.AvgPool2d, 3, padding=1), make(BN, 5))
plain(
    "avg pool, own divisor", IMAGE, 0, "pool", make(C, 3, 5, 3), make(nn.AvgPool2d, 2, divisor_override=3), make(BN, 5)
)
plain("adaptive avg pool", IMAGE, 1, (), make(C, 3, 5, 3), make(nn.AdaptiveAvgPool2d, 3), make(BN, 5))
plain("max pool, mixed signs", IMAGE, 0, "sign", make(C, 3, 5, 3), make(nn.MaxPool2d, 2), make(BN, 5))
plain("lp pool", IMAGE, 0, "unknown-op", make(C, 3, 5, 3), make(nn.LPPool2d, 2, 2), make(BN, 5))
plain("nearest upsample", IMAGE, 1, (), make(C, 3, 5, 3), make(nn.Upsample, scale_factor=2), make(BN, 5))
plain(
    "bilinear upsample", IMAGE, 1, (), make(C, 3, 5, 3), make(nn.Upsample, scale_factor=2, mode="bilinear"), make(BN, 5)
)
plain("reflection pad", IMAGE, 1, (), make(C, 3, 5, 3), make(nn.ReflectionPad2d, 1), make(BN, 5))
plain("replication pad", IMAGE, 1, (), make(C, 3, 5, 3), make(nn.ReplicationPad2d, 1), make(BN, 5))
plain("zero pad", IMAGE, 0, "pad", make(C, 3, 5, 3), make(nn.ZeroPad2d, 1), make(BN, 5))
plain("crop", IMAGE, 1, (), make(C, 3, 5, 3), make(nn.ZeroPad2d, -1), make(BN, 5))
plain("flatten 1x1", (2, 3, 3, 3), 1, (), make(C, 3, 5, 3), make(nn.Flatten), make(nn.BatchNorm1d, 5))
plain("flatten 2x2", (2, 3, 4, 4), 0, "axis", make(C, 3, 5, 3), make(nn.Flatten), make(nn.BatchNorm1d, 20))
plain("pixel shuffle", IMAGE, 1, (), make(C, 3, 8, 3), make(nn.PixelShuffle, 2), make(BN, 2))


@case("max pool, positive scale", IMAGE, 1)
def _() -> nn.Module:
    model = randomise(nn.Sequential(C(3, 5, 3), nn.MaxPool2d(2), BN(5)))
    model[2].weight.data.abs_()
    return model


@case("linear, transposed to (N, C, L)", (2, 4, 5), 1)
def _() -> nn.Module:
    forward = lambda m, x: m.bn(m.fc(x).transpose(1, 2)).transpose(1, 2)
    return randomise(Forward(forward, fc=nn.Linear(5, 5), bn=nn.BatchNorm1d(5)))


@case("linear, flattened tokens", (2, 4, 5), 1)
def _() -> nn.Module:
    forward = lambda m, x: m.bn((y := m.fc(x)).flatten(0, 1)).reshape_as(y)
    return randomise(Forward(forward, fc=nn.Linear(5, 6), bn=nn.BatchNorm1d(6)))


@case("linear, unsqueezed and squeezed", (2, 5), 1)
def _() -> nn.Module:
    forward = lambda m, x: m.bn(m.fc(x).unsqueeze(2).unsqueeze(3)).squeeze(3).squeeze(2)
    return randomise(Forward(forward, fc=nn.Linear(5, 6), bn=BN(6)))


@case("conv1d, view to 2-D", (2, 3, 8), 1)
def _() -> nn.Module:
    forward = lambda m, x: m.bn((y := m.conv(x)).view(y.shape[0], 6, 3, 2))
    return randomise(Forward(forward, conv=nn.Conv1d(3, 6, 3), bn=BN(6)))


@case("view that swaps equal axes", (2, 3, 8), 0, "axis")
def _() -> nn.Module:
    forward = lambda m, x: m.bn(m.conv(x).transpose(1, 2).reshape(-1, 6, 6).transpose(1, 2).transpose(1, 2))
    return randomise(Forward(forward, conv=nn.Conv1d(3, 6, 3), bn=nn.BatchNorm1d(6)))


@case("square product, transposed", (6, 5), 0, "axis", dynamic=False)
def _() -> nn.Module:
    forward = lambda m, x: m.bn((x @ m.w).t())
    return randomise(Forward(forward, w=nn.Parameter(torch.randn(5, 6)), bn=nn.BatchNorm1d(6)))


@case("product, rows split", (6, 5), 0, "axis")
def _() -> nn.Module:
    forward = lambda m, x: m.bn((x @ m.w).reshape(-1, 3, 4))
    return randomise(Forward(forward, w=nn.Parameter(torch.randn(5, 4)), bn=nn.BatchNorm1d(3)))


@case("global mean", IMAGE, 1)
def _() -> nn.Module:
    return randomise(Forward(lambda m, x: m.bn(m.conv(x).mean((2, 3))), conv=C(3, 5, 3), bn=nn.BatchNorm1d(5)))


@case("concat of two convs", IMAGE, 1)
def _() -> nn.Module:
    forward = lambda m, x: m.bn(torch.cat([m.a(x), m.b(x)], 1))
    return randomise(Forward(forward, a=C(3, 5, 3), b=C(3, 4, 3), bn=BN(9)))


@case("concat with the input", IMAGE, 0, "multi-use")
def _() -> nn.Module:
    forward = lambda m, x: m.bn(torch.cat([m.a(x), x], 1))
    return randomise(Forward(forward, a=C(3, 5, 3, padding=1), bn=BN(8)))


@case("sum of two convs", IMAGE, 1)
def _() -> nn.Module:
    return randomise(Forward(lambda m, x: m.bn(m.a(x) + m.b(x)), a=C(3, 5, 3), b=C(3, 5, 3, bias=False), bn=BN(5)))


@case("difference of two convs", IMAGE, 1)
def _() -> nn.Module:
    return randomise(Forward(lambda m, x: m.bn(m.a(x) - m.b(x)), a=C(3, 5, 3), b=C(3, 5, 3), bn=BN(5)))


# The identity branch goes into the kernel: s (a(x) + x) + t = (s a(x) + (s - 1) x + t) + x.
for name, folds, conv, branches in [
    ("residual identity", 1, {"padding": 1}, lambda m, x: m.a(x) + x),
    ("residual identity, groups", 1, {"padding": 1, "groups": 3}, lambda m, x: x + m.a(x)),
    ("residual identity, dilated", 1, {"padding": 2, "dilation": 2, "bias": False}, lambda m, x: m.a(x) + x),
    ("residual identity written in place", 1, {"padding": 1}, lambda m, x: m.a(x).add_(x)),
    ("residual identity, twice the value", 0, {"padding": 1}, lambda m, x: m.a(x) + 2 * x),
    ("residual identity, subtracted", 0, {"padding": 1}, lambda m, x: m.a(x) - x),
    ("residual identity of another value", 0, {"padding": 1}, lambda m, x: m.a(x.relu()) + x),
    ("residual identity, zeros around", 0, {"padding": 0}, lambda m, x: F.pad(m.a(x), (1, 1, 1, 1)) + x),
]:

    def build_residual(conv: dict[str, Any] = conv, branches: Any = branches) -> nn.Module:
        return randomise(Forward(lambda m, x: m.bn(branches(m, x)), a=C(3, 3, 3, **conv), bn=BN(3)))

    case(name, IMAGE, folds, () if folds else "multi-use")(build_residual)


@case("residual identity of RepViT, and one more norm", IMAGE, 3)
def _() -> nn.Module:
    forward = lambda m, x: m.last(m.bn(m.inner(m.a(x)) + m.b(x) + x))
    convs = {"a": C(3, 3, 3, padding=1, groups=3, bias=False), "b": C(3, 3, 1, groups=3)}
    return randomise(Forward(forward, **convs, inner=BN(3), bn=BN(3), last=BN(3)))


@case("residual identity inside a longer sum", IMAGE, 1)
def _() -> nn.Module:
    forward = lambda m, x: m.bn(m.a(x) + (x + m.b(x[:, :, :5, :5].repeat(1, 1, 2, 2)[:, :, :9, :9])))
    return randomise(Forward(forward, a=C(3, 3, 3, padding=1), b=C(3, 3, 3, padding=1), bn=BN(3)))


@case("residual identity of a linear layer", (4, 5), 1)
def _() -> nn.Module:
    return randomise(Forward(lambda m, x: m.bn(m.fc(x) + x), fc=nn.Linear(5, 5), bn=nn.BatchNorm1d(5)))


@case("x += bn(conv(x))", IMAGE, 1)
def _() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.relu(x)
        y += m.bn(m.conv(y))
        return y

    return randomise(Forward(forward, conv=C(3, 3, 3, padding=1), bn=BN(3)))


@case("chunk of one conv, norm on half", IMAGE, 1)
def _() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.conv(x).chunk(2, 1)
        return m.bn(a) * torch.sigmoid(b)

    return randomise(Forward(forward, conv=C(3, 8, 3), bn=BN(4)))


# Who else reads it --------------------------------------------------------------------------------------------------
@case("conv output read twice", IMAGE, 0, "multi-use")
def _() -> nn.Module:
    return randomise(Forward(lambda m, x: m.bn(y := m.conv(x)) + y, conv=C(3, 5, 3), bn=BN(5)))


@case("conv output's shape read", IMAGE, 1)
def _() -> nn.Module:
    forward = lambda m, x: m.bn(y := m.conv(x)).reshape(y.shape[0], -1)
    return randomise(Forward(forward, conv=C(3, 5, 3), bn=BN(5)))


@case("conv output returned", IMAGE, 0, "graph-output")
def _() -> nn.Module:
    return randomise(Forward(lambda m, x: (m.bn(y := m.conv(x)), y), conv=C(3, 5, 3), bn=BN(5)))


@case("norm output returned twice", IMAGE, 1)
def _() -> nn.Module:
    return randomise(Forward(lambda m, x: (y := m.bn(m.conv(x)), {"again": F.relu(y)}), conv=C(3, 5, 3), bn=BN(5)))


@case("shared conv, two norms", IMAGE, 0, ("shared", "shared"))
def _() -> nn.Module:
    return randomise(Forward(lambda m, x: m.a(m.conv(x)) + m.b(m.conv(2 * x)), conv=C(3, 5, 3), a=BN(5), b=BN(5)))


@case("shared conv, norm on one use", IMAGE, 0, "shared")
def _() -> nn.Module:
    return randomise(Forward(lambda m, x: m.a(m.conv(x)) + m.conv(2 * x), conv=C(3, 5, 3), a=BN(5)))


@case("pair applied twice", IMAGE, 2)
def _() -> nn.Module:
    forward = lambda m, x: m.bn(m.conv(F.relu(m.bn(m.conv(x)))))
    return randomise(Forward(forward, conv=C(3, 3, 3), bn=BN(3)))


@case("norm shared by three convs", IMAGE, 3)
def _() -> nn.Module:
    forward = lambda m, x: m.bn(m.a(x)) + m.bn(m.b(x)) + m.bn(m.c(x))
    return randomise(Forward(forward, a=C(3, 5, 3), b=C(3, 5, 3, bias=False), c=C(3, 5, 3), bn=BN(5)))


@case("shared norm, folded on one use", IMAGE, 1, "multi-use", form="graph")
def _() -> nn.Module:
    forward = lambda m, x: m.bn(m.a(x)) + m.bn(y := m.b(x)) + y
    return randomise(Forward(forward, a=C(3, 5, 3), b=C(3, 5, 3), bn=BN(5)))


@case("two modules, one weight, two norms", IMAGE, 0, ("shared", "shared"))
def _() -> nn.Module:
    model = randomise(Forward(lambda m, x: m.p(m.a(x)) + m.q(m.b(x)), a=C(3, 5, 3), b=C(3, 5, 3), p=BN(5), q=BN(5)))
    model.b.weight = model.a.weight
    return model


@case("conv bias is the norm's beta", IMAGE, 1)
def _() -> nn.Module:
    model = randomise(nn.Sequential(C(3, 5, 3), BN(5)))
    model[1].bias = model[0].bias
    return model


@case("norm under two names", IMAGE, 1)
def _() -> nn.Module:
    model = randomise(Forward(lambda m, x: m.alias(m.conv(x)), conv=C(3, 5, 3), bn=BN(5)))
    model.alias = model.bn
    return model


# How it is written --------------------------------------------------------------------------------------------------
@case("bn(input=x)", IMAGE, 1)
def _() -> nn.Module:
    return randomise(Forward(lambda m, x: m.bn(input=m.conv(x)), conv=C(3, 5, 3), bn=BN(5)))


@case("functional batch_norm", IMAGE, 1, form="graph")
def _() -> nn.Module:
    forward = lambda m, x: F.batch_norm(m.conv(x), m.bn.running_mean, m.bn.running_var, m.bn.weight, m.bn.bias)
    return randomise(Forward(forward, conv=C(3, 5, 3), bn=BN(5)))


class NormAct(nn.BatchNorm2d):
    """A BatchNorm2d with an activation inside, as some model zoos have."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


plain("norm subclass with an activation inside", IMAGE, 1, (), make(C, 3, 5, 3), make(NormAct, 5), make(C, 5, 4, 1))


class ScaledConv(nn.Conv2d):
    """A Conv2d whose forward is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


plain("conv subclass that scales", IMAGE, 1, (), make(ScaledConv, 3, 5, 3), make(BN, 5))


class WeightStandardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


plain("conv that computes its weight", IMAGE, 1, (), make(WeightStandardised, 3, 5, 3), make(BN, 5), form="graph")


class NormStandardised(nn.Conv2d):
    """Weight standardisation by batch_norm of the weights, as NFNets write it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


plain("conv that normalises its weight", IMAGE, 1, (), make(NormStandardised, 3, 5, 3), make(BN, 5), form="graph")


class Frozen(nn.Module):
    """A frozen norm as detection networks write it."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        w, b, m, v = (t.reshape(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_mean, self.running_var))
        scale = w * (v + self.eps).rsqrt()
        return x * scale + (b - m * scale)


plain("frozen norm", IMAGE, 1, (), make(C, 3, 5, 3), make(Frozen, 5))


class FlatNorm(nn.Module):
    """A hand-written norm that works on flattened positions and expands its statistics itself."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("moving_mean", torch.zeros(channels))
        self.register_buffer("moving_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        values = x.reshape(x.shape[0], x.shape[1], -1)
        rows = lambda v: v.view(1, -1, 1).expand(values.shape[0], -1, 1)
        scale = torch.rsqrt(self.moving_var + 1e-5) * self.gamma
        return ((values - rows(self.moving_mean)) * rows(scale) + rows(self.beta)).view(x.shape)


plain("norm on flattened positions", IMAGE, 1, (), make(C, 3, 5, 3), make(FlatNorm, 5), make(nn.Sigmoid))
plain("norm on flattened positions, linear", (3, 4), 1, (), make(nn.Linear, 4, 5), make(FlatNorm, 5))


@case("frozen norm, eps 0 and variance 0", IMAGE, 0, "zero-denominator")
def _() -> nn.Module:
    model = randomise(nn.Sequential(C(3, 5, 3), Frozen(5, eps=0.0)))
    model[1].running_var[2] = 0
    return model


@case("weight_norm", IMAGE, 1)
def _() -> nn.Module:
    return randomise(nn.Sequential(nn.utils.parametrizations.weight_norm(C(3, 5, 3)), BN(5)))


@case("spectral_norm", IMAGE, 1)
def _() -> nn.Module:
    return randomise(nn.Sequential(nn.utils.parametrizations.spectral_norm(C(3, 5, 3)), BN(5)))


@case("hook on the norm", IMAGE, 0, "hook")
def _() -> nn.Module:
    model = randomise(nn.Sequential(C(3, 5, 3), BN(5)))
    model[1].register_forward_hook(_double)
    return model


@case("hook on the conv", IMAGE, 0, "hook")
def _() -> nn.Module:
    model = randomise(nn.Sequential(C(3, 5, 3), BN(5)))
    model[0].register_forward_hook(_double)
    return model


def _double(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2


@case("one norm in training mode", IMAGE, 1, "training")
def _() -> nn.Module:
    model = randomise(nn.Sequential(C(3, 5, 3), BN(5), nn.ReLU(), C(5, 4, 3), BN(4)))
    model[1].train()
    return model


@case("buffers None", IMAGE, 0, "batch-stats")
def _() -> nn.Module:
    model = randomise(nn.Sequential(C(3, 5, 3), BN(5)))
    model[1].running_mean = model[1].running_var = None
    return model


@case("matmul and bias", (4, 5), 1)
def _() -> nn.Module:
    forward = lambda m, x: m.bn(x @ m.weight_matrix + m.bias)
    return randomise(
        Forward(
            forward,
            weight_matrix=nn.Parameter(torch.randn(5, 6)),
            bias=nn.Parameter(torch.randn(6)),
            bn=nn.BatchNorm1d(6),
        )
    )


@case("matmul without bias", (4, 5), 1, form="graph")
def _() -> nn.Module:
    forward = lambda m, x: m.bn(x @ m.w.t())
    return randomise(Forward(forward, w=nn.Parameter(torch.randn(6, 5)), bn=nn.BatchNorm1d(6)))


@case("torch.addmm", (4, 5), 1)
def _() -> nn.Module:
    forward = lambda m, x: m.bn(torch.addmm(m.b, x, m.w))
    return randomise(
        Forward(forward, w=nn.Parameter(torch.randn(5, 6)), b=nn.Parameter(torch.randn(6)), bn=nn.BatchNorm1d(6))
    )


@case("torch.cond around the norm", IMAGE, 0, "subgraph")
def _() -> nn.Module:
    forward = lambda m, x: torch.cond(x.sum() > 0, lambda y: m.bn(m.conv(y)), lambda y: m.conv(y), (x,))
    return randomise(Forward(forward, conv=C(3, 5, 3), bn=BN(5)))


@case("torch.cond before a pair", IMAGE, 1, "subgraph")
def _() -> nn.Module:
    forward = lambda m, x: m.bn(m.conv(torch.cond(x.sum() > 0, lambda y: m.inner(y), lambda y: y + 0, (x,))))
    return randomise(Forward(forward, inner=BN(3), conv=C(3, 5, 3), bn=BN(5)))


@case("autocast before a pair", IMAGE, 1, "subgraph")
def _() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x = m.inner(x)
        return m.bn(m.conv(x))

    return randomise(Forward(forward, inner=BN(3), conv=C(3, 5, 3), bn=BN(5)))


@case("statistics computed from the input", IMAGE, 0, "untracked")
def _() -> nn.Module:
    forward = lambda m, x: F.batch_norm(m.conv(x), m.mean, m.var, x.mean((0, 2, 3)).repeat(2)[:5])
    model = Forward(forward, conv=C(3, 5, 3))
    model.register_buffer("mean", torch.zeros(5))
    model.register_buffer("var", torch.ones(5))
    return randomise(model)


# Forward: a norm before its layer -----------------------------------------------------------------------------------
plain("norm before conv", IMAGE, 1, (), make(BN, 3), make(C, 3, 5, 3, stride=2, dilation=2))
plain("norm before grouped conv", (2, 4, 9, 9), 1, (), make(BN, 4), make(C, 4, 6, 3, groups=2, bias=False))
plain("norm before padded conv", IMAGE, 0, "pad", make(BN, 3), make(C, 3, 5, 3, padding=1))
plain("norm before padded 1x1 conv", IMAGE, 0, "pad", make(BN, 3), make(C, 3, 5, 1, padding=1))
for options in ({"padding": 1}, {"padding": 2, "stride": 2, "dilation": 2}, {"padding": "same"}):
    exact = make(C, 3, 6, 3, groups=3, **options)
    plain(f"norm before padded conv, exact, {options}", IMAGE, 1, (), make(BN, 3), exact, padding="exact")
plain(
    "norm before padded conv and behind it, exact",
    IMAGE,
    2,
    (),
    make(BN, 3),
    make(C, 3, 5, 3, padding=1, bias=False),
    make(BN, 5),
    padding="exact",
)
for mode in ("reflect", "replicate", "circular"):
    plain(f"norm before conv, {mode}", IMAGE, 1, (), make(BN, 3), make(C, 3, 5, 3, padding=1, padding_mode=mode))
plain("norm before linear", (4, 5), 1, (), make(nn.BatchNorm1d, 5), make(nn.Dropout), make(nn.Linear, 5, 7, bias=False))
plain("norm, flatten, linear", (2, 3, 4, 4), 1, (), make(BN, 3), make(nn.Flatten), make(nn.Linear, 48, 7))
plain(
    "norm over C*H*W, linear", (2, 3, 4, 4), 1, (), make(nn.Flatten), make(nn.BatchNorm1d, 48), make(nn.Linear, 48, 7)
)
plain("norm before transposed conv", (2, 4, 5, 5), 0, "pad", make(BN, 4), make(nn.ConvTranspose2d, 4, 6, 3))
for rank, (conv, norm) in enumerate(
    [(nn.ConvTranspose1d, nn.BatchNorm1d), (nn.ConvTranspose2d, BN), (nn.ConvTranspose3d, nn.BatchNorm3d)], start=1
):
    for options in ({}, {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2, "dilation": 2, "bias": False}):
        plain(
            f"norm before transposed conv {rank}d, exact, {options}",
            (2, 4) + (5,) * rank,
            2,
            (),
            make(norm, 4),
            make(conv, 4, 6, 3, **options),
            make(norm, 6),
            padding="exact",
        )


@case("norm before transposed conv in a graph, exact", (2, 4, 5, 5), 1, form="graph", padding="exact")
def _() -> nn.Module:
    forward = lambda m, x: F.conv_transpose2d(m.bn(x), m.w, None, 2, 1, 1)
    return randomise(Forward(forward, bn=BN(4), w=nn.Parameter(torch.randn(4, 6, 3, 3))))


@case("norm before transposed conv with an output size, exact", (2, 4, 5, 5), 1, padding="exact")
def _() -> nn.Module:
    forward = lambda m, x: m.up(m.bn(x), output_size=[x.shape[2] * 2, x.shape[3] * 2])
    return randomise(Forward(forward, bn=BN(4), up=nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1)))


plain("norm before 1x1 transposed conv", (2, 4, 5, 5), 1, (), make(BN, 4), make(nn.ConvTranspose2d, 4, 6, 1, groups=2))
plain("norm, norm, conv", IMAGE, 2, (), make(BN, 3), make(BN, 3), make(C, 3, 5, 3))
plain("norm, avg pool, conv", IMAGE, 1, (), make(BN, 3), make(nn.AvgPool2d, 2), make(C, 3, 5, 3))
plain("norm on both sides of a conv", IMAGE, 2, (), make(BN, 3), make(C, 3, 5, 3), make(BN, 5))
plain("relu, norm, relu", IMAGE, 0, "activation-between", make(nn.ReLU), make(BN, 3), make(nn.ReLU))
plain(
    "norm merged into a norm that stays",
    IMAGE,
    1,
    "activation-between",
    make(nn.ReLU),
    make(BN, 3),
    make(BN, 3),
    make(nn.ReLU),
)


@case("norm before two convs", IMAGE, 1)
def _() -> nn.Module:
    return randomise(Forward(lambda m, x: m.a(y := m.bn(x)) + m.b(y), bn=BN(3), a=C(3, 5, 3), b=C(3, 5, 3)))


@case("norm before a conv and the output", IMAGE, 0, "graph-output")
def _() -> nn.Module:
    return randomise(Forward(lambda m, x: (m.a(y := m.bn(x)), y), bn=BN(3), a=C(3, 5, 3)))


@case("norm, concat with another value, conv", IMAGE, 1)
def _() -> nn.Module:
    return randomise(Forward(lambda m, x: m.a(torch.cat([x, m.bn(x)], 1)), bn=BN(3), a=C(6, 5, 3)))


@case("what the norm reads is written in place", IMAGE, 0, "multi-use")
def _() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = torch.sigmoid(x)
        y = m.bn(x)
        x.add_(1.0)
        return m.conv(y) + x.sum()

    return randomise(Forward(forward, bn=BN(3), conv=C(3, 5, 3)))


@case("scale and shift of an activation", IMAGE, 0)
def _() -> nn.Module:
    model = Forward(lambda m, x: m.b(m.scale * F.relu(m.a(x)) ** 2 + m.shift), a=C(3, 4, 3), b=C(4, 5, 3))
    model.scale, model.shift = nn.Parameter(torch.tensor([0.9])), nn.Parameter(torch.tensor([-0.4]))
    return model.eval()


@case("residual with a learned scale onto a constant", IMAGE, 0)
def _() -> nn.Module:
    model = Forward(lambda m, x: m.b(m.scale * m.a(x) + m.token), a=C(3, 4, 3), b=C(4, 5, 3))
    model.scale, model.token = nn.Parameter(torch.randn(4, 1, 1)), nn.Parameter(torch.randn(4, 1, 1))
    return model.eval()


@case("input normalised by hand", IMAGE, 1, form="graph")
def _() -> nn.Module:
    model = Forward(lambda m, x: m.conv((x - m.mean) / m.std), conv=C(3, 5, 3))
    model.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1))
    model.register_buffer("std", torch.tensor([0.2, 0.3, 0.4]).reshape(1, 3, 1, 1))
    return model.eval()


# Numbers ------------------------------------------------------------------------------------------------------------
def _with(change: Callable[[nn.BatchNorm2d], Any]) -> nn.Module:
    model = randomise(nn.Sequential(C(3, 5, 3), BN(5)))
    change(model[1])
    return model


def _set(tensor: Tensor, value: float) -> None:
    tensor.data[2] = value


case("NaN in one channel", IMAGE, 0, "non-finite")(lambda: _with(lambda bn: _set(bn.running_mean, float("nan"))))
case("negative variance", IMAGE, 0, "zero-denominator")(lambda: _with(lambda bn: _set(bn.running_var, -1e-3)))
case("variance 0", IMAGE, 1)(lambda: _with(lambda bn: _set(bn.running_var, 0.0)))
case("variance 1e-8", IMAGE, 1)(lambda: _with(lambda bn: _set(bn.running_var, 1e-8)))
case("gamma 0", IMAGE, 1)(lambda: _with(lambda bn: _set(bn.weight, 0.0)))
case("gamma denormal", IMAGE, 1)(lambda: _with(lambda bn: _set(bn.weight, 1e-41)))
case("mean 1e6", IMAGE, 1)(lambda: _with(lambda bn: _set(bn.running_mean, 1e6)))
case("scale beyond float32", IMAGE, 0, "overflow")(lambda: _with(lambda bn: _set(bn.weight, 3e38)))


@case("eps 0 and variance 0", IMAGE, 0, "zero-denominator")
def _() -> nn.Module:
    model = randomise(nn.Sequential(C(3, 5, 3), BN(5, eps=0.0)))
    model[1].running_var.zero_()
    return model


@case("float16 conv, float32 norm", IMAGE, 0, "dtype")
def _() -> nn.Module:
    forward = lambda m, x: m.bn(m.conv(x.half())).float()
    return randomise(Forward(forward, conv=C(3, 5, 3).half(), bn=BN(5)))


@case("halves joined in the other order", IMAGE, 1)
def _() -> nn.Module:
    forward = lambda m, x: m.bn(torch.cat(m.conv(x).chunk(2, 1)[::-1], 1))
    return randomise(Forward(forward, conv=nn.Conv2d(3, 6, 3), bn=nn.BatchNorm2d(6)))


@case("sum of two halves", IMAGE, 1)
def _() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        one, other = m.conv(x).chunk(2, 1)
        return m.bn(one + other)

    return randomise(Forward(forward, conv=nn.Conv2d(3, 6, 3), bn=nn.BatchNorm2d(3)))


@case("a value joined with itself", IMAGE, 0, "multi-use")
def _() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.conv(x)
        return m.bn(torch.cat([x, x], 1))

    return randomise(Forward(forward, conv=nn.Conv2d(3, 3, 3), bn=nn.BatchNorm2d(6)))


class AddcmulAffine(nn.Module):
    """The learned affine of ResMLP: no statistics, one fused operation."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.rand(1, 1, channels) + 0.5)
        self.beta = nn.Parameter(torch.randn(1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x)


plain("addcmul before a linear layer", (2, 7, 6), 1, (), lambda: AddcmulAffine(6), lambda: nn.Linear(6, 4))
plain("addcmul behind a linear layer", (2, 7, 6), 1, (), lambda: nn.Linear(6, 4), lambda: AddcmulAffine(4))


# Beside: a norm and a convolution of the same value, added ----------------------------------------------------------


def beside(name: str, folded: int, refused: tuple[str, ...] | str, forward: Callable[..., Any], **more: Any) -> None:
    conv = more.pop("conv", lambda: nn.Conv2d(3, 3, 3, padding=1))
    parts = {"norm": lambda: BN(3), "conv": conv, "bn": lambda: BN(3), "last": lambda: BN(3)}

    def build() -> nn.Module:
        return randomise(
            Forward(forward, **{name: make() for name, make in parts.items() if f"m.{name}" in more["uses"]})
        )

    case(name, (2, 3, 9, 8), folded, refused)(build)


BRANCHES = "m.norm m.conv m.bn"
GROUPED = {"conv": lambda: nn.Conv2d(3, 3, 3, padding=2, dilation=2, groups=3), "uses": BRANCHES}
beside("identity branch", 2, (), lambda m, x: F.relu(m.norm(x) + m.bn(m.conv(x))), uses=BRANCHES)
beside("identity branch minus conv", 2, (), lambda m, x: F.relu(m.norm(x) - m.bn(m.conv(x))), uses=BRANCHES)
beside("conv minus identity branch", 2, (), lambda m, x: F.relu(m.bn(m.conv(x)) - m.norm(x)), uses=BRANCHES)
beside("identity branch, groups", 2, (), lambda m, x: F.relu(m.norm(x) + m.bn(m.conv(x))), **GROUPED)
beside("identity branch, three parts", 2, (), lambda m, x: F.relu(x + m.norm(x) + m.bn(m.conv(x))), uses=BRANCHES)
beside("identity branch, conv with no norm", 1, (), lambda m, x: F.relu(m.conv(x) + m.norm(x)), uses="m.norm m.conv")
beside(
    "identity branch, norm behind the sum",
    3,
    (),
    lambda m, x: m.last(m.norm(x) + m.bn(m.conv(x))),
    uses=BRANCHES + " m.last",
)
beside("identity branch, written in place", 2, (), lambda m, x: m.bn(m.conv(x)).add_(m.norm(x)), uses=BRANCHES)
beside("identity branch begun with zero", 2, (), lambda m, x: (0 + m.norm(x)).add_(m.bn(m.conv(x))), uses=BRANCHES)
beside("identity branch that is written", 2, (), lambda m, x: m.norm(x).add_(m.bn(m.conv(x))), uses=BRANCHES)
beside(
    "identity branch of another value",
    1,
    "activation-between",
    lambda m, x: m.norm(x.relu()) + m.bn(m.conv(x)),
    uses=BRANCHES,
)
beside(
    "identity branch, kernel off centre",
    1,
    "multi-use",
    lambda m, x: m.norm(x) + m.bn(m.conv(F.pad(x, (0, 2, 0, 2)))),
    conv=lambda: nn.Conv2d(3, 3, 3),
    uses=BRANCHES,
)
beside(
    "identity branch, activation between",
    1,
    "multi-use",
    lambda m, x: m.norm(x) + F.relu(m.bn(m.conv(x))),
    uses=BRANCHES,
)


plain(
    "norm between an activation in place and a pointwise conv",
    IMAGE,
    1,
    (),
    lambda: nn.ReLU(inplace=True),
    lambda: BN(3),
    lambda: C(3, 4, 1),
)


@case("value written once the norm has read it", IMAGE, 0, "multi-use")
def _() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x * x
        y = m.bn(x)
        x.add_(1)
        return m.conv(y)

    return randomise(Forward(forward, bn=BN(3), conv=C(3, 4, 1)))


# Channels in another order ------------------------------------------------------------------------------------------
def _shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def _swapped_wrongly(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(2, 3).reshape(n, c, h, w)


PERMUTATIONS: dict[str, tuple[int, Callable[[Any, Tensor], Tensor]]] = {
    "view": (1, lambda m, x: _shuffled(x)),
    "view, permute and contiguous": (
        1,
        lambda m, x: x.unflatten(1, (2, 2, 2)).permute(0, 3, 1, 2, 4, 5).contiguous().flatten(1, 3),
    ),
    "channel_shuffle": (1, lambda m, x: F.channel_shuffle(x, 4)),
    "index": (1, lambda m, x: x[:, m.order]),
    "index by a list": (1, lambda m, x: x[:, [7, 6, 0, 1, 2, 3, 5, 4]]),
    "index_select": (1, lambda m, x: x.index_select(1, m.order)),
    "flip": (1, lambda m, x: x.flip(1)),
    "roll": (1, lambda m, x: x.roll(3, 1)),
    "view that mixes in rows": (0, lambda m, x: _swapped_wrongly(x)),
    "index by the input": (0, lambda m, x: x[:, x[0, :, 0, 0].argsort()]),
}
for name, (folds, permute) in PERMUTATIONS.items():

    def build_permuted(permute: Callable[[Any, Tensor], Tensor] = permute, before: bool = False) -> nn.Module:
        parts = {"conv": C(8, 8, 3, groups=2), "bn": BN(8), "order": nn.Buffer(torch.randperm(8))}
        if before:
            return randomise(Forward(lambda m, x: m.conv(permute(m, m.bn(x))), **parts))
        return randomise(Forward(lambda m, x: m.bn(permute(m, m.conv(x))), **parts))

    code = {"index by the input": "unknown-op", "view that mixes in rows": "axis"}.get(name, ())
    case(f"permutation, {name}", (2, 8, 9, 9), folds, code)(build_permuted)
    case(f"norm before a permutation, {name}", (2, 8, 9, 9), folds, code)(
        lambda build=build_permuted: build(before=True)  # type: ignore[misc]
    )


# Constants that vary along more than the channels -------------------------------------------------------------------
def with_map(*shape: int) -> Callable[[], nn.Module]:
    forward = lambda m, x: m.bn(m.conv(x) + m.position)
    return lambda: randomise(Forward(forward, conv=C(3, 5, 3), position=nn.Parameter(torch.randn(shape)), bn=BN(5)))


case("constant map added", IMAGE, 1)(with_map(1, 5, 7, 7))
case("constant map without the batch axis added", IMAGE, 1)(with_map(5, 7, 7))
case("constant map of one channel added", IMAGE, 1, form="graph")(with_map(1, 1, 7, 7))
case("constant map of rows added", IMAGE, 1, form="graph")(with_map(7, 1))


@case("constant map subtracted, computed", IMAGE, 1, form="graph")
def _() -> nn.Module:
    forward = lambda m, x: m.bn(m.conv(x) - m.position.exp())
    return randomise(Forward(forward, conv=C(3, 5, 3), position=nn.Parameter(torch.randn(1, 5, 7, 7)), bn=BN(5)))


@case("constant map that something else reads", IMAGE, 0, "shared")
def _() -> nn.Module:
    forward = lambda m, x: m.bn(m.conv(x) + m.position) * m.position
    return randomise(Forward(forward, conv=C(3, 5, 3), position=nn.Parameter(torch.randn(1, 5, 7, 7)), bn=BN(5)))


@case("constant map minus the value", IMAGE, 0, "axis")
def _() -> nn.Module:
    forward = lambda m, x: m.bn(m.position - m.conv(x))
    return randomise(Forward(forward, conv=C(3, 5, 3), position=nn.Parameter(torch.randn(1, 5, 7, 7)), bn=BN(5)))


@case("positions added to tokens", (2, 7, 4), 1)
def _() -> nn.Module:
    forward = lambda m, x: m.bn((m.fc(x) + m.position).transpose(1, 2))
    position = nn.Parameter(torch.randn(1, 7, 5))
    return randomise(Forward(forward, fc=nn.Linear(4, 5), position=position, bn=nn.BatchNorm1d(5)))


# One parameter in parts ---------------------------------------------------------------------------------------------
class Octave(nn.Module):
    """An octave convolution: four convolutions by slices of one weight, a norm for each frequency."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6, 3, 3))
        self.high, self.low = BN(5), BN(3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        high, low = x[:, :4], F.avg_pool2d(x[:, 4:], 2)
        w, up = self.weight, F.interpolate
        to_high = F.conv2d(high, w[:5, :4], padding=1) + up(F.conv2d(low, w[:5, 4:], padding=1), scale_factor=2)
        to_low = F.conv2d(F.avg_pool2d(high, 2), w[5:, :4], padding=1) + F.conv2d(low, w[5:, 4:], padding=1)
        return self.high(to_high), self.low(to_low)


case("slices of one weight", (2, 6, 8, 8), 2, form="graph")(lambda: randomise(Octave()))


@case("a weight and a slice of it", IMAGE, 1, "shared", form="graph")
def _() -> nn.Module:
    forward = lambda m, x: (m.bn(F.conv2d(x, m.w[:3])), m.other(F.conv2d(x, m.w)) + F.conv2d(x, m.w))
    return randomise(Forward(forward, w=nn.Parameter(torch.randn(5, 3, 3, 3)), bn=BN(3), other=BN(5)))


@case("a weight and a slice of it, both folded", IMAGE, 2, form="graph")
def _() -> nn.Module:
    forward = lambda m, x: (m.bn(F.conv2d(x, m.w[:3])), m.other(F.conv2d(x, m.w)))
    return randomise(Forward(forward, w=nn.Parameter(torch.randn(5, 3, 3, 3)), bn=BN(3), other=BN(5)))


@case("a computed weight with two norms", IMAGE, 2, form="graph")
def _() -> nn.Module:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        w = m.w.tanh()
        return m.one(F.conv2d(x, w)), m.other(F.conv2d(x + 1, w))

    return randomise(Forward(forward, w=nn.Parameter(torch.randn(5, 3, 3, 3)), one=BN(5), other=BN(5)))


# Norms of chunks ----------------------------------------------------------------------------------------------------
class Ghost(nn.Module):
    """A ghost batch norm, as TabNet has it: each virtual batch is normalised by itself."""

    def __init__(self, channels: int, size: int, dim: int = 0, is_reversed: bool = False) -> None:
        super().__init__()
        self.bn, self.size, self.dim, self.is_reversed = nn.BatchNorm1d(channels), size, dim, is_reversed

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(-(-x.shape[0] // self.size), self.dim)
        return torch.cat([self.bn(part) for part in parts[:: -1 if self.is_reversed else 1]], self.dim)


for name, folds, ghost in [
    ("ghost norm", 1, {"size": 2}),
    ("ghost norm, one chunk", 1, {"size": 8}),
    ("ghost norm, chunks in another order", 0, {"size": 2, "is_reversed": True}),
]:
    refused = () if folds else ("unknown-op",) * 2
    varies = {} if folds else {"dynamic": False}  # any batch takes long, and the other two are folded for it
    plain(name, (3, 5), folds, refused, make(nn.Linear, 5, 6), make(Ghost, 6, **ghost), **varies)


@case("ghost norm of split, with other chunks' norm", (4, 5), 0, ("unknown-op",) * 2)
def _() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.fc(x).split(2)
        return torch.cat([m.bn(a), m.other(b)])

    return randomise(Forward(forward, fc=nn.Linear(5, 6), bn=nn.BatchNorm1d(6), other=nn.BatchNorm1d(6)))


# Layers that are computed twice, for a norm and for something else ----------------------------------------------------
TWICE = {"form": "graph", "duplicate": "allow"}


@case("conv output read twice, duplicated", IMAGE, 1, **TWICE)
def _() -> nn.Module:
    return randomise(Forward(lambda m, x: m.bn(y := m.conv(x)) + y, conv=C(3, 5, 3), bn=BN(5)))


@case("conv output returned, duplicated", IMAGE, 1, **TWICE)
def _() -> nn.Module:
    return randomise(Forward(lambda m, x: (m.bn(y := m.conv(x)), y), conv=C(3, 5, 3), bn=BN(5)))


@case("densely connected layers, duplicated", IMAGE, 3, **TWICE)
def _() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        a = m.first(x)
        b = m.second(F.relu(m.bn1(a)))
        c = m.third(F.relu(m.bn2(torch.cat([a, b], 1))))
        return F.relu(m.bn3(torch.cat([a, b, c], 1)))

    convs = {"first": C(3, 4, 3), "second": C(4, 2, 3, padding=1), "third": C(6, 2, 3, padding=1)}
    return randomise(Forward(forward, **convs, bn1=BN(4), bn2=BN(6), bn3=BN(8)))


@case("pooled conv read by two norms, duplicated", IMAGE, 2, **TWICE)
def _() -> nn.Module:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.avg_pool2d(m.conv(x), 2)
        return m.bn(y).relu(), m.other(y).sigmoid()

    return randomise(Forward(forward, conv=C(3, 5, 3), bn=BN(5), other=BN(5)))


@case("product read twice, duplicated", (4, 5), 1, **TWICE)
def _() -> nn.Module:
    forward = lambda m, x: m.bn(y := x @ m.w.t()) + y
    return randomise(Forward(forward, w=nn.Parameter(torch.randn(6, 5)), bn=nn.BatchNorm1d(6)))


@case("activation between, nothing to duplicate", IMAGE, 0, "multi-use", duplicate="allow")
def _() -> nn.Module:
    return randomise(Forward(lambda m, x: m.bn(y := m.conv(x).relu()) + y, conv=C(3, 5, 3), bn=BN(5)))


@case("read twice and written in place, not duplicated", IMAGE, 0, "multi-use", duplicate="allow")
def _() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        z = y.relu_()
        return m.bn(y) + z

    return randomise(Forward(forward, conv=C(3, 5, 3), bn=BN(5)))


plain("nothing read twice, duplicate allowed", IMAGE, 1, (), make(C, 3, 5, 3), make(BN, 5), duplicate="allow")
