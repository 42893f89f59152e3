"""Exact conversion between the hand-written batch norm and PyTorch's, parameters and statistics alike.

A converted layer computes and continues to train as its original. Folding and export take PyTorch's layers, so a
network with hand-written norms goes through `to_torch_model` first.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .batchnorm import BatchNorm, BatchNormLayer, norm_tensors
from .errors import ConfigError

TORCH_NORMS: dict[int, type[_BatchNorm]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}


def to_torch(norm: BatchNorm) -> _BatchNorm:
    """Return the `nn.BatchNorm1d` or `2d` that computes and continues to train exactly as `norm` does; `norm` is kept.

    A biased moving variance becomes unbiased by the gap that the layer kept beside it, whatever the batch sizes were:
    the statistics are those that PyTorch's layer would have, and evaluation differs by Bessel's n/(n−1) alone.
    """
    twin = TORCH_NORMS[norm.num_dims](norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin.to(_reference_tensor(norm)).train(norm.training)
    with torch.no_grad():
        _copy_tensors(twin, norm)
        if twin.running_var is not None and norm.moving_gap is not None:
            twin.running_var.add_(norm.moving_gap)
    return twin


def from_torch(
    norm: _BatchNorm, *, num_dims: int | None = None, unbiased: bool = True, values_per_channel: int | None = None
) -> BatchNorm:
    """Return the hand-written layer that computes and continues to train exactly as `norm` does; `norm` is kept.

    Args:
        norm: `nn.BatchNorm1d` or `nn.BatchNorm2d`.
        num_dims: axes of the input where `norm` leaves it open (BatchNorm1d takes 2 or 3); 2 or 4 by default.
        unbiased: convention of the new layer's moving variance.
        values_per_channel: for `unbiased=False`: how many values each batch gave a channel (N·H·W), the same in all
            batches so far. PyTorch's layer does not keep it, and without it the conversion would be a guess.

    Raises:
        ConfigError: a kind of layer other than these, or the biased convention without what it needs.
    """
    dims = num_dims or (4 if isinstance(norm, nn.BatchNorm2d) else 2)
    if type(norm) is not TORCH_NORMS.get(dims):
        raise ConfigError(
            f"{type(norm).__name__} over {dims} axes: expected BatchNorm1d over 2 or 3, BatchNorm2d over 4"
        )
    twin = BatchNorm(
        norm.num_features,
        dims,
        eps=norm.eps,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
        unbiased=unbiased,
    )
    twin.momentum = norm.momentum
    twin.to(_reference_tensor(norm)).train(norm.training)
    with torch.no_grad():
        _copy_tensors(twin, norm)
        if twin.moving_gap is not None:
            _make_biased(twin, values_per_channel)
    return twin


def to_torch_model(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with every hand-written norm converted by `to_torch`; `model` is left as it was."""
    if isinstance(model, BatchNorm):
        return to_torch(model)
    twin = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm):
            twin.set_submodule(name, to_torch(module))
    return twin


def _make_biased(twin: BatchNorm, values_per_channel: int | None) -> None:
    """Turn an unbiased moving variance into the biased one: all of it but the initial 1 carries Bessel's n/(n−1)."""
    assert twin.moving_var is not None
    assert twin.moving_gap is not None
    assert twin.num_batches_tracked is not None
    batches = int(twin.num_batches_tracked)
    if batches == 0:
        return
    if values_per_channel is None or values_per_channel < 2:
        raise ConfigError(
            f"values_per_channel {values_per_channel}: to keep a biased variance, say how many values (at least 2) "
            "each batch gave a channel"
        )
    initial = 0.0 if twin.momentum is None else (1.0 - twin.momentum) ** batches  # what is left of the 1 at the start
    twin.moving_gap.copy_((twin.moving_var - initial) / values_per_channel)
    twin.moving_var.sub_(twin.moving_gap)


def _reference_tensor(norm: nn.Module) -> Tensor:
    """Return a floating tensor of `norm` for `.to()`: its dtype and device."""
    tensors = [tensor for tensor in (*norm.parameters(), *norm.buffers()) if tensor.is_floating_point()]
    return tensors[0] if tensors else torch.empty(0)


def _copy_tensors(target: BatchNormLayer, source: BatchNormLayer) -> None:
    pairs = [*zip(norm_tensors(target).values(), norm_tensors(source).values(), strict=True)]
    for into, value in (*pairs, (target.num_batches_tracked, source.num_batches_tracked)):
        if into is not None and value is not None:
            into.copy_(value)
