"""Wrong folds: each of the ways in which a fold of one convolution and its norm is usually wrong.

Used by the tests of the proofs of both front ends, and by `benchmarks.folding.mutants`, which prints by how much each
one is caught.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Given:
    """A convolution and the norm behind it, in float64.

    Attributes:
        weight: (out, in / groups, *kernel).
        bias: (out,).
        gamma: (out,), as the three that follow: the norm's weight.
        beta: its bias.
        mean: its running mean.
        var: its running variance.
        eps: added to the variance.
        groups: of the convolution.
    """

    weight: Array
    bias: Array
    gamma: Array
    beta: Array
    mean: Array
    var: Array
    eps: float
    groups: int

    @property
    def scale(self) -> Array:
        """What the norm multiplies by."""
        return self.gamma / np.sqrt(self.var + self.eps)

    def folded(self, scale: Array | None = None) -> tuple[Array, Array]:
        """Return weight and bias of the convolution that takes the norm in, for this scale of the norm."""
        s = self.scale if scale is None else scale
        return per_output(self.weight, s), (self.bias - self.mean) * s + self.beta


Mutant = Callable[[Given], tuple[Array, Array]]


def per_output(weight: Array, scale: Array) -> Array:
    """Return the weight with each output channel multiplied by its number."""
    return np.asarray(weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))


def swapped_channels(given: Given) -> tuple[Array, Array]:
    weight, bias = given.folded()
    order = np.r_[1, 0, 2 : len(bias)]
    return weight[order], bias[order]


def swapped_scales(given: Given) -> tuple[Array, Array]:
    order = np.r_[1, 0, 2 : len(given.bias)]
    shift = given.beta - given.mean * given.scale
    return per_output(given.weight, given.scale[order]), given.bias * given.scale[order] + shift[order]


def one_sign(given: Given) -> tuple[Array, Array]:
    weight, bias = given.folded()
    return per_output(weight, np.where(np.arange(len(bias)) == 2, -1.0, 1.0)), bias


def no_eps(given: Given) -> tuple[Array, Array]:
    return given.folded(given.gamma / np.sqrt(given.var))


def eps_in_float32(given: Given) -> tuple[Array, Array]:
    return given.folded(given.gamma / np.sqrt(given.var + float(np.float32(given.eps))))


def variance_for_deviation(given: Given) -> tuple[Array, Array]:
    return given.folded(given.gamma / (given.var + given.eps))


def bias_not_scaled(given: Given) -> tuple[Array, Array]:
    weight, bias = given.folded()
    return weight, bias + given.bias * (1 - given.scale)


def next_group(given: Given) -> tuple[Array, Array]:
    weight, bias = given.folded()
    return np.roll(weight, len(bias) // given.groups, axis=0), bias


def scale_of_next_group(given: Given) -> tuple[Array, Array]:
    shifted = np.roll(given.scale, len(given.bias) // given.groups)
    return per_output(given.weight, shifted), given.folded()[1]


def scaled_along_inputs(given: Given) -> tuple[Array, Array]:
    inputs = given.scale[: given.weight.shape[1]].reshape(1, -1, *[1] * (given.weight.ndim - 2))
    return given.weight * inputs, given.folded()[1]


def shifted_by_a_pixel(given: Given) -> tuple[Array, Array]:
    weight, bias = given.folded()
    return np.roll(weight, 1, axis=-1), bias


def rounded_to_float32(given: Given) -> tuple[Array, Array]:
    weight, bias = given.folded()
    return weight.astype(np.float32).astype(np.float64), bias


MUTANTS: dict[str, Mutant] = {
    one.__name__: one
    for one in (
        swapped_channels,
        swapped_scales,
        one_sign,
        no_eps,
        eps_in_float32,
        variance_for_deviation,
        bias_not_scaled,
        next_group,
        scale_of_next_group,
        scaled_along_inputs,
        shifted_by_a_pixel,
        rounded_to_float32,
    )
}
