"""Whether two networks can be compared at all: what `verify` says before it runs them.

Each refusal names the network, what is in the way and what to do. What a network computes is not looked at here.
"""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...errors import FoldError
from .float64 import Inputs, named_tensors, sharing_copy
from .plain_layers import has_plain_layers_only

_SCRIPTS = (torch.jit.ScriptModule, torch.jit.ScriptFunction)
_USUAL_SLOTS = ("__dict__", "__weakref__")


def require_network(model: object, name: str) -> None:
    """Raise FoldError for what `torch.jit` compiled; `name` is what the network is called."""
    if isinstance(model, _SCRIPTS):
        raise FoldError(
            f"the {name} is a {type(model).__name__}, which runs in the dtypes that it was compiled for and not in "
            "float64; compare the module that it was made from, or ONNX exports of both with verify_onnx"
        )


def require_runnable(model: nn.Module, name: str, inputs: Inputs) -> None:
    """Raise FoldError where a network takes other arguments, or cannot be copied; what runs is a copy.

    Args:
        model: a network in eval mode.
        name: what it is called.
        inputs: positional arguments, or a mapping of keyword arguments.
    """
    _require_initialised(model, name)
    _require_arguments_that_fit(model, name, inputs)
    if not has_plain_layers_only(model):
        _require_copies(model, name)


def _require_initialised(model: nn.Module, name: str) -> None:
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
            raise FoldError(f"the module {path!r} of the {name} has no shapes yet; run one batch through the network")


def _require_arguments_that_fit(model: nn.Module, name: str, inputs: Inputs) -> None:
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # of a function in C nothing is known
        return
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
    try:
        signature.bind(*args, **kwargs)
    except TypeError as err:
        given = f"the names {', '.join(map(str, kwargs)) or 'none'}" if kwargs else f"a tuple of {len(args)}"
        raise FoldError(
            f"the {name} does not take these inputs: {err}; got {given}, expected what its forward takes, "
            f"forward{signature}"
        ) from err


def _require_copies(model: nn.Module, name: str) -> None:
    for path, module in model.named_modules():
        slots = [one for cls in type(module).__mro__ for one in _slots(cls)]
        if slots:
            raise FoldError(
                f"{_what(path, module, name)} keeps {slots[0]!r} in __slots__, which a copy of a module loses, and "
                "what is compared runs as copies; keep it as a usual attribute"
            )
    try:
        sharing_copy(model)
    except Exception as err:
        what = _uncopied(model, name)
        raise FoldError(
            f"{what} cannot be copied ({type(err).__name__}: {' '.join(str(err).split())[:160]}), and what is compared "
            "runs as copies, so that no run leaves a trace; let its __deepcopy__ return a copy"
        ) from err


def _uncopied(model: nn.Module, name: str) -> str:
    """Return what cannot be copied by itself: a tensor, else the innermost module."""
    for path, tensor in named_tensors(model):
        if not _can_be_copied(tensor):
            return f"the tensor {path!r} of the {name}, a {type(tensor).__name__},"
    for path, module in reversed(list(model.named_modules())):
        if not _can_be_copied(module):
            return _what(path, module, name)
    return f"the {name}"


def _can_be_copied(value: Any) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:  # whatever a class of somebody's raises
        return False
    return True


def _what(path: str, module: nn.Module, name: str) -> str:
    kind = type(module).__name__
    return f"the module {path!r} of the {name}, a {kind}," if path else f"the {name}, a {kind},"


def _slots(cls: type) -> list[str]:
    slots = vars(cls).get("__slots__", ())
    return [one for one in ((slots,) if isinstance(slots, str) else slots) if one not in _USUAL_SLOTS]
