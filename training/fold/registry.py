"""Norm classes that the graph cannot read, and how their owner says they are read: `register_norm`.

Before `graph`. A registered module is replaced, in the copy that is analysed, by the affine that its reader states; the
proof still runs the module itself, so a wrong reader does not pass.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FoldError
from .core import Affine, Array

Reader = Callable[[Any], Affine]
_READERS: dict[type[nn.Module], Reader] = {}


def register_norm(cls: type[nn.Module], reader: Reader) -> None:
    """Have modules of exactly this class read by `reader` instead of by what their forward does.

    Args:
        cls: a module class with one input and one output of equal shape, channels on axis 1.
        reader: returns the `Affine` that a module in eval mode computes; `Affine.from_batch_norm` helps.
    """
    _READERS[cls] = reader


def is_registered(module: nn.Module) -> bool:
    """True when `register_norm` was called with exactly the module's class."""
    return type(module) in _READERS


class _Stated(nn.Module):
    """Stands for a registered module while the graph is read."""

    zeros: Tensor
    ones: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, affine: Affine, reference: Tensor | None):
        super().__init__()
        dtype = torch.float32 if reference is None else reference.dtype
        for name, values in (("scale", affine.scale), ("shift", affine.shift)):
            self.register_buffer(name, torch.from_numpy(values).to(dtype))
        self.register_buffer("zeros", torch.zeros(affine.channels, dtype=dtype))
        self.register_buffer("ones", torch.ones(affine.channels, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.zeros, self.ones, self.scale, self.shift, eps=0.0)


def state_registered(model: nn.Module) -> dict[str, Array]:
    """Replace registered modules inside `model`, in place, by what their readers state.

    Returns:
        The float64 values of the stand-ins' rounded ones, by qualified name.

    Raises:
        FoldError: a reader returned something else than an `Affine`.
    """
    exact: dict[str, Array] = {}
    for path, module in list(model.named_modules()):
        reader = _READERS.get(type(module))
        if reader is None or not path:
            continue
        affine = reader(module)
        if not isinstance(affine, Affine):
            raise FoldError(
                f"the reader of {type(module).__name__} returned {type(affine).__name__}, expected an Affine"
            )
        parent, _, name = path.rpartition(".")
        stated = _Stated(affine, next(iter(module.parameters()), None)).train(module.training)
        setattr(model.get_submodule(parent), name, stated)
        exact |= {f"{path}.scale": affine.scale, f"{path}.shift": affine.shift}
    return exact
