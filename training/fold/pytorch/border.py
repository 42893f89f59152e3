"""Convolutions that take a norm before zero padding: the padding must stay unshifted, so the border gets a correction.

Used with `fold(..., padding="exact")`. The correction is a small convolution of one channel of ones, so it
is exact for every size, stride, dilation and number of groups.
"""

from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class _Border(nn.Module):
    """Adds to a convolution what its folded shift gives where the kernel lies inside; see `with_border`."""

    border_kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x (N, C, *size) plus the share of the shift, (1, out, *size)."""
        out: Tensor = super().forward(x)
        return out + border_map(self, x)


def border_map(conv: Any, x: Tensor) -> Tensor:
    """Return what the shift contributes at each place, (1, out, *size), from one channel of ones."""
    convolve = _CONVOLUTIONS[conv.border_kernel.ndim - 2]
    return convolve(_ones(conv, x), conv.border_kernel, None, conv.stride, conv.padding, conv.dilation)


def _ones(conv: Any, x: Tensor) -> Tensor:
    spatial = conv.border_kernel.ndim - 2
    return x.new_ones((1,) * (x.ndim - spatial) + x.shape[-spatial:])  # unbatched values have one axis less


class _TransposedBorder(nn.Module):
    """The same for a transposed convolution, whose outputs do not all see the same part of the kernel."""

    border_kernel: Tensor

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the transposed convolution of x (N, C, *size) plus the share of the shift, (1, out, *size)."""
        conv: Any = self
        out: Tensor = super().forward(x, output_size)
        spatial = conv.border_kernel.ndim - 2
        sizes = (output_size, conv.stride, conv.padding, conv.kernel_size, spatial, conv.dilation)
        added = conv._output_padding(x, *sizes)
        convolve = _TRANSPOSED[spatial]
        ones = _ones(conv, x)
        return out + convolve(ones, conv.border_kernel, None, conv.stride, conv.padding, added, 1, conv.dilation)


class Conv1dWithBorder(_Border, nn.Conv1d):
    """A Conv1d with the correction; same parameters and names, plus the buffer border_kernel."""


class Conv2dWithBorder(_Border, nn.Conv2d):
    """A Conv2d with the correction; same parameters and names, plus the buffer border_kernel."""


class Conv3dWithBorder(_Border, nn.Conv3d):
    """A Conv3d with the correction; same parameters and names, plus the buffer border_kernel."""


class ConvTranspose1dWithBorder(_TransposedBorder, nn.ConvTranspose1d):
    """A ConvTranspose1d with the correction; same parameters and names, plus the buffer border_kernel."""


class ConvTranspose2dWithBorder(_TransposedBorder, nn.ConvTranspose2d):
    """A ConvTranspose2d with the correction; same parameters and names, plus the buffer border_kernel."""


class ConvTranspose3dWithBorder(_TransposedBorder, nn.ConvTranspose3d):
    """A ConvTranspose3d with the correction; same parameters and names, plus the buffer border_kernel."""


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: Conv1dWithBorder,
    nn.Conv2d: Conv2dWithBorder,
    nn.Conv3d: Conv3dWithBorder,
    nn.ConvTranspose1d: ConvTranspose1dWithBorder,
    nn.ConvTranspose2d: ConvTranspose2dWithBorder,
    nn.ConvTranspose3d: ConvTranspose3dWithBorder,
}


def takes_border(conv: nn.Module) -> bool:
    """True for exactly PyTorch's convolutions; the forward of a subclass is not known."""
    return type(conv) in _CLASSES


def with_border(conv: nn.Module, kernel: npt.NDArray[Any]) -> nn.Module:
    """Return `conv` turned into its class with a border correction, in place.

    Args:
        conv: exactly one of PyTorch's convolutions, transposed or not.
        kernel: (out, 1, *kernel), or (1, out, *kernel) transposed, already rounded.

    """
    weight = conv.weight
    assert isinstance(weight, Tensor)
    conv.__class__ = _CLASSES[type(conv)]
    conv.register_buffer("border_kernel", torch.from_numpy(kernel).to(weight))
    return conv
