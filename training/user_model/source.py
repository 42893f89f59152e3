"""What was typed -> the network that it means: a factory, an exported program or an ONNX file, with its weights.

The first step of `fold`, `publish` and `verify`. It reads and runs the user's files, and neither folds nor exports.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..errors import ConfigError, FoldError
from .factory import call_factory, is_factory, read_arguments
from .torchscript import is_script
from .weights_file import load_weights

_KINDS = "package.module:factory, an exported program (.pt2) or an ONNX file (.onnx)"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Somebody's own network.

    Attributes:
        name: as it was given.
        model: in eval mode, or an ONNX model with its weights in memory.
        notes: what was recognised on the way, for people.
        example: inputs that came along, as an exported program keeps them.
    """

    name: str
    model: nn.Module | onnx.ModelProto
    notes: tuple[str, ...] = ()
    example: tuple[Tensor, ...] | None = None

    @property
    def module(self) -> nn.Module:
        """The network as PyTorch's; ConfigError where it is an ONNX model."""
        if not isinstance(self.model, nn.Module):
            raise ConfigError(f"{self.name} is an ONNX model; expected a PyTorch network")
        return self.model


def open_source(spec: str, weights: Path | None = None, factory_args: str | None = None) -> Source:
    """Return the network that `spec` means, in eval mode and on the CPU.

    Args:
        spec: package.module:factory, or the path of a .pt2 or .onnx file.
        weights: safetensors, .pt or .pth file for the network of a factory.
        factory_args: JSON object of keyword arguments for a factory.

    Raises:
        ConfigError: there is no such thing, it cannot be run, the weights do not fit, or an ONNX file has too many.
        FoldError: a file cannot be read.
    """
    if is_factory(spec):
        return _from_factory(spec, weights, factory_args)
    for flag, value in (("--weights", weights), ("--factory-args", factory_args)):
        if value:
            raise ConfigError(f"{flag} is for package.module:factory; {spec} is taken for a file that holds its own")
    if Path(spec).suffix == ".pt2":
        return from_program(_load_program(Path(spec)), spec)
    if Path(spec).suffix in (".pt", ".pth", ".safetensors"):
        raise ConfigError(f"{spec} holds weights and no network; expected {_KINDS}, and weights with --weights")
    from ..fold.onnx.files import MOST_BYTES, load_onnx

    return Source(name=spec, model=load_onnx(Path(spec), MOST_BYTES))


def as_source(model: Any, weights: Path | None = None, factory_args: str | None = None) -> Source:
    """Return a network that was given in Python as a source: a module, an exported program, an ONNX model, or text.

    Raises:
        ConfigError: it is none of these, or a module in training mode.
    """
    if isinstance(model, str | Path):
        return open_source(str(model), weights, factory_args)
    if weights is not None or factory_args is not None:
        raise ConfigError(f"weights or factory_args with a {type(model).__name__}; they are for package.module:factory")
    if isinstance(model, ExportedProgram):
        return from_program(model, "exported program")
    if isinstance(model, onnx.ModelProto):
        return Source(name="ONNX model", model=model)
    from ..fold.pytorch.wrappers import instead_of, is_exported, unwrapped

    if not isinstance(model, nn.Module):
        kinds = f"a torch.nn.Module, an exported program, an onnx.ModelProto, or as text {_KINDS}"
        raise ConfigError(f"model is a {type(model).__name__}; expected {instead_of(model, kinds)}")
    module, notes = (model, ()) if is_script(model) else unwrapped(model)
    training = [name or "the model" for name, part in module.named_modules() if part.training]
    if training and not is_exported(module):
        raise ConfigError(f"{training[0]} is in training mode; call .eval() on the network before it is published")
    return Source(name=type(module).__name__, model=module, notes=notes)


def from_program(program: ExportedProgram, name: str) -> Source:
    """Return the network of an exported program, with the example inputs that it keeps."""
    example, keywords = program.example_inputs or ((), {})
    tensors = tuple(value for value in (*example, *keywords.values()) if isinstance(value, Tensor))
    return Source(name=name, model=program.module(), example=tensors or None)


def _load_program(path: Path) -> ExportedProgram:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; expected what torch.export.save wrote")
    try:
        return torch.export.load(path)
    except Exception as err:  # torch's and zipfile's errors share no base
        first = (str(err).splitlines() or [""])[0]
        raise FoldError(f"{path} is no readable exported program ({type(err).__name__}: {first})") from err


def _from_factory(spec: str, weights: Path | None, factory_args: str | None) -> Source:
    model: Any = call_factory(spec, read_arguments(factory_args))
    given = f"no --weights: the values that {spec} gave its parameters"
    notes = (given,) if weights is None else load_weights(model, weights)
    if any(tensor.is_cuda for tensor in (*model.parameters(), *model.buffers())):
        model, notes = model.cpu(), (*notes, "the network was moved from the GPU to the CPU")
    return Source(name=spec, model=model.eval(), notes=notes)
