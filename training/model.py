"""The networks as published, layer by layer, with the book's initial weights.

It builds modules from a recipe; it neither trains nor loads them. Names of layers are the keys of the state dict.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import nn

from .batchnorm import BatchNorm
from .config import CHOICES, Recipe
from .errors import ConfigError

CLASSES = 10
POOLS: Mapping[str, type[nn.Module]] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}


def build(recipe: Recipe) -> nn.Sequential:
    """Return the untrained BN-LeNet that `recipe` names; its seed alone decides the weights.

    The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return lenet(pool=recipe.pool, norm=recipe.norm, variance=recipe.variance)


def lenet(*, pool: str = "avg", norm: str = "torch", variance: str = "unbiased") -> nn.Sequential:
    """Return the book's BN-LeNet: images (N, 1, 28, 28) in [0, 1] to logits (N, 10).

    The convolutions give (N, 6, 24, 24) and (N, 16, 8, 8), their pooling (N, 6, 12, 12) and (N, 16, 4, 4).
    44,878 parameters with norms; the same body without them (`norm="none"`) has 44,426.

    Args:
        pool: `avg` or `max`.
        norm: `torch`, `scratch` or `none`.
        variance: `unbiased`, or `biased` for `scratch`, as in a recipe.

    Raises:
        ConfigError: another pool or norm.

    Source: Zhang et al., Dive into Deep Learning, section 8.5 (batch normalization).
    """
    return _lenet(pool, norm, variance, padding=0)


def lenet_plain(*, pool: str = "avg") -> nn.Sequential:
    """Return the LeNet that the book compares with: no norms, padding 2 in the first convolution, 61,706 parameters.

    The convolutions give (N, 6, 28, 28) and (N, 16, 10, 10), their pooling (N, 6, 14, 14) and (N, 16, 5, 5). It
    is not the same body as `lenet(norm="none")`; the book trains it at learning rate 0.9.

    Source: Zhang et al., Dive into Deep Learning, section 7.6 (LeNet).
    """
    return _lenet(pool, "none", "unbiased", padding=2)


def mlp(sizes: Sequence[int] = (784, 256, 10), *, norm: str = "torch", xavier: bool = True) -> nn.Sequential:
    """Return linear layers of the given sizes with a norm and a ReLU after each but the last; images are flattened.

    `mlp()` is the small network on images, `mlp((2, 64, 32, 2))` the one for the two circles: 2,338 parameters, and
    192 more with norms.

    Args:
        sizes: features of the input, of each hidden layer, and of the logits.
        norm: `torch`, `scratch` or `none`, before the activation.
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
            _add_norm(layers, number, norm, outgoing, 2)
            layers[f"relu{number}"] = nn.ReLU()
    model = nn.Sequential(layers)
    return _initialised(model) if xavier else model


def count_parameters(model: nn.Module) -> int:
    """Return the number of learned values; running statistics are not among them."""
    return sum(parameter.numel() for parameter in model.parameters())


def _lenet(pool: str, norm: str, variance: str, *, padding: int) -> nn.Sequential:
    """Return both LeNets: with `padding` 0 and (N, 16, 4, 4) before the linear layers, with 2 and (N, 16, 5, 5)."""
    if pool not in POOLS:
        raise ConfigError(f"--pool {pool}: expected {' or '.join(POOLS)}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (incoming, outgoing) in enumerate(((1, 6), (6, 16)), start=1):
        layers[f"conv{number}"] = nn.Conv2d(incoming, outgoing, 5, padding=padding if number == 1 else 0)
        _add_norm(layers, number, norm, outgoing, 4, variance)
        layers[f"sigmoid{number}"] = nn.Sigmoid()
        layers[f"pool{number}"] = POOLS[pool](kernel_size=2, stride=2)
    layers["flatten"] = nn.Flatten()
    features = 16 * (4 + padding // 2) ** 2
    for number, (incoming, outgoing) in enumerate(((features, 120), (120, 84)), start=1):
        layers[f"dense{number}"] = nn.Linear(incoming, outgoing)
        _add_norm(layers, number + 2, norm, outgoing, 2, variance)
        layers[f"sigmoid{number + 2}"] = nn.Sigmoid()
    layers["dense3"] = nn.Linear(84, CLASSES)
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
    if norm not in CHOICES["norm"]:
        raise ConfigError(f"--norm {norm}: expected {' or '.join(CHOICES['norm'])}")
    if norm == "scratch":
        layers[f"norm{number}"] = BatchNorm(features, num_dims, unbiased=variance == "unbiased")
    elif norm == "torch":
        layers[f"norm{number}"] = nn.BatchNorm2d(features) if num_dims == 4 else nn.BatchNorm1d(features)


def _initialised(model: nn.Sequential) -> nn.Sequential:
    """Draw the weights of convolutions and linear layers Xavier-uniform, as the book does; biases keep PyTorch's."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    return model
