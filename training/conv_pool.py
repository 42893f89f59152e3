"""A convolution whose output is pooled in 2×2 windows, in two forms that a CPU computes fast.

`fused` chooses one for each of its convolutions and puts the norm and the sigmoid between. Both hold a channel's
positions in one axis, in an order of their own. They know no autograd: every gradient has a method of its own.
"""

import functools
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 2  # pooling windows of 2×2: as many positions of a convolution's output lie in one

_conv_backward = torch.ops.aten.convolution_backward


class ConvPool(Protocol):
    """Convolution of `x` (N, C, H, W) with a weight (C_out, C, kH, kW), and average pooling of what was made of it."""

    def convolve(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return the convolution, (N, C_out, positions)."""

    def pool(self, active: Tensor) -> Tensor:
        """Return the mean of each window, (N, C_out, H_out / 2, W_out / 2), of (N, C_out, positions)."""

    def spread(self, grad: Tensor) -> Tensor:
        """Return the gradient of `active` for that of the pooled values, or a view that broadcasts to it.

        It has as many axes as `in_windows` gives.
        """

    def in_windows(self, values: Tensor) -> Tensor:
        """Return (N, C_out, positions) in the shape that `spread` broadcasts to."""

    def grad_of_input(self, grad: Tensor, x: Tensor) -> Tensor:
        """Return the gradient of `x` for that of the convolution, (N, C_out, positions)."""

    def grad_of_weight(self, grad: Tensor, x: Tensor) -> Tensor:
        """Return the gradient of the weight for that of the convolution, (N, C_out, positions)."""


def conv_pool(weight: Tensor, height: int, width: int) -> ConvPool:
    """Return the faster one for `weight` (C_out, C, kH, kW) and an output of `height` × `width`, both even."""
    return WindowConvPool(weight, height, width) if weight.shape[1] == 1 else PlaneConvPool(weight, height, width)


class WindowConvPool:
    """The 2×2 positions of a pooling window become channels of a convolution of stride 2.

    Its kernel (6×6 for 5×5) holds the original at four offsets. The products by zero cost less than the vector lanes
    that 6 channels leave empty, and a window's four values lie in planes side by side: (N, C_out, 4, windows).
    """

    def __init__(self, weight: Tensor, height: int, width: int) -> None:
        self.kernel = to_blocks(weight)
        self.size = height // BLOCK, width // BLOCK

    def convolve(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return the four outputs of each window as four planes."""
        values = torch.conv2d(x, self.kernel, bias.repeat_interleave(BLOCK**2), BLOCK)
        return values.view(len(x), len(bias), -1)

    def pool(self, active: Tensor) -> Tensor:
        """Return the sum of four planes over 4."""
        windows = self.in_windows(active)
        total = windows[:, :, 0] + windows[:, :, 1]
        total.add_(windows[:, :, 2]).add_(windows[:, :, 3]).div_(BLOCK**2)
        return total.view(*active.shape[:2], *self.size)

    def spread(self, grad: Tensor) -> Tensor:
        """Return a fourth of `grad` for each of the four planes, as a view."""
        return (grad / BLOCK**2).flatten(2).unsqueeze(2).expand(-1, -1, BLOCK**2, -1)

    def in_windows(self, values: Tensor) -> Tensor:
        """Return (N, C_out, 4, windows)."""
        return values.view(*values.shape[:2], BLOCK**2, -1)

    def grad_of_input(self, grad: Tensor, x: Tensor) -> Tensor:
        """Return oneDNN's own gradient at stride 2; images need none."""
        of_input: Tensor = _conv_backward(self._planes(grad), x, self.kernel, *_plain(BLOCK), [True, False, False])[0]
        return of_input

    def grad_of_weight(self, grad: Tensor, x: Tensor) -> Tensor:
        """Return the sum over the four offsets at which the kernel holds the weight."""
        blocks: Tensor = _conv_backward(self._planes(grad), x, self.kernel, *_plain(BLOCK), [False, True, False])[1]
        return from_blocks(blocks)

    def _planes(self, grad: Tensor) -> Tensor:
        return grad.view(len(grad), -1, *self.size)


class PlaneConvPool:
    """One plane for each channel, as PyTorch has them; the windows of a small plane are pooled by one product."""

    def __init__(self, weight: Tensor, height: int, width: int) -> None:
        self.weight = weight
        self.size = height, width
        self.windows = windows_matrix(height, width, weight.dtype)

    def convolve(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return the planes one after the other."""
        return torch.conv2d(x, self.weight, bias).flatten(2)

    def pool(self, active: Tensor) -> Tensor:
        """Return a product with `windows_matrix`."""
        height, width = self.size
        pooled = active.view(-1, height * width) @ self.windows.T
        return pooled.view(*active.shape[:2], height // BLOCK, width // BLOCK)

    def spread(self, grad: Tensor) -> Tensor:
        """Return a product with `windows_matrix` turned round."""
        return (grad.reshape(-1, len(self.windows)) @ self.windows).view(*grad.shape[:2], -1)

    def in_windows(self, values: Tensor) -> Tensor:
        """Return `values` as they are."""
        return values

    def grad_of_input(self, grad: Tensor, x: Tensor) -> Tensor:
        """Return a convolution of the padded `grad` with the kernel turned round, two rows of its output at a time.

        The two rows become channels, as in `to_blocks`: 12 fill vector lanes that 6 leave empty.
        """
        planes = grad.view(len(grad), -1, *self.size)
        if x.shape[2] % BLOCK:
            plain: Tensor = _conv_backward(planes, x, self.weight, *_plain(1), [True, False, False])[0]
            return plain
        out, channels, height, width = self.weight.shape
        blocks = self.weight.new_zeros(channels, BLOCK, out, height + 1, width)
        for row in range(BLOCK):
            blocks[:, row, :, row : row + height] = self.weight.flip(2, 3).transpose(0, 1)
        rows = torch.conv2d(planes, blocks.view(-1, out, height + 1, width), None, (BLOCK, 1), (height - 1, width - 1))
        return rows.view(len(x), channels, BLOCK, -1, x.shape[3]).transpose(2, 3).reshape(x.shape)

    def grad_of_weight(self, grad: Tensor, x: Tensor) -> Tensor:
        """Return what oneDNN sums with channels last: twice as fast, copies included."""
        planes = grad.view(len(grad), -1, *self.size)
        planes, x, kernel = (each.contiguous(memory_format=torch.channels_last) for each in (planes, x, self.weight))
        of_weight: Tensor = _conv_backward(planes, x, kernel, *_plain(1), [False, True, False])[1]
        return of_weight.contiguous()


def to_blocks(weight: Tensor) -> Tensor:
    """Return the kernel (4·C_out, C, kH + 1, kW + 1) that gives, at stride 2, the four outputs of each 2×2 window.

    Channel 4·c + 2·i + j holds output channel c at row i, column j of the window.
    """
    out, channels, height, width = weight.shape
    blocks = weight.new_zeros(out, BLOCK, BLOCK, channels, height + 1, width + 1)
    for i in range(BLOCK):
        for j in range(BLOCK):
            blocks[:, i, j, :, i : i + height, j : j + width] = weight
    return blocks.view(-1, channels, height + 1, width + 1)


def from_blocks(grad: Tensor) -> Tensor:
    """Return the gradient of a weight whose `to_blocks` has the gradient `grad`: the transpose of that map."""
    _, channels, height, width = grad.shape
    blocks = grad.view(-1, BLOCK, BLOCK, channels, height, width)
    offsets = [(i, j) for i in range(BLOCK) for j in range(BLOCK)]
    parts = [blocks[:, i, j, :, i : i + height - 1, j : j + width - 1] for i, j in offsets]
    return torch.stack(parts).sum(0)


@functools.cache
def windows_matrix(height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return the matrix (windows, positions) that takes a plane to the means of its 2×2 windows.

    On planes as small as 8×8 a product with it is faster than strided sums, and its transpose ten times faster than a
    strided copy.
    """
    row, column = torch.arange(height).view(-1, 1) // BLOCK, torch.arange(width) // BLOCK
    window = (row * (width // BLOCK) + column).view(-1)  # of each position
    return F.one_hot(window).T.to(dtype) / BLOCK**2


def _plain(stride: int) -> tuple[Any, ...]:
    """Return the arguments of `convolution_backward`: no gradient of a bias, no padding, dilation or groups."""
    return None, [stride] * 2, [0, 0], [1, 1], False, [0, 0], 1
