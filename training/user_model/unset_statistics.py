"""Statistics that a file of weights cannot hold, because the network keeps them as plain tensors.

A norm written by hand, as in the book, may keep its moving mean and variance as attributes that no state dict contains.
After loading such a file they are still zeros and ones, and every answer is silently wrong.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from ..errors import ConfigError

_STATISTIC = re.compile(r"mean|var|std|avg|average|moving|running|ema|stat|mu$|sigma|moment", re.IGNORECASE)


def require_statistics(model: nn.Module, path: Path) -> None:
    """Raise ConfigError, naming them, when statistics of `model` are as they were made after `path` was loaded."""
    unset = list(_unset(model))
    if unset:
        more = f" and {len(unset) - 5} more" if len(unset) > 5 else ""
        raise ConfigError(
            f"{path} cannot hold {', '.join(unset[:5])}{more}: these statistics are no parameters or buffers of the "
            "network, so they are still what the factory made them; keep them with register_buffer and save the state "
            "dict again, or set them in the factory"
        )


def _unset(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        held = {f"{name}" for name in module.state_dict(keep_vars=True)}
        fresh = {
            name: tensor
            for name, tensor in [*vars(module).items(), *module._buffers.items()]
            if isinstance(tensor, Tensor) and name not in held and _is_fresh(tensor)
        }
        for name in fresh:
            if _STATISTIC.search(name) or _is_pair(name, fresh):
                yield f"{path}.{name}" if path else name


def _is_fresh(tensor: Tensor) -> bool:
    """True where every value is 0, or every value is 1, as nothing that was measured is."""
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return False
    return bool((tensor == 0).all()) or bool((tensor == 1).all())


def _is_pair(name: str, fresh: dict[str, Tensor]) -> bool:
    """True where zeros and ones of one shape stand side by side: a mean and a variance, whatever they are called."""
    one = fresh[name]
    others = (tensor for other, tensor in fresh.items() if other != name and tensor.shape == one.shape)
    return any(bool((tensor == 1).all()) != bool((one == 1).all()) for tensor in others)
