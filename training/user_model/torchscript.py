"""TorchScript -> the same operations as a module that can be folded and exported.

A TorchScript file holds no Python, but it is a program: among its operations are some that write files. So it is only
loaded where a user said so.
"""

import warnings
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ExportError


def is_script(model: object) -> TypeGuard[torch.jit.ScriptModule]:
    """Return whether a model is TorchScript, loaded or made in this process."""
    return isinstance(model, torch.jit.ScriptModule)


def load_script(path: Path) -> torch.jit.ScriptModule:
    """Return the program of a TorchScript file, in eval mode and on the CPU; what it does when it is loaded runs here.

    Raises:
        ConfigError: it is none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is old, which its user knows
        try:
            script: torch.jit.ScriptModule = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        except Exception as err:  # torch's and zipfile's errors share no base
            first = (str(err).strip().splitlines() or [""])[0]
            raise ConfigError(f"{path.name} is no TorchScript ({type(err).__name__}: {first[:200]})") from err
    return script.eval()


def converted(script: torch.jit.ScriptModule, example: tuple[Tensor, ...]) -> nn.Module:
    """Return the operations of a TorchScript program as a module that torch.export can read, around the same weights.

    Args:
        script: in eval mode.
        example: what it takes, two rows.

    Raises:
        ConfigError: it does not run on such inputs.
        ExportError: an operation or a loop of it cannot be converted, or the result answers otherwise.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            script(*example)
        except Exception as err:  # whatever a program raises
            shapes = ", ".join(str(tuple(value.shape)) for value in example)
            last = (str(err).strip().splitlines() or [""])[-1]
            raise ConfigError(
                f"the TorchScript program does not run on inputs of {shapes}: {last}; does --image fit it?"
            ) from err
        try:
            from torch._export.converter import TS2EPConverter  # PyTorch's own, not public

            module: nn.Module = TS2EPConverter(script, example).convert().module(check_guards=False)
        except Exception as err:  # the converter's errors share no base
            first = (str(err).strip().splitlines() or [type(err).__name__])[0]
            raise ExportError(
                f"TorchScript cannot be converted: {first[:300]}; publish the network that it was made from, or its "
                "export to ONNX"
            ) from err
    return module
