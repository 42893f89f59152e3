"""The module inside a wrapper, or the reason why what was passed holds none that can be read.

Before everything else: training wraps models for many devices, and exporting or scripting turns them into other things.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from ...errors import FoldError

_UNWRAPPED = {"DistributedDataParallel", "DataParallel"}


def unwrapped(model: Any) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the module to fold, and a note for each wrapper that was taken off.

    Raises:
        FoldError: there is no such module: it is sharded, compiled to TorchScript, or no module at all.
    """
    notes: list[str] = []
    while isinstance(model, ExportedProgram) or type(model).__name__ in _UNWRAPPED:
        notes.append(f"taken out of its {type(model).__name__}")
        model = model.module() if isinstance(model, ExportedProgram) else model.module
    if not isinstance(model, nn.Module):
        raise FoldError(f"model is a {type(model).__name__}; expected {instead_of(model)}")
    classes = {base.__name__ for base in type(model).__mro__}
    if "ScriptModule" in classes:
        raise FoldError(
            f"the model is a {type(model).__name__}, whose code torch.export cannot read; fold the module that it was "
            "made from, or its ONNX export with fold_onnx"
        )
    sharded = [name for name, tensor in model.named_parameters() if type(tensor).__name__ == "DTensor"]
    if sharded or "FullyShardedDataParallel" in classes:
        raise FoldError(
            f"the parameter '{sharded[0] if sharded else 'flat_param'}' is sharded over devices; fold the model before "
            "fully_shard, or load its full state dict into an unsharded one"
        )
    return model, tuple(notes)


def instead_of(model: object, otherwise: str = "a torch.nn.Module") -> str:
    """Return what is expected where something that is no network was given, and how to come to it."""
    if isinstance(model, Mapping):
        return "the network that these weights are of: network.load_state_dict(weights), then network.eval()"
    return "what it makes, a torch.nn.Module: call it first" if callable(model) else otherwise


def require_no_script(model: nn.Module) -> None:
    """Raise FoldError for a model with a part that is TorchScript and holds parameters."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and next(module.parameters(), None) is not None:
            raise FoldError(
                f"the module '{name}' is a {type(module).__name__}, whose code torch.export cannot read; put the "
                "module that it was made from in its place, or fold an ONNX export of the model with fold_onnx"
            )


def is_exported(model: nn.Module) -> bool:
    """True for what `ExportedProgram.module()` returns, whose `eval` raises and whose training flag says nothing."""
    return "eval" in vars(model)
