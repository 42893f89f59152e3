"""A network of the user's, made by `package.module:factory` for the images and classes of the data.

It says what the factory is told; finding and calling it is `user_model`'s.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .dataset import Interface
from .errors import ConfigError
from .user_model.factory import call_factory, find_factory
from .user_model.foreign import cause, foreign_code

_TOLD = (
    "it is told image_shape, classes or num_classes, and in_channels, where it has parameters of these names; give "
    "every other one a default"
)


def own_network(spec: str, interface: Interface) -> nn.Module:
    """Return what the factory makes: images (N, C, H, W) in [0, 1] to logits (N, classes).

    The factory gets, by name and as far as it has a parameter of that name: `image_shape` (channels, height, width),
    `classes` or `num_classes`, and `in_channels`.

    Args:
        spec: package.module:factory.
        interface: of the data.

    Layers that take their size from the first input have met one: a copy of the network is whole then.

    Raises:
        ConfigError: module or factory are missing, the factory fails or makes no `nn.Module`, or one that does not take
            such images.
    """
    network = call_factory(spec, _wanted(find_factory(spec), interface), remedy=_TOLD)
    if any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        _give_shapes(spec, network, interface)
    return network


def _give_shapes(spec: str, network: nn.Module, interface: Interface) -> None:
    """Let layers that take their size from their first input meet one, so that every copy of the network is whole."""
    was_training = network.training
    shape = (2, *interface.image_shape)
    with (
        torch.no_grad(),
        foreign_code(lambda err: ConfigError(f"--network {spec}: it does not take images {shape}: it {cause(err)}")),
    ):
        network.eval()(torch.zeros(shape))
    network.train(was_training)


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
