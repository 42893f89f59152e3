"""Convolutions a stretch of the map at a time.

Used by `float64` and by the ONNX kernels. PyTorch has no double convolution that works in place: it copies each input
once for every place of the kernel, for the whole batch, which is more than the rest of a proof takes together.
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from math import prod

import torch.nn.functional as F
from torch import Tensor

_LARGEST = 2**20  # numbers in the copies of one stretch: 8 MB

Convolution = Callable[[Tensor, Sequence[int]], Tensor]  # of an input with what it is padded by on each axis


def convolve(
    convolution: Convolution,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return what the convolution gives, computed in stretches of rows, or of maps, where its copies would be large.

    Args:
        convolution: computes it for an input and a padding; everything else of it is fixed.
        x: (N, C, ...), floats.
        weight: (C_out, C / groups, ...).
        stride: of each spatial axis, as the following.
        padding: with zeros, the same at both ends.
        dilation: of the kernel.
    """
    extent = dilation[0] * (weight.shape[2] - 1) + 1
    rows = (x.shape[2] + 2 * padding[0] - extent) // stride[0] + 1
    per_row = (
        weight.numel()
        // max(weight.shape[0], 1)
        * prod(side + 2 * pad for side, pad in zip(x.shape[3:], padding[1:], strict=True))
    )
    step = max(_LARGEST // max(per_row, 1), 1)
    if prod(weight.shape[2:]) == 1 or x.shape[0] * rows <= step:
        return convolution(x, padding)
    together = max(step // rows, 1)  # rows of the batch in one stretch, where whole maps fit
    stretches = [range(rows)[at : at + step] for at in range(0, rows, step)]
    result = x.new_zeros(0)
    for n in range(0, x.shape[0], together):
        for one in stretches:
            tile = _tile(convolution, x[n : n + together], one, stride[0], padding, extent)
            if not result.numel():
                result = tile.new_zeros((x.shape[0], tile.shape[1], rows, *tile.shape[3:]))
            result[n : n + together, :, one[0] : one[-1] + 1] = tile
    return result


def give_memory_back() -> None:
    """Return freed memory to the system where the C library keeps it, as glibc does with pieces below 32 MB."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def _tile(convolution: Convolution, x: Tensor, rows: range, stride: int, padding: Sequence[int], extent: int) -> Tensor:
    """Return these rows of the result, from the rows of the input that they read."""
    first, stop = rows[0] * stride - padding[0], rows[-1] * stride - padding[0] + extent
    read = x[:, :, max(first, 0) : min(stop, x.shape[2])]
    ends = [0, 0] * (x.ndim - 3) + [max(-first, 0), max(stop - x.shape[2], 0)]
    return convolution(F.pad(read, ends), [0, *padding[1:]])
