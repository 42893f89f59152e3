"""Makes the user's own network for the command line: `package.module:factory`, its weights, and inputs of its shapes.

It comes before `fold` in `cli` and knows nothing of folding. It runs the factory that it is pointed to, as an import of
the user's code would.
"""

import importlib
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ConfigError

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "uint8": torch.uint8,
    "int64": torch.int64,
    "int32": torch.int32,
}
_MOST_ELEMENTS = 2**31  # more is a slip of the keyboard


def make_model(spec: str, weights: Path | None) -> nn.Module:
    """Return what `package.module:factory` makes, in eval mode, with the weights of a safetensors file.

    Raises:
        ConfigError: module, factory or file is missing, the factory fails or makes no `nn.Module`, or the weights do
            not fit.
    """
    module_name, _, factory_name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as err:
        raise ConfigError(f"module {module_name!r} cannot be imported: {err}; is it on PYTHONPATH?") from err
    except ValueError as err:
        raise ConfigError(f"{spec!r} names no module; expected package.module:factory") from err
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ConfigError(f"module {module_name!r} has no callable {factory_name!r}; expected a function or class")
    try:
        model = factory()
    except Exception as err:  # the user's code, whatever it raises
        raise ConfigError(f"{spec}() raised {type(err).__name__}: {err}; expected it to need no arguments") from err
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{spec}() made a {type(model).__name__}; expected a torch.nn.Module")
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """Give `model` the tensors of a safetensors file.

    Raises:
        ConfigError: the file is missing, unreadable, or its names and shapes are not those of the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ConfigError(f"{path} is not a file; expected weights in safetensors format")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as err:
        raise ConfigError(f"{path} is not a readable safetensors file: {err}") from err
    expected = model.state_dict()
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ConfigError(f"{path} does not fit the model: {'; '.join(problems[:5])}{more}")
    model.load_state_dict(tensors)


def make_inputs(specs: list[str]) -> tuple[Tensor, ...]:
    """Return one tensor for each "[DTYPE:]D,D,...": normal floats, bytes 0 to 255, or zeros and ones.

    Raises:
        ConfigError: a dtype that is not known, or dimensions that are no positive integers.
    """
    generator = torch.Generator().manual_seed(0)
    return tuple(_make_input(spec, generator) for spec in specs)


def _make_input(spec: str, generator: torch.Generator) -> Tensor:
    kind, _, dims = spec.rpartition(":")
    dtype = _DTYPES.get(kind or "float32")
    if dtype is None:
        raise ConfigError(f"--input {spec!r}: dtype {kind!r} is not one of {', '.join(_DTYPES)}")
    try:
        shape = [int(dim) for dim in dims.split(",")]
    except ValueError as err:
        raise ConfigError(f"--input {spec!r}: expected dimensions such as 1,3,224,224") from err
    if min(shape) < 1 or math.prod(shape) > _MOST_ELEMENTS:
        raise ConfigError(f"--input {spec!r}: expected positive dimensions and at most 2^31 elements")
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 256 if dtype is torch.uint8 else 2, shape, generator=generator, dtype=dtype)
