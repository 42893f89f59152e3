"""The networks as published, layer by layer, with the book's initial weights.

It builds modules from a recipe; it neither trains nor loads them. Names of layers are the keys of the state dict.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from .batchnorm import BatchNorm
from .config import NORMS, POOLS, Recipe
from .errors import ConfigError

CLASSES = 10


def build(recipe: Recipe) -> nn.Sequential:
    """Return the untrained BN-LeNet that `recipe` names; its seed alone decides the weights.

    The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return lenet(pool=recipe.pool, norm=recipe.norm)


def lenet(*, pool: str = "avg", norm: str = "torch") -> nn.Sequential:
    """Return the book's BN-LeNet: images (N, 1, 28, 28) in [0, 1] to logits (N, 10).

    44,878 parameters with norms; the same body without them (`norm="none"`) has 44,426.

    Args:
        pool: `avg` or `max`.
        norm: `torch`, `scratch` or `none`.

    Raises:
        ConfigError: another pool or norm.

    Source: Zhang et al., Dive into Deep Learning, section 8.5 (batch normalization).
    """
    pooling, norm_of = _pooling(pool), _norming(norm)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(1, 6, kernel_size=5)  # (N, 6, 24, 24)
    layers |= norm_of("norm1", 6, 4)
    layers["sigmoid1"] = nn.Sigmoid()
    layers["pool1"] = pooling()  # (N, 6, 12, 12)
    layers["conv2"] = nn.Conv2d(6, 16, kernel_size=5)  # (N, 16, 8, 8)
    layers |= norm_of("norm2", 16, 4)
    layers["sigmoid2"] = nn.Sigmoid()
    layers["pool2"] = pooling()  # (N, 16, 4, 4)
    layers["flatten"] = nn.Flatten()
    layers["dense1"] = nn.Linear(256, 120)
    layers |= norm_of("norm3", 120, 2)
    layers["sigmoid3"] = nn.Sigmoid()
    layers["dense2"] = nn.Linear(120, 84)
    layers |= norm_of("norm4", 84, 2)
    layers["sigmoid4"] = nn.Sigmoid()
    layers["dense3"] = nn.Linear(84, CLASSES)
    return _initialised(nn.Sequential(layers))


def lenet_plain(*, pool: str = "avg") -> nn.Sequential:
    """Return the LeNet that the book compares with: no norms, padding 2 in the first convolution, 61,706 parameters.

    It is not the same body as `lenet(norm="none")`; the book trains it at learning rate 0.9.

    Source: Zhang et al., Dive into Deep Learning, section 7.6 (LeNet).
    """
    pooling = _pooling(pool)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(1, 6, kernel_size=5, padding=2)  # (N, 6, 28, 28)
    layers["sigmoid1"] = nn.Sigmoid()
    layers["pool1"] = pooling()  # (N, 6, 14, 14)
    layers["conv2"] = nn.Conv2d(6, 16, kernel_size=5)  # (N, 16, 10, 10)
    layers["sigmoid2"] = nn.Sigmoid()
    layers["pool2"] = pooling()  # (N, 16, 5, 5)
    layers["flatten"] = nn.Flatten()
    layers["dense1"] = nn.Linear(400, 120)
    layers["sigmoid3"] = nn.Sigmoid()
    layers["dense2"] = nn.Linear(120, 84)
    layers["sigmoid4"] = nn.Sigmoid()
    layers["dense3"] = nn.Linear(84, CLASSES)
    return _initialised(nn.Sequential(layers))


def mlp(sizes: Sequence[int] = (784, 256, 10), *, norm: str = "torch") -> nn.Sequential:
    """Return linear layers of the given sizes with a norm and a ReLU after each but the last; images are flattened.

    `mlp()` is the small network on images, `mlp((2, 64, 32, 2))` the one for the two circles: 2,338 parameters, and
    192 more with norms.

    Args:
        sizes: features of the input, of each hidden layer, and of the logits.
        norm: `torch`, `scratch` or `none`, before the activation.

    Raises:
        ConfigError: another norm, or no layer at all.
    """
    if len(sizes) < 2:
        raise ConfigError(f"sizes {tuple(sizes)}: expected at least the features of the input and of the logits")
    norm_of = _norming(norm)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, (incoming, outgoing) in enumerate(pairwise(sizes), start=1):
        layers[f"dense{number}"] = nn.Linear(incoming, outgoing)
        if number < len(sizes) - 1:
            layers |= norm_of(f"norm{number}", outgoing, 2)
            layers[f"relu{number}"] = nn.ReLU()
    return _initialised(nn.Sequential(layers))


def count_parameters(model: nn.Module) -> int:
    """Return the number of learned values; running statistics are not among them."""
    return sum(parameter.numel() for parameter in model.parameters())


def _pooling(pool: str) -> Callable[[], nn.Module]:
    kinds: dict[str, type[nn.Module]] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}
    if pool not in kinds:
        raise ConfigError(f"--pool {pool}: expected {' or '.join(POOLS)}")
    return lambda: kinds[pool](kernel_size=2, stride=2)


def _norming(norm: str) -> Callable[[str, int, int], dict[str, nn.Module]]:
    """Return a function from layer name, features and axes of the input to no layer or one."""
    makers: dict[str, Callable[[int, int], nn.Module]] = {
        "torch": lambda features, dims: nn.BatchNorm2d(features) if dims == 4 else nn.BatchNorm1d(features),
        "scratch": BatchNorm,
    }
    if norm not in NORMS:
        raise ConfigError(f"--norm {norm}: expected {' or '.join(NORMS)}")
    return lambda name, features, dims: {} if norm == "none" else {name: makers[norm](features, dims)}


def _initialised(model: nn.Sequential) -> nn.Sequential:
    """Draw the weights of convolutions and linear layers Xavier-uniform, as the book does; biases keep PyTorch's."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    return model
