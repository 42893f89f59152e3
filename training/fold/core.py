"""The arithmetic of folding: pure functions on numpy arrays, float64 throughout, one rounding at the end.

First in the flow after the refusal codes. Any norm in eval mode is an `Affine`, y = scale * x + shift per channel;
`fold_producer` puts one after a layer's output, `fold_consumer` before a layer's input. Nothing here knows torch,
ONNX, graphs or names: both front ends call the same functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from .refusals import Refusal, RefusalCode

Array = npt.NDArray[np.float64]


class Layout(StrEnum):
    """How a weight array spells out its output and input channels."""

    CONV = "conv"  # (out, in/groups, *kernel)
    CONV_TRANSPOSE = "conv-transpose"  # (in, out/groups, *kernel), the groups lie along the first axis
    LINEAR = "linear"  # (out, in)
    MATMUL = "matmul"  # (in, out)

    @property
    def is_inputs_first(self) -> bool:
        """True when the first axis of the weight is that of the input channels."""
        return self in (Layout.CONV_TRANSPOSE, Layout.MATMUL)


@dataclass(frozen=True)
class Affine:
    """y = scale * x + shift for each channel of one axis.

    Attributes:
        scale: (C,), float64, finite.
        shift: (C,), float64, finite.
    """

    scale: Array
    shift: Array

    def __post_init__(self) -> None:
        scale, shift = np.asarray(self.scale, np.float64), np.asarray(self.shift, np.float64)
        if scale.ndim != 1 or scale.shape != shift.shape:
            raise ValueError(f"an affine needs two equal vectors, got {scale.shape} and {shift.shape}")
        require_finite("scale of the norm", scale)
        require_finite("shift of the norm", shift)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "shift", shift)

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return int(self.scale.shape[0])

    @classmethod
    def identity(cls, channels: int) -> "Affine":
        """Return the affine that changes nothing, for `channels` channels."""
        return cls(np.ones(channels), np.zeros(channels))

    @classmethod
    def from_batch_norm(
        cls,
        mean: npt.ArrayLike,
        var: npt.ArrayLike,
        gamma: npt.ArrayLike | None,
        beta: npt.ArrayLike | None,
        eps: float,
    ) -> "Affine":
        """Return gamma * (x - mean) / sqrt(var + eps) + beta as one affine.

        Args:
            mean: (C,), any float dtype; widened before any arithmetic, as are the others.
            var: (C,), not negative.
            gamma: (C,), or None for ones.
            beta: (C,), or None for zeros.
            eps: as the runtime uses it: PyTorch's double, ONNX's float32 value.

        Raises:
            Refusal: non-finite for NaN or infinity anywhere, zero-denominator for var < 0 or var + eps <= 0.

        Source: Ioffe and Szegedy 2015 (arXiv:1502.03167), algorithm 2.
        """
        mean64, var64 = _vector("mean", mean), _vector("variance", var)
        gamma64 = np.ones_like(mean64) if gamma is None else _vector("gamma", gamma)
        beta64 = np.zeros_like(mean64) if beta is None else _vector("beta", beta)
        denominator = var64 + float(eps)
        if np.any(var64 < 0) or np.any(~(denominator > 0)):
            worst = int(np.argmin(denominator))
            raise Refusal(
                RefusalCode.ZERO_DENOMINATOR,
                f"channel {worst} has variance {var64[worst]:.6g} and eps {eps:g}; expected variance >= 0 "
                "and variance + eps > 0",
            )
        scale = gamma64 / np.sqrt(denominator)
        return cls(scale, beta64 - mean64 * scale)

    def then(self, after: "Affine") -> "Affine":
        """Return the affine x -> after(self(x))."""
        return Affine(after.scale * self.scale, after.scale * self.shift + after.shift)

    def past(self, other: "Affine") -> "Affine":
        """Return the affine c for which other(self(x)) = c(other(x))."""
        return Affine(self.scale, other.scale * self.shift + other.shift - self.scale * other.shift)

    def take(self, start: int, stop: int) -> "Affine":
        """Return the affine of channels start..stop-1, as for one input of a concatenation."""
        return self.pick(np.arange(start, stop))

    def pick(self, channels: npt.NDArray[np.int64]) -> "Affine":
        """Return the affine of some channels, in their order."""
        return Affine(self.scale[channels], self.shift[channels])

    def without_shift(self) -> "Affine":
        """Return the scale alone, as for the second summand of an addition."""
        return Affine(self.scale, np.zeros_like(self.shift))

    def repeat(self, times: int) -> "Affine":
        """Return the affine with each channel repeated, as after flattening (C, times) to (C * times)."""
        return Affine(np.repeat(self.scale, times), np.repeat(self.shift, times))

    def spread(self, channels: int) -> "Affine":
        """Return a one-channel affine for `channels` equal channels."""
        if self.channels == channels:
            return self
        if self.channels != 1:
            raise ValueError(f"an affine of {self.channels} channels cannot serve {channels}")
        return self.repeat(channels)


def concatenate(parts: Sequence[Affine]) -> Affine:
    """Return the affine of the parts' channels one after the other."""
    return Affine(np.concatenate([p.scale for p in parts]), np.concatenate([p.shift for p in parts]))


def out_channels(weight: npt.NDArray[Any], layout: Layout, groups: int = 1) -> int:
    """Return how many channels a layer with this weight produces."""
    return int(weight.shape[1]) * groups if layout.is_inputs_first else int(weight.shape[0])


def in_channels(weight: npt.NDArray[Any], layout: Layout, groups: int = 1) -> int:
    """Return how many channels a layer with this weight reads."""
    return int(weight.shape[0]) if layout.is_inputs_first else int(weight.shape[1]) * groups


def fold_producer(
    weight: npt.NDArray[Any], bias: npt.NDArray[Any] | None, affine: Affine, layout: Layout, groups: int = 1
) -> tuple[Array, Array]:
    """Return weight and bias of the one layer that computes `affine(layer(x))`.

    Args:
        weight: laid out as `layout` says, any float dtype.
        bias: (out,), or None for zeros.
        affine: one channel per output channel of the layer.
        layout: meaning of the weight's axes.
        groups: of a convolution; 1 for the others.

    Returns:
        Weight in the same shape and bias (out,), both float64 and not yet rounded: W' = s W, b' = s b + t.

    Raises:
        Refusal: non-finite for weights that are, overflow when a product leaves float64.
        ValueError: the affine has another number of channels than the layer.
    """
    weight64, bias64 = _parameters(weight, bias, layout, groups)
    _require_channels(affine, out_channels(weight, layout, groups), "produces")
    shifted = affine.scale * bias64 + affine.shift
    _grouped(weight64, layout, groups)[...] *= affine.scale.reshape(groups, -1, 1, 1)
    return require_in_range("folded weight", weight64), require_in_range("folded bias", shifted)


def fold_consumer(
    weight: npt.NDArray[Any], bias: npt.NDArray[Any] | None, affine: Affine, layout: Layout, groups: int = 1
) -> tuple[Array, Array]:
    """Return weight and bias of the one layer that computes `layer(affine(x))`, where no zero padding is involved.

    Args:
        weight: laid out as `layout` says, any float dtype.
        bias: (out,), or None for zeros.
        affine: one channel per input channel of the layer.
        layout: meaning of the weight's axes.
        groups: of a convolution; 1 for the others.

    Returns:
        Weight in the same shape and bias (out,), both float64 and not yet rounded: W' = W s over the inputs and
        b' = b + sum of W t over inputs and kernel. With zero padding only the weight is right; see `fold` for that.

    Raises:
        Refusal: non-finite for weights that are, overflow when a product leaves float64.
        ValueError: the affine has another number of channels than the layer reads.
    """
    weight64, bias64 = _parameters(weight, bias, layout, groups)
    _require_channels(affine, in_channels(weight, layout, groups), "reads")
    grouped = _grouped(weight64, layout, groups)
    shifted = bias64 + (grouped * affine.shift.reshape(groups, 1, -1, 1)).reshape(len(bias64), -1).sum(axis=1)
    grouped *= affine.scale.reshape(groups, 1, -1, 1)
    return require_in_range("folded weight", weight64), require_in_range("folded bias", shifted)


def fold_parallel(weight: Array, bias: Array, affine: Affine, groups: int = 1) -> tuple[Array, Array]:
    """Return weight and bias of the one convolution that computes `conv(x) + affine(x)`.

    Args:
        weight: (channels, channels/groups, *kernel), odd kernel sizes; the centre lies on the output's own place.
        bias: (channels,).
        affine: one channel per channel.
        groups: of the convolution.

    Source: Ding et al. 2021 (arXiv:2101.03697), section 3.3.
    """
    folded, channel = weight.copy(), np.arange(len(weight))
    centre = tuple(size // 2 for size in weight.shape[2:])
    folded[(channel, channel % (len(weight) // groups), *centre)] += affine.scale
    return require_in_range("folded weight", folded), require_in_range("folded bias", bias + affine.shift)


def border_kernel(weight: npt.NDArray[Any], affine: Affine, groups: int = 1, layout: Layout = Layout.CONV) -> Array:
    """Return the kernel that makes up for zero padding when `conv(affine(x))` is folded into the conv.

    Convolved with one channel of ones under the same stride, padding and dilation, it gives the share of the shift in
    every output, which is smaller at the border, where the padding is not shifted. The same holds for a transposed
    convolution, whose outputs do not all see the same part of the kernel.

    Args:
        weight: of the convolution, before folding.
        affine: one channel per input channel.
        groups: of the convolution.
        layout: of its weight, CONV or CONV_TRANSPOSE.

    Returns:
        Float64, the sum of W t over the inputs of each output: the weight of a convolution of the same layout with one
        input channel and one group, (out, 1, *kernel) or (1, out, *kernel).
    """
    weight64, _ = _parameters(weight, None, layout, groups)
    shares = (_grouped(weight64, layout, groups) * affine.shift.reshape(groups, 1, -1, 1)).sum(axis=2)
    channels = (1, -1) if layout.is_inputs_first else (-1, 1)
    return require_in_range("border kernel", shares.reshape(*channels, *weight64.shape[2:]))


def _grouped(weight: Array, layout: Layout, groups: int) -> Array:
    """Return the weight as a view of (groups, out/groups, in/groups, kernel), whatever its layout.

    The weight (out,) of a norm that stays has one input for each output.
    """
    second = weight.shape[1] if weight.ndim > 1 else 1
    view = weight.reshape(groups, weight.shape[0] // groups, second, -1)
    return view.swapaxes(1, 2) if layout.is_inputs_first else view


def _parameters(
    weight: npt.NDArray[Any], bias: npt.NDArray[Any] | None, layout: Layout, groups: int
) -> tuple[Array, Array]:
    weight64 = np.array(weight, np.float64, order="C")  # a copy, which the folds change in place
    bias64 = np.zeros(out_channels(weight, layout, groups)) if bias is None else np.asarray(bias, np.float64)
    require_finite("weight", weight64)
    require_finite("bias", bias64)
    return weight64, bias64


def _vector(name: str, values: npt.ArrayLike) -> Array:
    vector = np.asarray(values, np.float64).reshape(-1)
    require_finite(f"{name} of the norm", vector)
    return vector


def _require_channels(affine: Affine, expected: int, verb: str) -> None:
    if affine.channels != expected:
        raise ValueError(f"the affine has {affine.channels} channels, the layer {verb} {expected}")


def require_finite(name: str, values: Array) -> Array:
    """Return `values`; raise Refusal non-finite when one of them is NaN or infinite."""
    if not np.all(np.isfinite(values)):
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        raise Refusal(RefusalCode.NON_FINITE, f"{name} is {values.flat[first]} at flat index {first}")
    return values


def require_in_range(name: str, values: Array) -> Array:
    """Return `values`, computed from finite numbers; raise Refusal overflow when one of them no longer is."""
    if not np.all(np.isfinite(values)):
        raise Refusal(RefusalCode.OVERFLOW, f"{name} does not fit its dtype")
    return values
