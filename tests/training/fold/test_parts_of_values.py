"""Norms beside parts of a value: slices, splits, repeats and shuffles, through which an exact rule goes, or none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldserve.training.fold import fold
from tests.support.fold_cases import randomise

IMAGES = torch.randn((2, 8, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
OTHERS = torch.randn((3, 8, 12, 6), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Forward = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """A convolution `c` and norms `n` before or after it, joined by a forward."""

    def __init__(self, run: Forward, c: int, n: int, d: int = 0, m: int = 0):
        super().__init__()
        self.run = run
        self.c, self.n = nn.Conv2d(c, 8, 1), nn.BatchNorm2d(n)
        self.d, self.m = nn.Conv2d(d or 1, 8, 1), nn.BatchNorm2d(m or 1)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def halves(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return torch.cat([net.n(y[:, :4]), y[:, 4:]], 1)


def both_halves(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return torch.cat([net.n(y[:, ::2]), net.m(y[:, 1::2])], 1)


def index_and_slice(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return net.n(y[:, [6, 2, 4, 0]]) + y[:, 1::2]


def overlapping(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return torch.cat([net.n(y[:, :5]), y[:, 4:]], 1)


def beside_whole(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    return torch.cat([net.n(y[:, :4]), y], 1)


def written_half(net: Any, x: Tensor) -> Tensor:
    y = net.c(x)
    y[:, 3:].mul_(2)
    return torch.cat([net.n(y[:, :4]), y[:, 4:]], 1)


def into_parts(net: Any, x: Tensor) -> Tensor:
    one, _, other = net.n(x).split([3, 4, 1], 1)
    return net.c(one) + net.d(other)


def into_one_part(net: Any, x: Tensor) -> Tensor:
    one, other = net.n(x).chunk(2, 1)
    return net.c(one) + net.d(other.relu())


def space_to_depth(net: Any, x: Tensor) -> Tensor:
    y = net.n(x)
    return net.c(torch.cat([y[..., ::2, ::2], y[..., 1::2, ::2], y[..., ::2, 1::2], y[..., 1::2, 1::2]], 1))


FOLDS: dict[str, tuple[Callable[[], Net], int]] = {
    "one half of a value": (lambda: Net(halves, 8, 4), 1),
    "each half by itself": (lambda: Net(both_halves, 8, 4, m=4), 2),
    "an index beside a slice": (lambda: Net(index_and_slice, 8, 4), 1),
    "a part of one channel": (lambda: Net(lambda net, x: net.n(net.c(x).split([7, 1], 1)[1]), 8, 1), 1),
    "one channel joined with others": (
        lambda: Net(lambda net, x: net.c(torch.cat([net.n(x[:, :1]), x[:, 1:]], 1)), 8, 1),
        1,
    ),
    "into the parts of a split": (lambda: Net(into_parts, 3, 8, 1), 1),
    "space to depth": (lambda: Net(space_to_depth, 32, 8), 1),
    "beside itself, turned": (
        lambda: Net(lambda net, x: net.c(torch.cat([y := net.n(x), y.flip(1), y.roll(1, 2)], 1)), 24, 8),
        1,
    ),
    "pixel_unshuffle": (lambda: Net(lambda net, x: net.c(F.pixel_unshuffle(net.n(x), 2)), 32, 8), 1),
    "pixel_shuffle": (lambda: Net(lambda net, x: net.n(F.pixel_shuffle(net.c(x), 2)), 8, 2), 1),
    "repeated channels": (lambda: Net(lambda net, x: net.c(net.n(x).repeat(1, 2, 1, 3)), 16, 8), 1),
    "tiled channels": (lambda: Net(lambda net, x: net.c(net.n(x).tile(2, 1, 1)), 16, 8), 1),
    "interleaved channels": (lambda: Net(lambda net, x: net.c(net.n(x).repeat_interleave(2, 1)), 16, 8), 1),
    "repeated places": (
        lambda: Net(lambda net, x: net.n(net.c(x).repeat_interleave(2, -1).repeat(2, 1, 1, 1)), 8, 8),
        1,
    ),
    "turned along channels and places": (
        lambda: Net(lambda net, x: net.n(net.c(x).flip(3, 1).roll((1, 2), (2, 1))), 8, 8),
        1,
    ),
    "a sum with a factor": (
        lambda: Net(lambda net, x: net.n(torch.sub(net.c(x), net.d(x.relu()), alpha=0.3)), 8, 8, 8),
        1,
    ),
    "a maximum that gives its places": (lambda: Net(lambda net, x: net.c(F.adaptive_max_pool2d(net.n(x), 3)), 8, 8), 1),
    "a maximum before the norm": (lambda: Net(lambda net, x: net.n(F.adaptive_max_pool2d(net.c(x), 3)), 8, 8), 1),
}
STAYS: dict[str, tuple[Callable[[], Net], str]] = {
    "overlapping slices": (lambda: Net(overlapping, 8, 5), "multi-use"),
    "a slice beside the whole": (lambda: Net(beside_whole, 8, 4), "multi-use"),
    "a part that is written into": (lambda: Net(written_half, 8, 4), "multi-use"),
    "a part behind an activation": (lambda: Net(into_one_part, 4, 8, 4), "no-producer"),
    "pixel_unshuffle, each place its own": (
        lambda: Net(lambda net, x: net.n(F.pixel_unshuffle(net.c(x), 2)), 8, 32),
        "multi-use",
    ),
    "pixel_shuffle, each channel its own": (
        lambda: Net(lambda net, x: net.c(F.pixel_shuffle(net.n(x), 2)), 2, 8),
        "multi-use",
    ),
    "repeated, each its own": (lambda: Net(lambda net, x: net.n(net.c(x).repeat(1, 2, 1, 1)), 8, 16), "multi-use"),
    "values one after the other": (lambda: Net(lambda net, x: net.n(net.c(x).roll(3)), 8, 8), "axis"),
    "the places of a maximum": (
        lambda: Net(lambda net, x: (net.c((y := F.max_pool2d(net.n(x), 2, return_indices=True))[0]), y[1]), 8, 8),
        "unknown-op",
    ),
}


def build(make: Callable[[], Net]) -> nn.Module:
    torch.manual_seed(0)
    model: Any = randomise(make()).double()
    with torch.no_grad():
        model.n.weight.abs_()  # a maximum keeps its place for no other scale
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", FOLDS)
def test_a_norm_goes_through_parts(name: str) -> None:
    """Exactly, at another size and batch as well, in the user's own classes."""
    make, folded = FOLDS[name]
    model = build(make)
    result = fold(model, (IMAGES,))
    assert (len(result.report.folded), result.report.form) == (folded, "module"), str(result.report)
    for images in (IMAGES, OTHERS):
        torch.testing.assert_close(result.model(images), model(images), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", STAYS)
def test_a_norm_stays_where_a_part_would_change_for_others(name: str) -> None:
    """With the reason, and the network computes what it did."""
    make, code = STAYS[name]
    model = build(make)
    result = fold(model, (IMAGES,))
    assert [str(site.code) for site in result.report.refused if site.path == "n"] == [code], str(result.report)
    torch.testing.assert_close(result.model(OTHERS), model(OTHERS), rtol=1e-10, atol=1e-10)
