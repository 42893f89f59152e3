"""The norm that a recipe names, for whatever network asks for one."""

from torch import nn

from .batchnorm import BatchNorm
from .config import CHOICES
from .errors import ConfigError


def norm_layer(norm: str, features: int, num_dims: int, variance: str = "unbiased") -> nn.Module | None:
    """Return an untrained norm over inputs of `num_dims` axes, or None where `norm` is `none`.

    Args:
        norm: `torch`, `scratch` or `none`, as in a recipe.
        features: size of the second axis.
        num_dims: 2 for (N, C), 4 for (N, C, H, W).
        variance: as in a recipe; only hand-written norms have the choice.

    Raises:
        ConfigError: another norm.
    """
    if norm not in CHOICES["norm"]:
        raise ConfigError(f"--norm {norm}: expected {' or '.join(CHOICES['norm'])}")
    if norm == "scratch":
        return BatchNorm(features, num_dims, unbiased=variance == "unbiased")
    if norm == "torch":
        return nn.BatchNorm2d(features) if num_dims == 4 else nn.BatchNorm1d(features)
    return None
