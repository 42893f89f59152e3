"""Norms that see whole batches while each rank holds a share of the rows: sums over the batch are sums over the ranks.

Between the training loop and the network's own layers, which it changes in nothing but how they are called. Statistics
of each rank's rows alone would make another network: two epochs on 3 ranks ended 1.44 relative away.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .batchnorm import BatchMoments, BatchNorm, BatchNormLayer, norm_tensors, normalised_by_batch
from .ranks import Ranks


@contextmanager
def shared_norms(model: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Let every norm of `model`, PyTorch's or by hand, normalise by the whole batch of all ranks inside the block.

    Parameters, buffers and evaluation mode are the layers' own. Every rank has to run the same layers in the same
    order; its share of the rows may be empty.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNormLayer)] if ranks.world_size > 1 else []
    for norm in norms:
        norm.forward = _shared(norm, ranks)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _shared(norm: BatchNormLayer, ranks: Ranks) -> Callable[[Tensor], Tensor]:
    own = norm.forward
    # PyTorch's own shared layer takes the same tensors, and takes them on a GPU alone.
    synchronised: nn.Module | None = None
    if not isinstance(norm, BatchNorm):
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]

    def forward(x: Tensor) -> Tensor:
        if not norm.training:
            return own(x)
        if synchronised is not None and x.is_cuda:
            shared: Tensor = synchronised.train()(x)
            return shared
        return _normalised(norm, x, ranks)

    return forward


def _normalised(norm: BatchNormLayer, x: Tensor, ranks: Ranks) -> Tensor:
    tensors, counter = norm_tensors(norm), norm.num_batches_tracked
    momentum: float | Tensor | None = norm.momentum
    if momentum is None:  # the cumulative average
        momentum = 0.0 if counter is None else 1.0 / (counter.double() + 1.0)
    y = normalised_by_batch(
        x,
        lambda values: shared_moments(values, ranks),
        gamma=tensors["gamma"],
        beta=tensors["beta"],
        moving_mean=tensors["mean"],
        moving_var=tensors["variance"],
        eps=norm.eps,
        momentum=momentum,
        unbiased=norm.unbiased if isinstance(norm, BatchNorm) else True,
        moving_gap=norm.moving_gap if isinstance(norm, BatchNorm) else None,
    )
    if counter is not None:
        counter.add_(1)
    return y


def shared_moments(values: Tensor, ranks: Ranks) -> BatchMoments:
    """Return the moments of every rank's `values` (N, C, positions) together, `centred` those of this rank alone.

    In two passes, with gradients through both sums.
    """
    positions = values.shape[2]
    rows = values.new_full((1,), len(values))  # exact in float32 up to 16 million
    total = ranks.summed(torch.cat([values.sum(2).sum(0), rows]))
    count = total[-1].detach() * positions
    mean = total[:-1] / count
    centred = values - mean.view(1, -1, 1).expand(len(values), -1, 1)
    return BatchMoments(mean, centred, ranks.summed(centred.square().sum(2).sum(0)) / count, count)
