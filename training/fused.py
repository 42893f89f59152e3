"""The convolutional blocks of a network fused into operations that a CPU computes faster; the mathematics is unchanged.

The training loop calls `fused(model)` where it would call `model`: convolution, batch norm, sigmoid and average
pooling become one step of autograd with few passes over memory. It holds no parameters and no state of its own;
evaluation, folding and everything after them see the model alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .conv_pool import BLOCK, ConvPool, conv_pool
from .ranks import ALONE, Ranks
from .worker_threads import WorkerThreads

_norm_backward = torch.ops.aten.native_batch_norm_backward
_sigmoid_backward = torch.ops.aten.sigmoid_backward


def fused(model: nn.Module, threads: WorkerThreads | None = None, ranks: Ranks = ALONE) -> Callable[[Tensor], Tensor]:
    """Return a function that computes `model(x)` in training mode, gradients and running statistics included.

    Each sequence of Conv2d, BatchNorm2d, Sigmoid and AvgPool2d(2) becomes one `FusedBlock`; every other layer is called
    as it is. A model with nothing to gain is returned itself, and so is one with norms by hand: they are there to be
    seen at work.

    Args:
        model: on the CPU. Its parameters and buffers are the ones that are read and updated.
        threads: the threads that share out a batch; by default the calling one alone.
        ranks: the processes that share it out before; each has a row of it at least.
    """
    if type(model) is not nn.Sequential or _is_watched(model):
        return model
    threads = threads or WorkerThreads()
    steps: list[Callable[[Tensor], Tensor]] = []
    layers = list(model)
    while layers:
        block = _fused_block(layers[:4], threads, ranks)
        steps.append(block or layers[0])
        del layers[: 4 if block else 1]
    return _chain(steps) if any(isinstance(step, FusedBlock) for step in steps) else model


@dataclass(frozen=True, eq=False)
class FusedBlock:
    """Average pooling of the sigmoid of the norm of a convolution, on the four modules' own parameters."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    layers: tuple[nn.Module, ...]  # all four, for images whose last row or column no window takes
    threads: WorkerThreads
    ranks: Ranks

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, C_out, H_out / 2, W_out / 2) for `x` (N, C, H, W); the running statistics step as in training."""
        norm = self.norm
        if any((size - kernel + 1) % BLOCK for size, kernel in zip(x.shape[2:], self.conv.kernel_size, strict=True)):
            return _chain(list(self.layers))(x)
        pooled: Tensor
        pooled, mean, variance, count = _FusedFunction.apply(
            x, self.conv.weight, self.conv.bias, norm.weight, norm.bias, norm.eps, self.threads, self.ranks
        )  # type: ignore[no-untyped-call]
        _step_statistics(norm, mean, variance, count)
        return pooled


class _FusedFunction(torch.autograd.Function):
    """Forward and backward of a block, the rows of the batch shared out among the threads.

    The threads meet once on either way, where sums over the whole batch are known: its moments, and their gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        threads: WorkerThreads,
        ranks: Ranks,
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        height, width = (size - kernel + 1 for size, kernel in zip(x.shape[2:], weight.shape[2:], strict=True))
        form = conv_pool(weight, height, width)

        def convolve(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            values = form.convolve(part, bias)
            return values, *_moments(values)

        parts = x.chunk(threads.count)
        values, means, variances = zip(*threads.map(convolve, parts), strict=True)
        mean, variance = _joined(means, variances, [len(part) / len(x) for part in parts])
        mean, variance, rows = _of_all_ranks(mean, variance, len(x), ranks)

        def activate(values: Tensor) -> tuple[Tensor, Tensor]:
            active = torch.native_batch_norm(values, gamma, beta, mean, variance, False, 0.0, eps)[0].sigmoid_()
            return active, form.pool(active)

        actives, pooled = zip(*threads.map(activate, values), strict=True)
        ctx.save_for_backward(gamma, mean, variance, *parts, *values, *actives)
        ctx.form, ctx.eps, ctx.threads, ctx.ranks, ctx.count = form, eps, threads, ranks, rows * height * width
        ctx.mark_non_differentiable(mean, variance)
        return torch.cat(pooled), mean, variance, ctx.count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        form: ConvPool = ctx.form
        threads: WorkerThreads = ctx.threads
        gamma, mean, variance, *saved = ctx.saved_tensors
        count = len(saved) // 3
        parts, values, actives = saved[:count], saved[count : 2 * count], saved[2 * count :]

        def to_norm(part: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            grad, values, active = part
            inner = _sigmoid_backward(form.spread(grad), form.in_windows(active)).view_as(values)
            # In evaluation mode this gives the sums alone, over given moments.
            sums = _norm_backward(inner, values, gamma, mean, variance, None, None, False, ctx.eps, [False, True, True])
            return inner, *sums[1:]

        grads = grad.chunk(count)
        inners, of_gammas, of_betas = zip(
            *threads.map(to_norm, list(zip(grads, values, actives, strict=True))), strict=True
        )
        of_gamma, of_beta = sum(of_gammas), sum(of_betas)
        of_all = of_gamma, of_beta
        if ctx.ranks.world_size > 1:
            of_all = of_gamma.clone(), of_beta.clone()
            ctx.ranks.sum_in_place(of_all)
        scale, slope, shift = _norm_gradient(gamma, mean, variance, ctx.eps, *of_all, ctx.count)

        def to_convolution(part: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor | None, Tensor]:
            x, inner, values = part
            of_values = inner.mul_(scale).addcmul_(values, slope).add_(shift)
            of_x = form.grad_of_input(of_values, x) if ctx.needs_input_grad[0] else None
            return of_x, form.grad_of_weight(of_values, x)

        of_xs, of_weights = zip(
            *threads.map(to_convolution, list(zip(parts, inners, values, strict=True))), strict=True
        )
        of_x = torch.cat(of_xs) if ctx.needs_input_grad[0] else None
        # A norm takes away whatever is added to a channel: the bias has no gradient but what rounding leaves.
        return of_x, sum(of_weights), torch.zeros_like(gamma), of_gamma, of_beta, None, None, None


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (C,) of (N, C, positions), in two passes: E[x²] − E[x]² would cancel."""
    mean = values.mean((0, 2))
    return mean, (values - mean[:, None]).square_().mean((0, 2))


def _joined(means: Sequence[Tensor], variances: Sequence[Tensor], shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return mean and variance (C,) of parts put together, each `share` of the whole.

    Source: Chan, Golub and LeVeque 1983, Algorithms for computing the sample variance.
    """
    if len(means) == 1:
        return means[0], variances[0]
    weights = torch.tensor(shares, dtype=means[0].dtype).view(-1, 1)
    mean = (weights * torch.stack(list(means))).sum(0)
    between = (torch.stack(list(means)) - mean).square_()
    return mean, (weights * between.add_(torch.stack(list(variances)))).sum(0)


def _of_all_ranks(mean: Tensor, variance: Tensor, rows: int, ranks: Ranks) -> tuple[Tensor, Tensor, int]:
    """Return mean, variance and number of rows of every rank's rows together."""
    if ranks.world_size == 1:
        return mean, variance, rows
    channels = len(mean)
    parts = ranks.gathered(torch.cat([mean, variance, mean.new_full((1,), rows)]))
    counts = [int(part[-1]) for part in parts]
    shares = [count / sum(counts) for count in counts]
    mean, variance = _joined([part[:channels] for part in parts], [part[channels:-1] for part in parts], shares)
    return mean, variance, sum(counts)


def _norm_gradient(
    gamma: Tensor, mean: Tensor, variance: Tensor, eps: float, of_gamma: Tensor, of_beta: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scale, slope and shift (C, 1): a norm's input has the gradient scale · grad + slope · input + shift.

    That is gamma / σ · (grad − mean of grad − normalised · mean of grad · normalised), sorted by powers of the input.
    """
    inverse = torch.rsqrt(variance + eps)
    scale = gamma * inverse
    slope = -scale * inverse * of_gamma / count
    return scale[:, None], slope[:, None], (-scale * of_beta / count - slope * mean)[:, None]


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


def _fused_block(layers: list[nn.Module], threads: WorkerThreads, ranks: Ranks) -> FusedBlock | None:
    """Return a fused block for four layers that are one, as this module computes it."""
    match layers:
        case [nn.Conv2d() as conv, nn.BatchNorm2d() as norm, nn.Sigmoid(), nn.AvgPool2d() as pool]:
            kinds = [type(layer) for layer in layers] == [nn.Conv2d, nn.BatchNorm2d, nn.Sigmoid, nn.AvgPool2d]
            return (
                FusedBlock(conv, norm, tuple(layers), threads, ranks) if kinds and _is_plain(conv, norm, pool) else None
            )
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
