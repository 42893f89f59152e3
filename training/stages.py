"""The convolutional stages of a network in a formulation that a CPU computes faster; the mathematics stays the same.

The training loop calls `faster(model)` where it would call `model`: convolution, batch norm, sigmoid and average
pooling become one step of autograd with few passes over memory. It holds no parameters and no state of its own;
evaluation, folding and everything after them see the model alone.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK = 2  # pooling windows of 2×2: as many positions of a convolution's output lie in one

_conv_backward = torch.ops.aten.convolution_backward
_norm_backward = torch.ops.aten.native_batch_norm_backward
_sigmoid_backward = torch.ops.aten.sigmoid_backward


def faster(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function that computes `model(x)` in training mode, gradients and running statistics included.

    Each run of Conv2d, BatchNorm2d, Sigmoid and AvgPool2d(2) in a Sequential becomes one `Stage`; every other layer is
    called as it is. A model with nothing to gain is returned itself.

    Args:
        model: on the CPU. Its parameters and buffers are the ones that are read and updated.
    """
    if type(model) is not nn.Sequential or _is_watched(model):
        return model
    steps: list[Callable[[Tensor], Tensor]] = []
    layers = list(model)
    while layers:
        stage = _stage(layers[:4])
        steps.append(stage or layers[0])
        del layers[: 4 if stage else 1]
    return _chain(steps) if any(isinstance(step, Stage) for step in steps) else model


@dataclass(frozen=True, eq=False)
class Stage:
    """Average pooling of the sigmoid of the norm of a convolution, on the four modules' own parameters."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    layers: tuple[nn.Module, ...]  # all four, for images whose last row or column no window takes

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, C_out, H_out / 2, W_out / 2) for `x` (N, C, H, W); the running statistics step as in training."""
        norm = self.norm
        if any((size - kernel + 1) % BLOCK for size, kernel in zip(x.shape[2:], self.conv.kernel_size, strict=True)):
            return _chain(list(self.layers))(x)
        pooled: Tensor
        pooled, mean, variance = _StageFunction.apply(
            x, self.conv.weight, self.conv.bias, norm.weight, norm.bias, norm.eps
        )  # type: ignore[no-untyped-call]
        count = 4 * pooled.numel() // pooled.shape[1]
        _step_statistics(norm, mean, variance, count)
        return pooled


class _StageFunction(torch.autograd.Function):
    """Forward and backward of a stage.

    With one input channel the convolution is computed in blocks: the 2×2 positions of a pooling window become channels
    of a convolution of stride 2, whose kernel (6×6 for 5×5) holds the original at four offsets. The products by zero
    cost less than the vector lanes that 6 channels leave empty, and a window's four values lie side by side.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        is_blocked = x.shape[1] == 1
        kernel = to_blocks(weight) if is_blocked else weight
        stride = BLOCK if is_blocked else 1
        values = torch.conv2d(x, kernel, bias.repeat_interleave(BLOCK**2) if is_blocked else bias, stride)
        rows, height, width = len(values), values.shape[2], values.shape[3]
        flat = values.view(rows, len(weight), -1)  # (N, C_out, positions), in blocks or not
        mean, variance = _moments(flat)
        active = torch.native_batch_norm(flat, gamma, beta, mean, variance, False, 0.0, eps)[0].sigmoid_()
        pooled = (
            _pooled(active.view(rows, -1, BLOCK**2, height * width)) if is_blocked else _pooled_by_matrix(active, width)
        )
        pooled = pooled.view(rows, len(weight), *(size if is_blocked else size // BLOCK for size in (height, width)))
        ctx.save_for_backward(x, kernel, gamma, flat, mean, torch.rsqrt(variance + eps), active)
        ctx.stride, ctx.eps = stride, eps
        ctx.mark_non_differentiable(mean, variance)
        return pooled, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, kernel, gamma, flat, mean, inverse, active = ctx.saved_tensors
        is_blocked = ctx.stride == BLOCK
        height, width = _output_size(x, kernel, ctx.stride)
        if is_blocked:  # every value of a window has the window's gradient
            spread = (grad / BLOCK**2).view(len(x), -1, 1, height * width).expand(-1, -1, BLOCK**2, -1)
        else:
            spread = (grad.reshape(-1, grad.shape[2] * grad.shape[3]) @ _windows(height, width, grad.dtype)).view_as(
                active
            )
        inner = _sigmoid_backward(spread, active.view_as(spread)).view_as(flat)
        of_values, of_gamma, of_beta = _norm_backward(
            inner, flat, gamma, None, None, mean, inverse, True, ctx.eps, [True, True, True]
        )
        of_bias = of_values.sum((0, 2))
        of_values = of_values.view(len(x), len(kernel), height, width)
        of_x = _grad_of_input(of_values, x, kernel, ctx.stride) if ctx.needs_input_grad[0] else None
        of_kernel = _grad_of_kernel(of_values, x, kernel, ctx.stride)
        return of_x, from_blocks(of_kernel) if is_blocked else of_kernel, of_bias, of_gamma, of_beta, None


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


def _grad_of_input(grad: Tensor, x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Return the gradient of `x`: of a convolution at stride 1, one with the kernel turned round over a padded `grad`.

    Two rows of it at a time become channels, as in `to_blocks`: 12 fill vector lanes that 6 leave empty.
    """
    if stride != 1 or x.shape[2] % BLOCK:
        plain: Tensor = _conv_backward(grad, x, kernel, *_as_published(kernel, stride), [True, False, False])[0]
        return plain
    out, channels, height, width = kernel.shape
    blocks = kernel.new_zeros(channels, BLOCK, out, height + 1, width)
    for row in range(BLOCK):
        blocks[:, row, :, row : row + height] = kernel.flip(2, 3).transpose(0, 1)
    rows = torch.conv2d(grad, blocks.view(-1, out, height + 1, width), None, (BLOCK, 1), (height - 1, width - 1))
    return rows.view(len(x), channels, BLOCK, -1, x.shape[3]).transpose(2, 3).reshape(x.shape)


def _grad_of_kernel(grad: Tensor, x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Return the gradient of `kernel`.

    With several input channels it is computed with channels last, where oneDNN sums it twice as fast; with one channel
    the two layouts cannot be told apart, and nothing is gained.
    """
    if x.shape[1] > 1:
        grad, x, kernel = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (grad, x, kernel))
    found: Tensor = _conv_backward(grad, x, kernel, *_as_published(kernel, stride), [False, True, False])[1]
    return found.contiguous()


def _as_published(kernel: Tensor, stride: int) -> tuple[Any, ...]:
    """Return the arguments of `convolution_backward` for a plain convolution: no padding, dilation or groups."""
    return [len(kernel)], [stride] * 2, [0, 0], [1, 1], False, [0, 0], 1


def _output_size(x: Tensor, kernel: Tensor, stride: int) -> tuple[int, int]:
    height, width = ((x.shape[axis] - kernel.shape[axis]) // stride + 1 for axis in (2, 3))
    return height, width


def _moments(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (C,) of (N, C, positions), in two passes: E[x²] − E[x]² would cancel."""
    mean = flat.mean((0, 2))
    return mean, (flat - mean[:, None]).square_().mean((0, 2))


def _pooled(windows: Tensor) -> Tensor:
    """Return the mean over axis 2 of (N, C, 4, positions)."""
    total = windows[:, :, 0] + windows[:, :, 1]
    return total.add_(windows[:, :, 2]).add_(windows[:, :, 3]).div_(BLOCK**2)


def _pooled_by_matrix(active: Tensor, width: int) -> Tensor:
    """Return (N · C, windows) of (N, C, height · width)."""
    positions = active.shape[2]
    return active.view(-1, positions) @ _windows(positions // width, width, active.dtype).T


@functools.cache
def _windows(height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return the matrix (windows, positions) that takes a plane to the means of its 2×2 windows.

    On planes as small as 8×8 a product with it is faster than strided sums, and its transpose ten times faster than a
    strided copy.
    """
    row, column = torch.arange(height).view(-1, 1) // BLOCK, torch.arange(width) // BLOCK
    window = (row * (width // BLOCK) + column).view(-1)  # of each position
    return F.one_hot(window).T.to(dtype) / BLOCK**2


@torch.no_grad()
def _step_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Step the running statistics in place as `nn.BatchNorm2d` does, unbiased variance and counter included."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)


def _stage(layers: list[nn.Module]) -> Stage | None:
    """Return a stage for four layers that are one, as this module computes it."""
    match layers:
        case [nn.Conv2d() as conv, nn.BatchNorm2d() as norm, nn.Sigmoid(), nn.AvgPool2d() as pool]:
            kinds = [type(layer) for layer in layers] == [nn.Conv2d, nn.BatchNorm2d, nn.Sigmoid, nn.AvgPool2d]
            return Stage(conv, norm, tuple(layers)) if kinds and _is_plain(conv, norm, pool) else None
    return None


def _is_plain(conv: nn.Conv2d, norm: nn.BatchNorm2d, pool: nn.AvgPool2d) -> bool:
    simple = (conv.stride, conv.padding, conv.dilation, conv.groups) == ((1, 1), (0, 0), (1, 1), 1)
    tracked = norm.affine and norm.track_running_stats and norm.momentum is not None
    window = (pool.kernel_size, pool.stride, pool.padding) in ((2, 2, 0), ((2, 2), (2, 2), (0, 0)))
    return simple and conv.bias is not None and tracked and window


def _is_watched(model: nn.Module) -> bool:
    """True when a layer has hooks: they expect to be called, and to see every value between the layers."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for module in model.modules() for kind in hooks)


def _chain(steps: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return run
