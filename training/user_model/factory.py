"""`package.module:factory` -> the network that it makes. It runs the factory, as an import of the user's code would."""

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .foreign import cause, foreign_code

if TYPE_CHECKING:
    from torch import nn

# What PyTorch says where a network wants a GPU and there is none.
_NO_GPU = ("nvidia driver", "not compiled with cuda", "no cuda gpus", "cuda error", "is_available() is false")


def is_factory(spec: str) -> bool:
    """Return whether `spec` is package.module:factory and not a path."""
    return ":" in spec and not Path(spec).exists()


def read_arguments(text: str | None) -> dict[str, Any]:
    """Return the keyword arguments that `--factory-args` states as a JSON object.

    Raises:
        ConfigError: it is not one.
    """
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError) as err:
        raise ConfigError(f"--factory-args {text!r:.200} is not JSON ({err}); expected such as '{_EXAMPLE}'") from err
    if not isinstance(arguments, dict):
        raise ConfigError(f"--factory-args is a {type(arguments).__name__}; expected an object such as '{_EXAMPLE}'")
    return arguments


_EXAMPLE = '{"num_classes": 5}'


def call_factory(spec: str, arguments: Mapping[str, Any], remedy: str | None = None) -> "nn.Module":
    """Return what `package.module:factory` makes; the current folder is searched as well, as `python -m` does.

    Args:
        spec: package.module:factory.
        arguments: of the factory, by name.
        remedy: what to do when it does not take them, where the caller has no `--factory-args`.

    Raises:
        ConfigError: the module or the factory is missing, the factory fails or makes no `nn.Module`.
    """
    from torch import nn

    factory = find_factory(spec)
    with foreign_code(lambda err: ConfigError(_failure(spec, arguments, err, remedy))):
        model = factory(**arguments)
    if not isinstance(model, nn.Module):
        if inspect.iscoroutine(model):
            model.close()  # it would warn that nobody awaited it
        raise ConfigError(f"{spec}() returned {_kind(model)}; expected a torch.nn.Module")
    return model


def _kind(value: object) -> str:
    return "None" if value is None else f"an object of class {type(value).__name__}"


def find_factory(spec: str) -> Callable[..., Any]:
    """Return the callable that `package.module:factory` names; its module is imported.

    Raises:
        ConfigError: the module cannot be imported, or has no such callable.
    """
    module_name, _, factory_name = spec.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        name = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigError(f"{spec!r} names a file; expected its module, such as {name}:{factory_name}")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    if not module_name or module_name.startswith("."):
        raise ConfigError(f"{spec!r} names no module; expected package.module:factory")
    with foreign_code(lambda err: ConfigError(_import_failure(module_name, err))):
        module = importlib.import_module(module_name)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
        there = f"it has {', '.join(own)}" if own else "expected a function or class"
        raise ConfigError(f"module {module_name!r} has no callable {factory_name!r}; {there}")
    found: Callable[..., Any] = factory
    return found


def _import_failure(module_name: str, err: BaseException) -> str:
    if isinstance(err, ImportError):
        return (
            f"module {module_name!r} cannot be imported: {err}; expected a module in this folder or on PYTHONPATH, "
            f"such as {module_name.partition('.')[0]}.py"
        )
    return f"module {module_name!r} {cause(err)} when it was imported; mend it"


def _failure(spec: str, arguments: Mapping[str, Any], err: BaseException, remedy: str | None) -> str:
    if any(sign in str(err).lower() for sign in _NO_GPU):
        option = "" if remedy else ", such as by an argument for the device in --factory-args"
        return f"{spec}() wants a GPU and there is none here ({cause(err)}); make the network on the CPU{option}"
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    if not isinstance(err, TypeError):
        remedy = "expected a network"
    elif remedy is None:
        remedy = "do the names in --factory-args fit it?" if given else "give what it needs with --factory-args"
    return f"{spec}({given}) {cause(err)}; {remedy}"
