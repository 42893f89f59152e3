"""The networks as published, layer by layer, with the book's initial weights, for images and classes of any number.

It builds modules from a recipe; it neither trains nor loads them. Names of layers are the keys of the state dict.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from .batchnorm import BatchNormLayer
from .config import Recipe
from .dataset import Interface
from .errors import ConfigError
from .norm_layer import norm_layer
from .own_network import own_network
from .resnet import resnet_small

POOLS: Mapping[str, type[nn.Module]] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}


def build(recipe: Recipe, interface: Interface | None = None) -> nn.Module:
    """Return the untrained network that `recipe` names; its seed alone decides the weights.

    The global random state is left as it was.

    Args:
        recipe: names the network and its parts.
        interface: images and classes, by default those of Fashion-MNIST.

    Raises:
        ConfigError: the network does not take such images, or the factory that is named fails.
    """
    interface = interface or Interface()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if recipe.network == "lenet-bn":
            return lenet(
                pool=recipe.pool,
                norm=recipe.norm,
                variance=recipe.variance,
                image_shape=interface.image_shape,
                classes=interface.classes,
            )
        if recipe.network == "mlp":
            sizes = (math.prod(interface.image_shape), 256, interface.classes)
            return mlp(sizes, norm=recipe.norm, variance=recipe.variance)
        if recipe.network == "resnet-small":
            return resnet_small(interface.image_shape, interface.classes, norm=recipe.norm, variance=recipe.variance)
        return own_network(recipe.network, interface)


def with_norms_of(recipe: Recipe, network: nn.Module) -> Recipe:
    """Return `recipe` saying whether `network`, made by a factory, has norms; it cannot know before."""
    if any(isinstance(module, BatchNormLayer) for module in network.modules()):
        return recipe
    return replace(recipe, norm="none", statistics="none")


def lenet(
    *,
    pool: str = "avg",
    norm: str = "torch",
    variance: str = "unbiased",
    image_shape: tuple[int, int, int] = (1, 28, 28),
    classes: int = 10,
) -> nn.Sequential:
    """Return the book's BN-LeNet: images (N, C, H, W) in [0, 1] to logits (N, classes).

    Of images (N, 1, 28, 28) the convolutions make (N, 6, 24, 24) and (N, 16, 8, 8), their pooling (N, 6, 12, 12) and
    (N, 16, 4, 4). 44,878 parameters with norms; the same body without them (`norm="none"`) has 44,426.

    Args:
        pool: `avg` or `max`.
        norm: `torch`, `scratch` or `none`.
        variance: `unbiased`, or `biased` for `scratch`, as in a recipe.
        image_shape: channels, height and width; at least 16 x 16.
        classes: how many.

    Raises:
        ConfigError: another pool or norm, or images that are too small.

    Source: Zhang et al., Dive into Deep Learning, section 8.5 (batch normalization).
    """
    return _lenet(pool, norm, variance, padding=0, image_shape=image_shape, classes=classes)


def lenet_plain(*, pool: str = "avg") -> nn.Sequential:
    """Return the LeNet that the book compares with: no norms, padding 2 in the first convolution, 61,706 parameters.

    The convolutions give (N, 6, 28, 28) and (N, 16, 10, 10), their pooling (N, 6, 14, 14) and (N, 16, 5, 5). It
    is not the same body as `lenet(norm="none")`; the book trains it at learning rate 0.9.

    Source: Zhang et al., Dive into Deep Learning, section 7.6 (LeNet).
    """
    return _lenet(pool, "none", "unbiased", padding=2, image_shape=(1, 28, 28), classes=10)


def mlp(
    sizes: Sequence[int] = (784, 256, 10), *, norm: str = "torch", variance: str = "unbiased", xavier: bool = True
) -> nn.Sequential:
    """Return linear layers of the given sizes with a norm and a ReLU after each but the last; images are flattened.

    `mlp()` is the small network on images, `mlp((2, 64, 32, 2))` the one for the two circles: 2,338 parameters, and
    192 more with norms.

    Args:
        sizes: features of the input, of each hidden layer, and of the logits.
        norm: `torch`, `scratch` or `none`, before the activation.
        variance: as in a recipe.
        xavier: whether the weights are Xavier's, as in the book, or those that PyTorch draws by default.

    Raises:
        ConfigError: another norm, or no layer at all.
    """
    if len(sizes) < 2:
        raise ConfigError(f"sizes {tuple(sizes)}: expected at least the features of the input and of the logits")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, (incoming, outgoing) in enumerate(pairwise(sizes), start=1):
        layers[f"dense{number}"] = nn.Linear(incoming, outgoing)
        if number < len(sizes) - 1:
            _add_norm(layers, number, norm, outgoing, 2, variance)
            layers[f"relu{number}"] = nn.ReLU()
    model = nn.Sequential(layers)
    return _initialised(model) if xavier else model


def count_parameters(model: nn.Module) -> int:
    """Return the number of learned values; running statistics are not among them."""
    return sum(parameter.numel() for parameter in model.parameters())


def _lenet(
    pool: str, norm: str, variance: str, *, padding: int, image_shape: tuple[int, int, int], classes: int
) -> nn.Sequential:
    """Return both LeNets: of 28 x 28, (N, 16, 4, 4) reach the linear layers with `padding` 0, (N, 16, 5, 5) with 2."""
    if pool not in POOLS:
        raise ConfigError(f"--pool {pool}: expected {' or '.join(POOLS)}")
    channels, *sides = image_shape
    # Each convolution takes 4 pixels off a side, less what is padded, and its pooling halves the rest.
    height, width = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in sides)
    if min(height, width) < 1:
        raise ConfigError(
            f"--network lenet-bn with images of {sides[0]} x {sides[1]} pixels: its two convolutions and poolings need "
            "16 x 16 or more; give a larger --size, or choose --network mlp or resnet-small"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (incoming, outgoing) in enumerate(((channels, 6), (6, 16)), start=1):
        layers[f"conv{number}"] = nn.Conv2d(incoming, outgoing, 5, padding=padding if number == 1 else 0)
        _add_norm(layers, number, norm, outgoing, 4, variance)
        layers[f"sigmoid{number}"] = nn.Sigmoid()
        layers[f"pool{number}"] = POOLS[pool](kernel_size=2, stride=2)
    layers["flatten"] = nn.Flatten()
    features = 16 * height * width
    for number, (incoming, outgoing) in enumerate(((features, 120), (120, 84)), start=1):
        layers[f"dense{number}"] = nn.Linear(incoming, outgoing)
        _add_norm(layers, number + 2, norm, outgoing, 2, variance)
        layers[f"sigmoid{number + 2}"] = nn.Sigmoid()
    layers["dense3"] = nn.Linear(84, classes)
    return _initialised(nn.Sequential(layers))


def _add_norm(
    layers: OrderedDict[str, nn.Module],
    number: int,
    norm: str,
    features: int,
    num_dims: int,
    variance: str = "unbiased",
) -> None:
    """Add the norm `number` over inputs of `num_dims` axes, or nothing where `norm` is `none`."""
    layer = norm_layer(norm, features, num_dims, variance)
    if layer is not None:
        layers[f"norm{number}"] = layer


def _initialised(model: nn.Sequential) -> nn.Sequential:
    """Draw the weights of convolutions and linear layers Xavier-uniform, as the book does; biases keep PyTorch's."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    return model
