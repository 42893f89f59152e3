"""Float64 forms of convolutions and pools, which move a window over their input.

Used by `kernels` only. They call PyTorch's double kernels, which share no code with the fold. What does not know an
attribute returns None.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..tiled import convolve
from .protos import Values


def conv(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    """Return a convolution of one to three axes."""
    x, weight, bias = _operands(inputs)
    kernel = _Window(fields, weight.shape[2:])
    if kernel.pads is None or x.ndim - 2 not in (1, 2, 3):
        return None
    function = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    begins, ends = kernel.pads
    x = x if begins == ends else kernel.pad(x, 0.0)

    def convolution(part: Tensor, padding: Any) -> Any:
        return function(part, weight, bias, kernel.strides, padding, kernel.dilations, fields.get("group", 1))

    sides = begins if begins == ends else [0] * len(kernel.strides)
    result = convolve(convolution, x, weight, kernel.strides, sides, kernel.dilations)
    return np.asarray(result.numpy())


def conv_transpose(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    """Return a transposed convolution of one to three axes, cut as `auto_pad` and `output_shape` say."""
    x, weight, bias = _operands(inputs)
    kernel = _Window(fields, weight.shape[2:])
    if x.ndim - 2 not in (1, 2, 3):
        return None
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[x.ndim - 3]
    extra = fields.get("output_padding", [0] * (x.ndim - 2))
    pads = _cut_from_transposed(fields, kernel, x.shape[2:], extra)
    if pads is None:
        return None
    begins, ends = pads
    if any(extra) and any(e >= s and e >= d for e, s, d in zip(extra, kernel.strides, kernel.dilations, strict=True)):
        return None
    full = function(x, weight, bias, kernel.strides, 0, extra, fields.get("group", 1), kernel.dilations)
    cut = tuple(slice(b, size - e) for b, e, size in zip(begins, ends, full.shape[2:], strict=True))
    return np.asarray(full[(slice(None), slice(None), *cut)].numpy())


def _cut_from_transposed(
    fields: dict[str, Any], kernel: "_Window", sizes: Sequence[int], extra: Sequence[int]
) -> tuple[list[int], list[int]] | None:
    """Return what is cut from begins and ends of the whole result of a transposed convolution, None where unknown.

    Source: ONNX, operator ConvTranspose: with a size of the output, or as many strides as the input has elements.
    """
    mode = fields.get("auto_pad", b"NOTSET")
    wanted = fields.get("output_shape") or [n * stride for n, stride in zip(sizes, kernel.strides, strict=True)]
    if "output_shape" not in fields and mode not in (b"SAME_UPPER", b"SAME_LOWER"):
        return kernel.pads
    begins, ends = list[int](), list[int]()
    parts = zip(sizes, wanted[-len(sizes) :], kernel.sizes, kernel.strides, kernel.dilations, extra, strict=True)
    for n, size, width, stride, dilation, more in parts:
        total = stride * (n - 1) + more + (width - 1) * dilation + 1 - size
        if total < 0:
            return None
        begins.append(total // 2 if mode == b"SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    return begins, ends


def max_pool(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    """Return the largest value of each window."""
    (x,) = _tensors(inputs)
    kernel = _Window(fields, fields["kernel_shape"])
    if kernel.pads is None or fields.get("storage_order", 0) or x.ndim not in (3, 4, 5):
        return None
    if fields.get("ceil_mode", 0) and not kernel.fits(x.shape[2:]):
        return None
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.ndim - 3]
    padded = kernel.pad(x, -torch.inf)
    return np.asarray(function(padded, kernel.sizes, kernel.strides, 0, kernel.dilations).numpy())


def average_pool(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    """Return the mean of each window, without the padding unless `count_include_pad` says so."""
    (x,) = _tensors(inputs)
    kernel = _Window(fields, fields["kernel_shape"])
    if kernel.pads is None or set(kernel.dilations) != {1} or x.ndim not in (3, 4, 5):
        return None
    if fields.get("ceil_mode", 0) and not kernel.fits(x.shape[2:]):
        return None
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
    summed = function(kernel.pad(x, 0.0), kernel.sizes, kernel.strides)
    if fields.get("count_include_pad", 0):
        return np.asarray(summed.numpy())
    inside = function(kernel.pad(torch.ones_like(x), 0.0), kernel.sizes, kernel.strides)
    return np.asarray((summed / inside).numpy())


class _Window:
    """Kernel, strides, dilations and pads of a convolution or pool, as PyTorch wants them."""

    def __init__(self, fields: dict[str, Any], sizes: Sequence[int]):
        rank = len(sizes)
        self.sizes = [int(size) for size in sizes]
        self.strides = [int(s) for s in fields.get("strides", [1] * rank)]
        self.dilations = [int(d) for d in fields.get("dilations", [1] * rank)]
        pads = [int(p) for p in fields.get("pads", [0] * 2 * rank)]
        known = fields.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID") and min(pads, default=0) >= 0
        self.pads = (pads[:rank], pads[rank:]) if known else None

    def fits(self, sides: Sequence[int]) -> bool:
        """Return whether windows cover the whole input, so that a last partial one, which `ceil_mode` adds, is none."""
        assert self.pads is not None
        parts = zip(sides, *self.pads, self.sizes, self.strides, self.dilations, strict=True)
        return all((n + a + b - (size - 1) * d - 1) % stride == 0 for n, a, b, size, stride, d in parts)

    def pad(self, x: Tensor, value: float) -> Tensor:
        """Return `x` with `value` around its last axes."""
        assert self.pads is not None
        if not any(map(any, self.pads)):
            return x
        both = [side for begin, end in reversed(list(zip(*self.pads, strict=True))) for side in (begin, end)]
        return F.pad(x, both, value=value)


def _tensors(inputs: Sequence[Values | None]) -> list[Tensor]:
    return [torch.from_numpy(np.require(value, requirements=["C", "W"])) for value in inputs if value is not None]


def _operands(inputs: Sequence[Values | None]) -> tuple[Tensor, Tensor, Tensor | None]:
    tensors = _tensors(inputs)
    return tensors[0], tensors[1], tensors[2] if len(tensors) > 2 else None
