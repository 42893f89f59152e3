"""One layer and one norm, without a network around them: `fold_pair`.

A short way into `api.fold`, which reads, folds and proves the two as it would anywhere else; only the example input is
made here, from what the layer says of its own shape. Nothing else is known of the values between the two, so a layer
behind or before which the norm could run over another axis takes values of one rank only.
"""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from ..errors import FoldError
from .api import Folded, fold
from .failures import alone
from .pytorch.entrances import traced_way
from .pytorch.float64 import sharing_copy
from .pytorch.guards import guarded
from .pytorch.requirements import foldable, require_choice, require_foldable, require_values
from .pytorch.unmatched import is_norm
from .refusals import Refusal, RefusalCode

_OF_THE_BATCH = nn.GroupNorm | nn.LayerNorm | nn.RMSNorm
_OF_ONE_RANK = nn.BatchNorm2d | nn.BatchNorm3d | nn.modules.instancenorm._InstanceNorm  # or right for any rank
_LAYERS = nn.modules.conv._ConvNd | nn.Linear


@alone()
def fold_pair(layer: nn.Module, norm: nn.Module, *, padding: str = "refuse") -> nn.Module:
    """Return the one layer that computes `norm(layer(x))` in eval mode; both arguments are left as they were.

    The two are given in the order in which they run: `fold_pair(norm, layer)` returns `layer(norm(x))`.

    Args:
        layer: Conv1d to 3d, ConvTranspose1d to 3d or Linear, of any number of groups, with or without bias.
        norm: a norm with running statistics, or one that was registered with `register_norm`.
        padding: for a norm before a layer, as in `fold`: "exact" allows zero padding, at the cost of a correction.

    Returns:
        A layer of the same class; where `norm` does more than to normalise (a Sequential with an activation, a forward
        of its own), a module of both with the norm folded. Where the norm reads its channels from axis 1 whatever the
        rank (BatchNorm1d, SyncBatchNorm), it raises FoldError for values of another rank than (N, C) or (N, C, *size).

    Raises:
        FoldError: the pair cannot be folded exactly; as a rule with the `code`, `reason` and `remedy` of a report.
    """
    require_choice("padding", padding, ("refuse", "exact"))
    is_norm_first = isinstance(norm, _LAYERS)
    inner, other = (norm, layer) if is_norm_first else (layer, norm)
    _require_pair(inner, other, is_norm_first)
    given = nn.Sequential(layer, norm)
    given.training = False
    inputs = (_example(inner),)
    pair = foldable(given, inputs)
    _require_rank(pair, inputs)
    folded = _folded(pair, inputs, padding)
    for site in folded.report.refused:
        assert site.code is not None
        raise Refusal(site.code, site.reason, site.remedy)
    if not folded.report.folded:
        raise Refusal(RefusalCode.UNKNOWN_OP, f"{type(other).__name__} is no norm that is known")
    if folded.report.form != "module":
        return folded.model
    parts = list(folded.model.children())
    rest = parts.pop(0 if is_norm_first else 1)
    result = parts[0] if _is_nothing(rest) else folded.model
    return result if isinstance(other, _OF_ONE_RANK) else guarded(result, traced_way(result, inputs, (), ()))


def _folded(pair: nn.Module, inputs: tuple[Tensor, ...], padding: str) -> Folded:
    """Return the folded pair; a graph takes all sizes, where torch.export can free them."""
    folded = fold(pair, inputs, padding=padding, entrances="any")
    if folded.report.form == "module":
        return folded
    free = {axis: Dim.AUTO for axis in range(inputs[0].ndim) if axis != 1}
    with suppress(FoldError):
        of_any_size = fold(pair, inputs, padding=padding, entrances="any", dynamic=(free,))
        folded = of_any_size if of_any_size.report.folded else folded
    return folded


def _is_nothing(module: nn.Module) -> bool:
    """True when nothing is left of a norm that was folded; a forward of the user's own may do more than its norm."""
    return type(module) is nn.Identity or (type(module) is nn.Sequential and all(map(_is_nothing, module)))


def _require_pair(layer: Any, norm: Any, is_norm_first: bool) -> None:
    """Raise Refusal for anything but a layer and a norm in eval mode that fit each other."""
    for what, module in (("layer", layer), ("norm", norm)):
        if not isinstance(module, nn.Module):
            raise FoldError(f"{what} is a {type(module).__name__}; expected a torch.nn.Module")
    if not isinstance(layer, _LAYERS):
        raise Refusal(
            RefusalCode.NO_PRODUCER,
            f"{type(layer).__name__} is no layer that takes a norm; expected a convolution or linear layer and a norm",
            "pass the convolution or linear layer that stands next to the norm",
        )
    for module in (layer, norm):
        if any(part.training for part in module.modules()):
            raise Refusal(RefusalCode.TRAINING, f"the {type(module).__name__} is in training mode; expected .eval()")
        require_foldable(module)
        require_values(module)
    if isinstance(norm, _LAYERS):
        raise Refusal(RefusalCode.UNKNOWN_OP, f"both are layers; expected a norm beside the {type(layer).__name__}")
    if isinstance(norm, _OF_THE_BATCH):
        kind = type(norm).__name__
        raise Refusal(RefusalCode.BATCH_STATS, f"a {kind} takes its statistics from the values it normalises")
    channels, between = getattr(norm, "num_features", None), _channels(layer)[0 if is_norm_first else 1]
    if is_norm(norm) and channels not in (None, 0, between):
        side = "reads" if is_norm_first else "produces"
        raise Refusal(
            RefusalCode.AXIS,
            f"the norm has {channels} channels, the layer {side} {between}",
            "pass a norm and a layer of the same number of channels",
        )


def _require_rank(pair: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Raise Refusal when one of the two does not take values of the rank that the other gives."""
    try:
        with torch.no_grad():
            sharing_copy(pair)(*inputs)
    except (ValueError, RuntimeError, IndexError) as err:
        shape, kinds = tuple(inputs[0].shape), " and ".join(type(module).__name__ for module in pair.children())
        raise Refusal(
            RefusalCode.AXIS,
            f"{kinds} do not run one after the other on values of shape {shape}: {' '.join(str(err).split())[:200]}",
            "pass a layer and a norm for values of the same rank and dtype",
        ) from err


def _channels(layer: nn.Module) -> tuple[int, int]:
    """Return how many channels the layer reads and produces."""
    linear = isinstance(layer, nn.Linear)
    names = ("in_features", "out_features") if linear else ("in_channels", "out_channels")
    return getattr(layer, names[0]), getattr(layer, names[1])


def _example(layer: Any) -> Tensor:
    """Return values of a shape that the layer takes, just large enough for a few outputs along each axis."""
    generator = torch.Generator().manual_seed(0)
    sizes: list[int] = []
    if not isinstance(layer, nn.Linear):
        padding = [0] * len(layer.kernel_size) if isinstance(layer.padding, str) else layer.padding
        axes = zip(layer.kernel_size, layer.dilation, layer.stride, padding, strict=True)
        sizes = [d * (k - 1) + 2 * s + p + 2 + place for place, (k, d, s, p) in enumerate(axes)]
    values = torch.randn((2, _channels(layer)[0], *sizes), generator=generator)
    return values.to(next(layer.parameters()))
