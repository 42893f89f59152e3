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


class _Border(nn.Module):
    """Adds to a convolution what its folded shift gives where the kernel lies inside; see `with_border`."""

    border_kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x (N, C, *size) plus the share of the shift, (1, out, *size)."""
        out: Tensor = super().forward(x)
        return out + border_map(self, x)


def border_map(conv: Any, x: Tensor) -> Tensor:
    """Return what the shift contributes at each place, (1, out, *size), from one channel of ones."""
    spatial = conv.border_kernel.ndim - 2
    ones = x.new_ones((1,) * (x.ndim - spatial) + x.shape[-spatial:])  # unbatched values have one axis less
    return _CONVOLUTIONS[spatial](ones, conv.border_kernel, None, conv.stride, conv.padding, conv.dilation)


class Conv1dWithBorder(_Border, nn.Conv1d):
    """A Conv1d with the correction; same parameters and names, plus the buffer border_kernel."""


class Conv2dWithBorder(_Border, nn.Conv2d):
    """A Conv2d with the correction; same parameters and names, plus the buffer border_kernel."""


class Conv3dWithBorder(_Border, nn.Conv3d):
    """A Conv3d with the correction; same parameters and names, plus the buffer border_kernel."""


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: Conv1dWithBorder,
    nn.Conv2d: Conv2dWithBorder,
    nn.Conv3d: Conv3dWithBorder,
}


def takes_border(conv: nn.Module) -> bool:
    """True for exactly PyTorch's convolutions; the forward of a subclass is not known."""
    return type(conv) in _CLASSES


def with_border(conv: nn.Module, kernel: npt.NDArray[Any]) -> nn.Module:
    """Return `conv` turned into its class with a border correction, in place.

    Args:
        conv: exactly nn.Conv1d, nn.Conv2d or nn.Conv3d.
        kernel: (out, 1, *kernel), already rounded.

    """
    weight = conv.weight
    assert isinstance(weight, Tensor)
    conv.__class__ = _CLASSES[type(conv)]
    conv.register_buffer("border_kernel", torch.from_numpy(kernel).to(weight))
    return conv
