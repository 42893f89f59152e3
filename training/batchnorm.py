"""Batch normalization written out: the function of the book and a module around it.

The networks take it for `--norm scratch`. It equals `nn.BatchNorm` in outputs, gradients and buffers, and `conversion`
turns the one into the other; it does not fold and knows no training loop.

Source: Ioffe and Szegedy 2015 (arXiv:1502.03167), algorithms 1 and 2.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import ConfigError

DEFAULT_MOMENTUM = 0.1  # weight of the new value; the book writes the same thing as decay 0.9
NUM_DIMS = (2, 3, 4)
BOOK_NAMES = ("gamma", "beta", "moving_mean", "moving_var")
HALF = (torch.bfloat16, torch.float16)
BOOK_MOMENTUM = 0.5  # above it, a weight of the new value is rather the book's weight of the old one


def batch_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    moving_mean: Tensor | None,
    moving_var: Tensor | None,
    *,
    training: bool,
    eps: float,
    momentum: float | Tensor,
    unbiased: bool = True,
    moving_gap: Tensor | None = None,
) -> Tensor:
    """Return `gamma * (x - mean) / sqrt(variance + eps) + beta`, statistics taken per feature or channel (axis 1).

    In training mean and (biased) variance are those of `x`, and the moving statistics step towards them in place; in
    evaluation they are the moving statistics. Which of the two is said by `training` alone, never by whether gradients
    are on. Without moving statistics (None) those of `x` are used in both modes.

    Args:
        x: (N, C), (N, C, L) or (N, C, H, W), floating point.
        gamma: scale (C,), or None for 1.
        beta: shift (C,), or None for 0.
        moving_mean: (C,), updated in place in training; None keeps no statistics.
        moving_var: (C,), likewise.
        training: whether to normalise with the statistics of `x`.
        eps: added to the variance, inside the root.
        momentum: weight of the new value in the moving statistics, 0 to 1; a tensor of one value stays on its device.
        unbiased: whether `moving_var` averages the variance with divisor n - 1 (PyTorch) or n (the book).
        moving_gap: (C,), averages unbiased minus biased variance, so that either can be had exactly from the other.

    Returns:
        Same shape and dtype as `x`.

    Raises:
        ConfigError: `x` has another number of axes, or one value per channel where its statistics are needed.
    """
    if x.ndim not in NUM_DIMS:
        raise ConfigError(f"batch norm of shape {tuple(x.shape)}: expected (N, C), (N, C, L) or (N, C, H, W)")
    if not training and moving_mean is not None and moving_var is not None:
        return _normalised_by(x, moving_mean, moving_var, gamma, beta, eps)
    if x.numel() == 0:
        return _of_nothing(x, gamma, beta)
    is_tracked = training and moving_mean is not None and moving_var is not None
    return normalised_by_batch(
        x,
        _batch_moments,
        gamma=gamma,
        beta=beta,
        moving_mean=moving_mean if is_tracked else None,
        moving_var=moving_var if is_tracked else None,
        eps=eps,
        momentum=momentum,
        unbiased=unbiased,
        moving_gap=moving_gap,
    )


@dataclass(frozen=True)
class BatchMoments:
    """What a norm needs of a batch (N, C, positions).

    Attributes:
        mean: (C,).
        centred: the values minus their mean, (N, C, positions).
        variance: (C,), biased.
        count: of the values of a channel; where ranks share a batch, of all ranks, in a tensor.
    """

    mean: Tensor
    centred: Tensor
    variance: Tensor
    count: int | Tensor


def normalised_by_batch(
    x: Tensor,
    moments: Callable[[Tensor], BatchMoments],
    *,
    gamma: Tensor | None,
    beta: Tensor | None,
    moving_mean: Tensor | None,
    moving_var: Tensor | None,
    eps: float,
    momentum: float | Tensor,
    unbiased: bool = True,
    moving_gap: Tensor | None = None,
) -> Tensor:
    """Return `x` normalised by the `moments` of its values, towards which moving statistics that are given step.

    The arguments are those of `batch_norm`; `moments` takes (N, C, positions), float32 or float64.
    """
    values = x[:, :, None] if x.ndim == 2 else x.flatten(2)  # (N, C, positions), N may be 0
    if x.dtype in HALF:
        values = values.float()  # sums of thousands of values need more than 8 or 11 bits
    batch = moments(values)
    if moving_mean is not None and moving_var is not None:
        _update(moving_mean, moving_var, moving_gap, batch, momentum, unbiased)
    scale = torch.rsqrt(batch.variance + eps)
    y = batch.centred * _per_row(scale if gamma is None else scale * gamma, values)
    return _as(x, y if beta is None else y + _per_row(beta, values)).view(x.shape)


def batch_norm_book(
    X: Tensor, gamma: Tensor, beta: Tensor, moving_mean: Tensor, moving_var: Tensor, eps: float, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `X` normalised, and the moving statistics, with the arguments and the meaning that the book gives them.

    Whether gradients are on decides the mode: with them the statistics are the batch's, biased, and the moving ones
    step towards them; under `torch.no_grad()` they are the moving ones. One value per channel is normalised to 0.

    Args:
        X: (N, C), (N, C, L) or (N, C, H, W).
        gamma: scale of C values, such as (1, C) or (1, C, 1, 1); likewise the next three.
        beta: shift.
        moving_mean: not changed; the new one is returned.
        moving_var: likewise.
        eps: added to the variance, inside the root.
        momentum: weight of the *old* moving statistics: 0.9 here is 0.1 in PyTorch's layers.

    Returns:
        The normalised input, and the new moving mean and variance in their own shapes.

    Source: Zhang et al., Dive into Deep Learning, section 8.5 (batch normalization).
    """
    if X.ndim not in NUM_DIMS:
        raise ConfigError(f"batch norm of shape {tuple(X.shape)}: expected (N, C), (N, C, L) or (N, C, H, W)")
    if torch.is_grad_enabled():
        axes = [axis for axis in range(X.ndim) if axis != 1]
        variance, mean = torch.var_mean(X, axes, correction=0)
        moving_mean = momentum * moving_mean + (1.0 - momentum) * mean.detach().view(moving_mean.shape)
        moving_var = momentum * moving_var + (1.0 - momentum) * variance.detach().view(moving_var.shape)
    else:
        mean, variance = moving_mean.view(-1), moving_var.view(-1)
    return _normalised_by(X, mean, variance, gamma.view(-1), beta.view(-1), eps), moving_mean, moving_var


class BatchNorm(nn.Module):
    """Batch normalization over axis 1 with its parameters and moving statistics; `nn.BatchNorm1d/2d` by hand.

    Args:
        num_features: C.
        num_dims: axes of the input: 2 for (N, C), 3 for (N, C, L), 4 for (N, C, H, W).
        eps: added to the variance, inside the root.
        momentum: weight of the *new* value, PyTorch's convention; 0.1 when neither it nor `decay` is given. None takes
            the cumulative average: value k weighs 1/k. That is the Kalman filter x ← x + k·(z − x) with gain
            k = e_e / (e_e + e_m) for a constant quantity measured with constant error and nothing known at first.
        decay: weight of the *old* value, the book's convention (0.9); not together with `momentum`.
        affine: whether gamma and beta exist and are learned; they start at 1 and 0.
        track_running_stats: whether moving statistics exist; they start at mean 0 and variance 1. Without them every
            batch is normalised by its own, in evaluation too.
        unbiased: divisor n - 1 (PyTorch) or n (the book) in the moving variance; batches are normalised with n always.

    Raises:
        ConfigError: both conventions of averaging are given, or a value is out of range.
    """

    gamma: nn.Parameter | None
    beta: nn.Parameter | None
    moving_mean: Tensor | None
    moving_var: Tensor | None
    moving_gap: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        num_dims: int,
        *,
        eps: float = 1e-5,
        momentum: float | str | None = "default",
        decay: float | None = None,
        affine: bool = True,
        track_running_stats: bool = True,
        unbiased: bool = True,
    ) -> None:
        super().__init__()
        if num_dims not in NUM_DIMS:
            raise ConfigError(f"num_dims {num_dims}: expected 2 for (N, C), 3 for (N, C, L) or 4 for (N, C, H, W)")
        if num_features < 1:
            raise ConfigError(f"num_features {num_features}: expected at least 1")
        self.num_features = num_features
        self.num_dims = num_dims
        self.eps = eps
        self.momentum = _momentum_from(momentum, decay)
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.unbiased = unbiased
        self.register_parameter("gamma", nn.Parameter(torch.ones(num_features)) if affine else None)
        self.register_parameter("beta", nn.Parameter(torch.zeros(num_features)) if affine else None)
        tracked = track_running_stats
        self.register_buffer("moving_mean", torch.zeros(num_features) if tracked else None)
        self.register_buffer("moving_var", torch.ones(num_features) if tracked else None)
        self.register_buffer("moving_gap", torch.zeros(num_features) if tracked and not unbiased else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long) if tracked else None)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` normalised; in training mode the moving statistics step towards those of `x`.

        Raises:
            ConfigError: `x` is not (N, C, ...) with `num_dims` axes, or has one value per channel in training.
        """
        if x.ndim != self.num_dims or x.shape[1] != self.num_features:
            raise ConfigError(
                f"input of shape {tuple(x.shape)}: expected {self.num_dims} axes with {self.num_features} features "
                "in the second"
            )
        y = batch_norm(
            x,
            self.gamma,
            self.beta,
            self.moving_mean,
            self.moving_var,
            training=self.training,
            eps=self.eps,
            momentum=self._gain(),
            unbiased=self.unbiased,
            moving_gap=self.moving_gap,
        )
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return y

    def _gain(self) -> float | Tensor:
        """Return the weight of the new value; the cumulative one is 1/k for batch k and stays on the device."""
        if self.momentum is not None:
            return self.momentum
        return 0.0 if self.num_batches_tracked is None else 1.0 / (self.num_batches_tracked.double() + 1.0)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load a state dict of this layer, or of the book's: (1, C) or (1, C, 1, 1), without the two counters.

        A moving variance of the book is biased and is taken as it is.
        """
        own = {name: getattr(self, name) for name in BOOK_NAMES}
        for name, tensor in own.items():
            given = state_dict.get(prefix + name)
            if tensor is not None and given is not None and given.numel() == tensor.numel() and given.ndim in NUM_DIMS:
                state_dict[prefix + name] = given.reshape(tensor.shape)
        for name in ("moving_gap", "num_batches_tracked"):
            buffer = getattr(self, name)
            if buffer is not None and prefix + "moving_mean" in state_dict:
                state_dict.setdefault(prefix + name, torch.zeros_like(buffer))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """Return what `print(module)` shows between the brackets."""
        return f"{self.num_features}, num_dims={self.num_dims}, eps={self.eps}, momentum={self.momentum}"


BatchNormLayer = _BatchNorm | BatchNorm  # PyTorch's or the one by hand


def norm_tensors(norm: BatchNormLayer) -> dict[str, Tensor | None]:
    """Return `gamma`, `beta`, `mean` and `variance` of either kind: the layer's own tensors, each (C,) or None."""
    if isinstance(norm, BatchNorm):
        tensors = (norm.gamma, norm.beta, norm.moving_mean, norm.moving_var)
    else:
        tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return dict(zip(("gamma", "beta", "mean", "variance"), tensors, strict=True))


def _normalised_by(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> Tensor:
    """Return `x` normalised by given statistics: constants that broadcast over its own shape, as folding reads them."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    scale = torch.rsqrt(variance + eps)
    y = (x - mean.view(shape)) * (scale if gamma is None else scale * gamma).view(shape)
    return _as(x, y if beta is None else y + beta.view(shape))


def _as(x: Tensor, y: Tensor) -> Tensor:
    """Return `y` in the dtype of `x`; where it has it, the traced graph stays as it is."""
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _of_nothing(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """Return an empty `x` that gives gamma and beta gradients of 0, as PyTorch's layers do; no statistic moves."""
    y = x if gamma is None else x * gamma[0]
    return _as(x, y if beta is None else y + beta[0])


def _batch_moments(values: Tensor) -> BatchMoments:
    """Return the moments of (N, C, positions).

    In two passes: E[x²] − E[x]² would cancel where the mean is large.
    """
    rows, channels, positions = values.shape
    if rows * positions < 2:
        raise ConfigError(
            f"batch norm of {rows * positions} values in each of {channels} channels: one value per channel has "
            "variance 0; use batches of at least 2, or eval()"
        )
    mean = values.mean(2).mean(0)
    centred = values - _per_row(mean, values)
    return BatchMoments(mean, centred, centred.square().mean(2).mean(0), rows * positions)


def _per_row(channel: Tensor, values: Tensor) -> Tensor:
    """Return `channel` (C,) as (N, C, 1) beside `values` (N, C, positions).

    Sums over rows and positions at once are taken in one long float32 row. This shape makes autograd sum positions
    first and rows then, as the moments do: measured closer to float64 (by 3 to 8 times at 256×6×24×24) and faster.
    """
    return channel.view(1, -1, 1).expand(values.shape[0], -1, 1)


@torch.no_grad()
def _update(
    moving_mean: Tensor,
    moving_var: Tensor,
    moving_gap: Tensor | None,
    batch: BatchMoments,
    momentum: float | Tensor,
    unbiased: bool,
) -> None:
    """Step the moving statistics towards a batch's in place, so that captured graphs and state dicts see the step."""
    # A number stays a number: as a tensor it would be copied to the device, which a graph being captured refuses.
    gain = momentum.to(moving_mean) if isinstance(momentum, Tensor) else float(momentum)
    mean, variance = batch.mean.to(moving_mean.dtype), batch.variance.to(moving_var.dtype)
    gap = variance / (batch.count - 1)  # unbiased minus biased variance: v·n/(n−1) − v
    moving_mean.lerp_(mean, gain)
    moving_var.lerp_(variance + gap if unbiased else variance, gain)
    if moving_gap is not None:
        moving_gap.lerp_(gap, gain)


def _momentum_from(momentum: float | str | None, decay: float | None) -> float | None:
    if momentum != "default" and decay is not None:
        raise ConfigError("momentum weighs the new value and decay the old one: give one of them, not both")
    if decay is not None:
        momentum = 1.0 - decay
    if momentum == "default":
        return DEFAULT_MOMENTUM
    if momentum is None or (isinstance(momentum, int | float) and 0.0 <= momentum <= 1.0):
        if decay is None and momentum is not None and BOOK_MOMENTUM < momentum < 1.0:
            warnings.warn(
                f"momentum={momentum} weighs the new value, as in PyTorch; the book's momentum {momentum} weighs the "
                f"old one: write decay={momentum} for it",
                UserWarning,
                stacklevel=3,
            )
        return momentum
    given = f"momentum {momentum!r}" if decay is None else f"decay {decay!r}"
    raise ConfigError(f"{given}: expected a number from 0 to 1, or momentum=None for the cumulative average")
