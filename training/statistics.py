"""Running statistics replaced by population statistics: what a norm meets when it serves, measured with frozen weights.

At learning rate 1.0 the exponential averages of training lag behind the weights, and test accuracy scatters with them.
It changes mean and variance of the norms and nothing else; it does not train.
"""

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .batchnorm import BatchNorm, BatchNormLayer, norm_tensors
from .dataset import rows_at_once, scale_pixels
from .errors import ConfigError, DivergenceError
from .ranks import ALONE, Ranks

ROWS = 500  # of 28 x 28 pixels in one forward pass


@dataclass(frozen=True)
class Moments:
    """Mean and sum of squared deviations per channel, float64, over `count` values of each channel."""

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Moments":
        """Return the moments of (N, C, ...) over every axis but the second.

        Each row's positions are summed in the precision of `x`, and all rows in float64: to float32 it is as good as
        float64 throughout, and 40 times faster on CPU.
        """
        values = x.detach().reshape(x.shape[0], x.shape[1], -1)  # (N, C, positions)
        rows, _, positions = values.shape
        row_means = values.mean(2)
        row_squares = (values - row_means[:, :, None]).square_().sum(2)
        means = row_means.to(torch.float64)
        mean = means.mean(0)
        squares = row_squares.sum(0, dtype=torch.float64) + positions * (means - mean).square().sum(0)
        return cls(rows * positions, mean, squares)

    def pooled(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of values together.

        Source: Chan, Golub, LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample variances.
        """
        count = self.count + other.count
        shift = other.mean - self.mean
        squares = self.squares + other.squares + shift.square() * (self.count * other.count / count)
        return Moments(count, self.mean + shift * (other.count / count), squares)

    def variance(self, *, unbiased: bool = True) -> Tensor:
        """Return the variance (C,): divisor count - 1 as PyTorch stores it, or count."""
        return self.squares / (self.count - 1 if unbiased else self.count)


def population_statistics(
    model: nn.Module,
    images: Tensor,
    *,
    mirrored: bool = False,
    batch_size: int | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Moments]:
    """Replace every norm's running statistics by those of all `images`, and return the moments by the norm's name.

    The norms are done in the order of the data. Each one's input is computed in evaluation mode, with the norms before
    it already replaced: that is the distribution the norm meets when it serves, and the result does not depend on how
    the images are batched. (Averages over train-mode batches, as in precise BN, describe another network: there each
    earlier norm normalises by its batch.) Moments are pooled in float64; the variance is stored in the norm's own
    convention, unbiased by default. The number of batches tracked, the weights and the mode stay as they are, and
    nothing changes unless all norms succeed.

    Args:
        model: with `nn.BatchNorm` or hand-written norms that keep statistics, each used once.
        images: (N, C, H, W) uint8 on the model's device: the training set.
        mirrored: whether the mirror image of each counts too, as in a training that mirrors: a norm must serve with
            the moments of what the weights were trained on.
        batch_size: images of one forward pass, by default as many as suit their size; it bounds memory and changes the
            result only by rounding.
        ranks: that share the images out; each has to call this with all of them, and gets the statistics of all.

    Raises:
        ConfigError: no norm, one that keeps no statistics, or one used twice.
        DivergenceError: a statistic is not finite.

    Source: Ioffe and Szegedy 2015, algorithm 2, lines 8 to 11; Wu and Johnson 2021 (arXiv:2105.07576), section 3.
    """
    twin = copy.deepcopy(model).eval()
    rows = batch_size or rows_at_once(images, ROWS)
    moments = {}
    for name, norm in _norms_in_order(twin, images[:1]).items():
        own = _moments_at(twin, norm, images[ranks.share(len(images))], mirrored, rows)
        moments[name] = _of_all_ranks(own, norm, ranks)
        _check_finite(name, moments[name])
        _store(norm, moments[name])
    norms = _norms_of(model)
    for name, each in moments.items():
        _store(norms[name], each)
    return moments


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass at the norm whose input is wanted; nothing after it is computed."""


def _norms_of(model: nn.Module) -> dict[str, BatchNormLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BatchNormLayer)}


def _norms_in_order(model: nn.Module, image: Tensor) -> dict[str, BatchNormLayer]:
    """Return the norms by name in the order in which one forward pass meets them."""
    norms = _norms_of(model)
    if not norms:
        raise ConfigError("the model has no batch normalization: there are no statistics to recompute")
    for name, norm in norms.items():
        if not norm.track_running_stats:
            raise ConfigError(f"norm '{name}' keeps no statistics (track_running_stats=False): nothing to recompute")
    met: list[str] = []
    handles = [norm.register_forward_pre_hook(lambda *_, name=name: met.append(name)) for name, norm in norms.items()]
    with torch.no_grad():
        model(scale_pixels(image, next(model.parameters()).dtype))
    for handle in handles:
        handle.remove()
    if sorted(met) != sorted(norms):
        raise ConfigError(f"norms {sorted(norms)}: expected each once in a forward pass, got {met}")
    return {name: norms[name] for name in met}


@torch.no_grad()
def _moments_at(model: nn.Module, norm: nn.Module, images: Tensor, mirrored: bool, batch_size: int) -> Moments | None:
    total: Moments | None = None
    for part in _inputs_of(model, norm, images, mirrored, batch_size):
        moments = Moments.of(part)
        total = moments if total is None else total.pooled(moments)
    return total


def _of_all_ranks(own: Moments | None, norm: BatchNormLayer, ranks: Ranks) -> Moments:
    """Return the moments of all ranks together; `own` is None on a rank that has no image."""
    mean = norm_tensors(norm)["mean"]
    assert mean is not None
    message = torch.zeros(1 + 2 * len(mean), dtype=torch.float64, device=mean.device)
    if own is not None:
        message = torch.cat([message.new_full((1,), own.count), own.mean, own.squares])
    first = 1 + len(mean)
    parts = [Moments(int(part[0]), part[1:first], part[first:]) for part in ranks.gathered(message)]
    return functools.reduce(Moments.pooled, [part for part in parts if part.count])


def _inputs_of(model: nn.Module, norm: nn.Module, images: Tensor, mirrored: bool, batch_size: int) -> Iterator[Tensor]:
    """Yield what reaches `norm`, batch by batch, without computing anything after it."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        caught.append(inputs[0])
        raise _Reached

    handle = norm.register_forward_pre_hook(catch)
    try:
        dtype = next(model.parameters()).dtype
        for chunk in torch.split(images, batch_size) if len(images) else ():
            for batch in (chunk, chunk.flip(3)) if mirrored else (chunk,):
                try:
                    model(scale_pixels(batch, dtype))
                except _Reached:
                    yield caught.pop()
    finally:
        handle.remove()


def _check_finite(name: str, moments: Moments) -> None:
    if moments.count < 2:
        raise ConfigError(f"norm '{name}': one value per channel has no variance; give at least 2 images")
    if not bool(torch.isfinite(moments.mean).all() and torch.isfinite(moments.squares).all()):
        raise DivergenceError(f"norm '{name}' meets values that are not finite: the weights are broken; lower --lr")


@torch.no_grad()
def _store(norm: BatchNormLayer, moments: Moments) -> None:
    """Write `moments` into the norm's buffers in place, rounded once, in the norm's own convention of the variance."""
    unbiased = True
    if isinstance(norm, BatchNorm):
        unbiased = norm.unbiased
        if norm.moving_gap is not None:
            norm.moving_gap.copy_(moments.variance() - moments.variance(unbiased=False))
    tensors = norm_tensors(norm)
    assert tensors["mean"] is not None
    assert tensors["variance"] is not None
    tensors["mean"].copy_(moments.mean)
    tensors["variance"].copy_(moments.variance(unbiased=unbiased))
