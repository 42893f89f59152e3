"""Models whose forward writes into their own parameters, which are run as copies.

Used by the public functions before anything of the user's runs. `float64.sharing_copy` knows the copies made here.
"""

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .float64 import WRITING, Inputs, call, full_copy
from .process_state import quiet


def apart(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Return the model, or a copy to take its place where its forward writes into its parameters, as max-norms do.

    A call of it would leave the user's model changed, in float64 even with other dtypes. What runs of the copy write
    is lost with each: `sharing_copy` shares no parameters of it. Where a second call writes nothing new, the copy holds
    what the first one wrote, so that runs that cannot write compute the same.
    """
    called = _called(model, inputs)
    if _has_same_parameters(model, called):
        return model
    is_settled = _has_same_parameters(called, _called(called, inputs))
    copied = called if is_settled else full_copy(model)
    WRITING.add(copied)
    return copied


def _called(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Return a copy of the model after a call; what cannot be copied or called is said when it is read."""
    copied = model
    with contextlib.suppress(Exception), torch.no_grad(), quiet():
        copied = full_copy(model)
        given = dict(inputs) if isinstance(inputs, Mapping) else inputs
        call(copied, tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, given))
    return copied


def _has_same_parameters(model: nn.Module, called: nn.Module) -> bool:
    return all(map(_is_untouched, model.parameters(), called.parameters()))


def _is_untouched(one: Tensor, other: Tensor) -> bool:
    if one is other or one.layout is not torch.strided or other.layout is not torch.strided:
        return one.layout is other.layout
    return one.dtype is other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    """Return the values as bytes, of which those of NaN are equal to themselves too."""
    return tensor.detach().contiguous().view(torch.uint8) if tensor.ndim else tensor.detach()[None].view(torch.uint8)
