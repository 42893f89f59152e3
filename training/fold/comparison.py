"""How far two runs of a network are apart, channel by channel, and whether that says anything.

Part of the proof of both front ends: `verdict` judges by it. Each channel of an output is compared with its own largest
value, so that none hides behind a larger one. What holds no number that could differ is no evidence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FEW = 16  # a channel that is seen in fewer numbers than this may be near zero by chance
NOISE = 1e-13  # of the median channel: what is below it is a sum that comes to zero


def deviation(expected: Tensor, got: Tensor, noise: float = NOISE) -> Tensor:
    """Return the largest |difference| of each channel, over the largest |expected| of the channel.

    Args:
        expected: any shape; the channels are on axis 1 or on the last one, so both are looked at. A complex channel is
            two, its real part and its imaginary one.
        got: the same shape.
        noise: a channel below this part of the median channel is a sum that comes to zero, in both.

    Returns:
        One number for each index of these axes, float64; infinite where one of both is not finite and the other is
        something else, or where the channel is zero in one alone.
    """
    left, right = _wide(expected), _wide(got).to(expected.device)
    same = (left == right) | (left.isnan() & right.isnan())
    finite = left.isfinite() & right.isfinite()
    difference = torch.where(same, 0.0, torch.where(finite, (left - right).abs(), torch.inf))
    size = torch.where(finite, left.abs(), 0.0)
    axes: list[int | None] = [*sorted({1, expected.ndim - 1})] if expected.ndim > 1 else [None]
    parts = 2 if expected.is_complex() or got.is_complex() else 1
    return torch.cat([_relative(_rows(difference, axis, parts), _rows(size, axis, parts), noise) for axis in axes])


def flaw(output: Tensor, resolution: float) -> str:
    """Return why an output is no evidence, since no other could differ from it, or "" when it is.

    Args:
        output: any shape and dtype.
        resolution: the relative difference that a comparison lets pass.
    """
    if output.numel() == 0:
        return "it is empty"
    values = _wide(output)
    values = values[values.isfinite()]
    if not values.numel():
        return "none of its values is a finite number"
    size, spread = float(values.abs().max()), float(values.max() - values.min())
    if size == 0 or (output.numel() > 1 and spread <= FEW * resolution * size):
        return f"all its values are {values[0].item():g}, to {max(spread / size if size else 0.0, resolution):.0e}"
    return ""


@dataclass(frozen=True)
class Difference:
    """The channel of two outputs that comes nearest to its limit, or passes it by most.

    Attributes:
        error: its |difference|, relative to its scale.
        limit: what is allowed there, the cap included.
        uncapped: what rounding alone could make of any channel; above it the networks are different functions.
        channel: its place in what `deviation` returned.
    """

    error: float
    limit: float
    uncapped: float
    channel: int

    @property
    def is_wrong(self) -> bool:
        """True when rounding does not explain the error."""
        return not self.error <= self.uncapped

    @property
    def doubt(self) -> str:
        """Why an error that is not wrong says nothing: it is above the limit; "" when it is not."""
        if self.error <= self.limit:
            return ""
        return f"it differs by {self.error:.3g} of its scale, which rounding could explain; the limit is {self.limit:g}"


def largest(errors: Tensor, limits: Tensor, cap: float) -> Difference:
    """Return the difference that is largest relative to its limit, which no cap lets grow above `cap`."""
    if not len(errors):
        return Difference(0.0, cap, cap, 0)
    capped = limits.clamp(max=cap)
    at = int((errors / capped).nan_to_num(nan=torch.inf).argmax())
    return Difference(float(errors[at]), float(capped[at]), float(limits.max()), at)


def _wide(tensor: Tensor) -> Tensor:
    """Return the values as float64, a complex number as two of them on a last axis."""
    value = tensor.detach()
    if not value.is_complex():
        return value.to(torch.float64)
    return torch.view_as_real(value.to(torch.complex128).resolve_conj())


def _rows(values: Tensor, axis: int | None, parts: int) -> Tensor:
    """Return the values as (channels, rest); those of two parts as (channels * parts, rest)."""
    if parts > 1:
        values = values.movedim(-1, 0)
        values = values if values.ndim > 1 else values[:, None]
        channels = values.flatten(1)[:, None] if axis is None else values.movedim(axis + 1, 1)
        return channels.reshape(parts * channels.shape[1], -1) if values.numel() else values.new_zeros((parts, 0))
    return values.reshape(1, -1) if axis is None else values.movedim(axis, 0).flatten(1)


def _relative(difference: Tensor, size: Tensor, noise: float) -> Tensor:
    """Return the largest difference of each row over its largest value."""
    if not difference.numel():
        return difference.new_zeros(len(difference))
    worst, scale = difference.amax(1), size.amax(1)
    median = scale[scale > 0].median() if bool((scale > 0).any()) else scale.new_zeros(())
    if size.shape[1] < FEW:
        scale = scale.clamp(min=0.1 * float(median))
    is_noise = (scale <= noise * median) & (worst <= noise * median)
    return torch.where(is_noise | (worst == 0), 0.0, worst / scale)
