"""Random PyTorch networks for folding: norms and layers among views, shape arithmetic, branches and shared layers.

A network is a list of steps drawn from a seed; each reads values made before it. Sizes are read in the forward, as real
definitions do, so that other sizes may take another way through it. `random_network` keeps the steps that run.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.fold_cases import randomise

Function = Callable[..., Tensor]


class Step(nn.Module):
    """One step: a function of some layers, or of none, and of values made before."""

    def __init__(self, name: str, function: Function, layers: list[nn.Module], reads: tuple[int, ...]):
        super().__init__()
        self.name, self.function, self.reads = name, function, reads
        self.layers = nn.ModuleList(layers)

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(*self.layers, *values)


class RandomNetwork(nn.Module):
    """Steps in order; returns the last value, and a second one when there is one to return."""

    def __init__(self, steps: list[Step], also: int | None = None):
        super().__init__()
        self.steps, self.also = nn.ModuleList(steps), also

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for step in self.steps:
            values.append(step(*(values[number] for number in step.reads)))
        return values[-1] if self.also is None else {"last": values[-1], "inner": values[self.also]}

    def __str__(self) -> str:
        return " ".join(f"{step.name}{list(step.reads)}" for step in self.steps)


class HandNorm(nn.Module):
    """A norm written by hand, along one axis."""

    def __init__(self, channels: int, axis: int = 1):
        super().__init__()
        self.shape = [-1 if a == axis else 1 for a in range(4)]
        self.gamma, self.beta = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, var, gamma, beta = (t.view(self.shape) for t in (self.mean, self.var, self.gamma, self.beta))
        return (x - mean) / torch.sqrt(var + 1e-4) * gamma + beta


class Functional(nn.Module):
    """F.batch_norm, whose owner is no norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.inner = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        n = self.inner
        return F.batch_norm(x, n.running_mean, n.running_var, weight=n.weight, bias=n.bias, eps=1e-3)


@dataclass
class _Draw:
    """The random choices of one network.

    Attributes:
        rng: where they come from.
        values: the example's value of each step, the input first.
        layers: convolutions that a later step may use again, with their input's channels.
    """

    rng: random.Random
    values: list[Tensor]
    layers: list[tuple[int, nn.Module]]

    def convolution(self, channels: int, out: int | None = None) -> nn.Module:
        rng = self.rng
        out = out or rng.choice([2, 4, 6])
        kernel, groups = rng.choice([1, 1, 2, 3, 3, 5]), rng.choice([1, 1, 2, channels])
        groups = groups if channels % groups == out % groups == 0 else 1
        more: dict[str, Any] = {"groups": groups, "bias": rng.random() < 0.5, "stride": rng.choice([1, 1, 1, 2])}
        more["padding"] = rng.choice([0, 0, kernel // 2, 1])
        if more["padding"]:
            more["padding_mode"] = rng.choice(["zeros", "zeros", "replicate", "circular"])
        layer = nn.Conv2d(channels, out, kernel, dilation=rng.choice([1, 1, 2]), **more)
        if rng.random() < 0.1:
            layer = nn.utils.parametrizations.weight_norm(layer)
        self.layers.append((channels, layer))
        return layer

    def norm(self, channels: int) -> nn.Module:
        """A norm of four dimensions that is an affine in eval mode."""
        kind = self.rng.randrange(8)
        if kind == 0:
            return nn.BatchNorm2d(channels, affine=False)
        if kind == 1:
            return nn.InstanceNorm2d(channels, affine=True, track_running_stats=True)
        return HandNorm(channels) if kind == 2 else Functional(channels) if kind == 3 else nn.BatchNorm2d(channels)


def _odd_pad(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)))


def _same_pad(layer: nn.Module, x: Tensor) -> Tensor:
    total = [max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in x.shape[-2:]]
    return layer(F.pad(x, [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]))


def _hand_mean(x: Tensor) -> Tensor:
    return x - 0.5 * x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])


def _like(x: Tensor, other: Tensor) -> Tensor:
    return F.interpolate(x, size=other.shape[-2:], mode="bilinear", align_corners=False)


def _shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def _tokens(linear: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    y = linear(x.flatten(2).transpose(1, 2))
    return norm(y.flatten(0, 1)).reshape(n, h * w, -1).transpose(1, 2).reshape(n, -1, h, w)


def _channels_last(linear: nn.Module, x: Tensor) -> Tensor:
    return linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _sequence(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    y = norm(conv(x.reshape(x.size(0), x.size(1), -1)))
    return y.view(y.size(0), y.size(1), x.size(2), -1)


def _by_size(layer: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    return norm(layer(x)) if x.shape[-1] % 2 else norm(F.relu(layer(x)))


def _by_batch(norm: nn.Module, x: Tensor) -> Tensor:
    return norm(x) if x.shape[0] > 1 else norm(x) * 1.0


def _squeeze(one: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    return x * torch.sigmoid(norm(one(x.mean((2, 3), keepdim=True))))


def _positions(x: Tensor) -> Tensor:
    return x + torch.arange(x.shape[-1], device=x.device).to(x) / x.shape[-1]


def _swap(x: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=1)
    return torch.cat([other, one], 1)


def _half_norm(norm: nn.Module, x: Tensor) -> Tensor:
    one, other = x.split(x.shape[1] // 2, dim=1)
    return torch.cat([norm(one), other], 1)


def _ghost(norm: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([norm(part) for part in x.chunk(2, 0)]) if x.shape[0] > 1 else norm(x)


def _crop_to_common(x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    h, w = (min(a, b) for a, b in zip(x.shape[2:], other.shape[2:], strict=True))
    return x[..., :h, :w], other[..., :h, :w]


def _skip(x: Tensor, other: Tensor) -> Tensor:
    one, two = _crop_to_common(x, other)
    return one + two


def _difference(x: Tensor, other: Tensor) -> Tensor:
    one, two = _crop_to_common(x, other)
    return one - 0.5 * two


def _concatenation(x: Tensor, other: Tensor) -> Tensor:
    return torch.cat(_crop_to_common(x, other), 1)


def _write(x: Tensor) -> Tensor:
    y = x * 1.0
    return y.mul_(2).add_(0.5)


ONE: dict[str, Function] = {  # functions of one value and of no layer
    "relu": F.relu,
    "relu_": lambda x: F.relu_(x * 1.0),
    "silu": F.silu,
    "write": _write,
    "mean": _hand_mean,
    "shuffle": _shuffle,
    "swap": _swap,
    "flip": lambda x: x.flip(1),
    "index": lambda x: x[:, list(range(x.shape[1]))[::-1]],
    "roll": lambda x: x.roll(1, 1),
    "positions": _positions,
    "average": lambda x: F.avg_pool2d(x, 2, 1),
    "padded average": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average inside": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "max": lambda x: F.max_pool2d(x, 2, 1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (x.shape[-2] // 2, 3)),
    "double": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "bilinear": lambda x: F.interpolate(x, size=(x.shape[-2] + 1, x.shape[-1] * 2 - 1), mode="bilinear"),
    "crop": lambda x: x[..., 1:-1, : x.shape[-1] // 2],
    "transposed": lambda x: x.transpose(2, 3),
    "zeros": lambda x: F.pad(x, (1, 0, 1, 0)),
    "reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "dropout": lambda x: F.dropout(x, 0.5, False),
    "views": lambda x: x.reshape(x.shape[0], -1).view(x.shape[0], x.shape[1], x.shape[2], -1),
    "stacked": lambda x: torch.stack([x, x], 2).flatten(1, 2),
    "patches": lambda x: F.pixel_unshuffle(x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2], 2),
    "scaled": lambda x: x * 0.5 + 1.0,
}
TWO: dict[str, Function] = {"skip": _skip, "cat": _concatenation, "minus": _difference, "like": _like}
LAYERS = ("conv", "norm", "odd conv", "same conv", "deconv", "tokens", "last", "sequence", "by size", "by batch")
LAYERS += ("squeeze", "again", "half norm", "ghost", "scale")
KINDS = [*["conv"] * 14, *["norm"] * 16, *LAYERS, *LAYERS, *ONE, *TWO, *TWO]


def _step(kind: str, draw: _Draw, number: int) -> Step:
    """Return one step that reads value `number`; it may turn out not to run."""
    rng, channels = draw.rng, draw.values[number].shape[1]
    out = rng.choice([2, 4, 6])
    if kind in ONE:
        return Step(kind, ONE[kind], [], (number,))
    if kind in TWO:
        return Step(kind, TWO[kind], [], (number, rng.randrange(len(draw.values))))
    if kind == "again":
        layers = [layer for needed, layer in draw.layers if needed == channels] or [draw.convolution(channels)]
        return Step(kind, lambda layer, x: layer(x), [rng.choice(layers)], (number,))
    function, layers = {
        "conv": lambda: (lambda layer, x: layer(x), [draw.convolution(channels)]),
        "norm": lambda: (lambda layer, x: layer(x), [draw.norm(channels)]),
        "scale": lambda: (lambda layer, x: x * layer.weight.view(-1, 1, 1), [nn.GroupNorm(1, channels)]),
        "odd conv": lambda: (_odd_pad, [nn.Conv2d(channels, out, 3)]),
        "same conv": lambda: (_same_pad, [nn.Conv2d(channels, out, 3, 2)]),
        "deconv": lambda: (lambda layer, x: layer(x), [nn.ConvTranspose2d(channels, out, 3, rng.choice([1, 2]))]),
        "tokens": lambda: (_tokens, [nn.Linear(channels, out), nn.BatchNorm1d(out)]),
        "last": lambda: (_channels_last, [nn.Linear(channels, out)]),
        "sequence": lambda: (_sequence, [nn.Conv1d(channels, out, 1), nn.BatchNorm1d(out)]),
        "by size": lambda: (_by_size, [nn.Conv2d(channels, out, 3, 1, 1), draw.norm(out)]),
        "by batch": lambda: (_by_batch, [draw.norm(channels)]),
        "squeeze": lambda: (_squeeze, [nn.Conv2d(channels, channels, 1), draw.norm(channels)]),
        "half norm": lambda: (_half_norm, [nn.BatchNorm2d(channels // 2)]),
        "ghost": lambda: (_ghost, [nn.BatchNorm2d(channels)]),
    }[kind]()
    return Step(kind, function, layers, (number,))


def random_network(seed: int) -> tuple[RandomNetwork, Tensor, Tensor]:
    """Return a network in eval mode, an example for it, and an input of other sizes and another batch.

    Args:
        seed: the same network, sizes and values for the same seed.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    shapes = [[rng.randint(1, 3), rng.choice([2, 4]), rng.randint(9, 20), rng.randint(9, 20)]]
    shapes.append([rng.randint(1, 4), shapes[0][1], rng.randint(9, 24), rng.randint(9, 24)])
    x, other = (torch.randn(shape) for shape in shapes)
    draw, steps = _Draw(rng, [x], []), []
    for _ in range(rng.randint(4, 14)):
        number = len(draw.values) - 1 if rng.random() < 0.85 else rng.randrange(len(draw.values))
        _add(rng.choice(KINDS), draw, steps, number)
    also = rng.randrange(1, len(steps) + 1) if rng.random() < 0.2 else None
    return randomise(RandomNetwork(steps, also), seed), x, other


def _add(kind: str, draw: _Draw, steps: list[Step], number: int) -> None:
    """Add a step when it runs on the example and gives something of a useful size."""
    try:
        step = _step(kind, draw, number).eval()
        with torch.no_grad():
            value = step(*(draw.values[i] for i in step.reads))
    except (RuntimeError, ValueError):
        return
    if min(value.shape) > 0 and value.numel() <= 20_000:
        steps.append(step)
        draw.values.append(value)
