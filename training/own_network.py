"""A network of the user's, made by `package.module:factory` for the images and classes of the data.

It says what the factory is told; finding and calling it is `user_model`'s.
"""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from .dataset import Interface
from .user_model.factory import call_factory, find_factory


def own_network(spec: str, interface: Interface) -> nn.Module:
    """Return what the factory makes: images (N, C, H, W) in [0, 1] to logits (N, classes).

    The factory gets, by name and as far as it has a parameter of that name: `image_shape` (channels, height, width),
    `classes` or `num_classes`, and `in_channels`.

    Args:
        spec: package.module:factory.
        interface: of the data.

    Raises:
        ConfigError: module or factory are missing, the factory fails or makes no `nn.Module`.
    """
    return call_factory(spec, _wanted(find_factory(spec), interface))


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
    named = {name: value for name, value in known.items() if name in parameters}
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    if takes_all and not {"classes", "num_classes"} & set(named):
        named["num_classes"] = interface.classes  # torchvision's and timm's factories hand it on
    return named
