"""A network of the user's, made by `package.module:factory` for the images and classes of the data.

It runs the factory that it is pointed to, as an import of the user's code would.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from .dataset import Interface
from .errors import ConfigError


def own_network(spec: str, interface: Interface) -> nn.Module:
    """Return what the factory makes: images (N, C, H, W) in [0, 1] to logits (N, classes).

    The factory gets, by name and as far as it has a parameter of that name: `image_shape` (channels, height, width),
    `classes` or `num_classes`, and `in_channels`. The current folder is searched as well, as `python -m` does.

    Args:
        spec: package.module:factory.
        interface: of the data.

    Raises:
        ConfigError: module or factory are missing, the factory fails or makes no `nn.Module`.
    """
    factory = _found(spec)
    arguments = _wanted(factory, interface)
    try:
        network = factory(**arguments)
    except Exception as err:  # the user's code, whatever it raises
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ConfigError(f"--network {spec}: {spec}({given}) raised {type(err).__name__}: {err}") from err
    if not isinstance(network, nn.Module):
        raise ConfigError(f"--network {spec}: it made a {type(network).__name__}; expected a torch.nn.Module")
    return network


def _wanted(factory: Callable[..., Any], interface: Interface) -> dict[str, Any]:
    known = {
        "image_shape": interface.image_shape,
        "classes": interface.classes,
        "num_classes": interface.classes,
        "in_channels": interface.image_shape[0],
    }
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a callable that does not tell
        return {}
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    named = {name: value for name, value in known.items() if name in parameters}
    if takes_all and not {"classes", "num_classes"} & set(named):
        named["num_classes"] = interface.classes  # torchvision's and timm's factories pass it on
    return named


def _found(spec: str) -> Callable[..., Any]:
    module_name, _, factory_name = spec.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as err:  # the user's code, whatever it raises
        raise ConfigError(
            f"--network {spec}: module {module_name!r} cannot be imported ({type(err).__name__}: {err}); "
            "is it on PYTHONPATH?"
        ) from err
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ConfigError(f"--network {spec}: {module_name} has no callable {factory_name!r}")
    return factory  # type: ignore[no-any-return]
