"""What a study trains: an arm is a recipe and a network under a name, and a case is an arm with a seed.

It names things and builds untrained networks; the runner trains them. Everything here survives pickling, so that a case
can be sent to another process.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..config import Recipe
from ..errors import ConfigError
from ..model import lenet, lenet_plain, mlp
from . import variants


def _lenet(recipe: Recipe) -> nn.Sequential:
    return lenet(pool=recipe.pool, norm=recipe.norm, variance=recipe.variance)


NETWORKS: Mapping[str, Callable[[Recipe], nn.Sequential]] = {
    "lenet": _lenet,
    "lenet-plain": lambda recipe: lenet_plain(pool=recipe.pool),
    "mlp": lambda recipe: mlp(norm=recipe.norm, variance=recipe.variance),
    "norm-after": lambda recipe: variants.norms_after_activations(_lenet(recipe)),
    "noisy-norm": lambda recipe: variants.noise_after_norms(_lenet(recipe)),
    "norm-inputs": lambda recipe: variants.norms_on_inputs(_lenet(recipe)),
    "norm-fixed": lambda recipe: variants.fixed_affines(_lenet(recipe)),
    "no-bias": lambda recipe: variants.without_redundant_biases(_lenet(recipe)),
    "norms-1-2": lambda recipe: variants.only_norms(_lenet(recipe), "12"),
    "norms-3-4": lambda recipe: variants.only_norms(_lenet(recipe), "34"),
    "norms-1-3": lambda recipe: variants.only_norms(_lenet(recipe), "13"),
    "norms-2-4": lambda recipe: variants.only_norms(_lenet(recipe), "24"),
    "layer-norm": lambda recipe: variants.layer_norms(_lenet(recipe)),
    "dropout": lambda recipe: variants.dropout_in_classifier(_lenet(recipe)),
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train, whatever the seed.

    Attributes:
        name: unique in its store; it begins with the study it belongs to.
        options: the recipe's values that differ from the preset.
        network: which of `NETWORKS` is trained.
        preset: the recipe to start from.
        is_selection: whether it is tested on training images held out, and not on the test set.
        train_rows: how many training images it takes, from the first; None takes all.
        epoch_rows: training images for the population statistics after each epoch; the last figures take them all.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    network: str = "lenet"
    preset: str = "book"
    is_selection: bool = False
    train_rows: int | None = None
    epoch_rows: int = 5_000

    def recipe(self, seed: int) -> Recipe:
        """Return the recipe of this arm for `seed`.

        Raises:
            ConfigError: an option that a recipe refuses.
        """
        return Recipe.from_preset(self.preset, **self.options, seed=seed)

    def build(self, recipe: Recipe) -> nn.Sequential:
        """Return the untrained network, its weights decided by the recipe's seed; the random state is left as it was.

        Raises:
            ConfigError: no such network.
        """
        if self.network not in NETWORKS:
            raise ConfigError(f"network {self.network!r}: expected one of {', '.join(NETWORKS)}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            return NETWORKS[self.network](recipe)

    def shortened(self, *, epochs: int, rows: int) -> "Arm":
        """Return the arm with no more than `epochs` epochs on no more than `rows` training images."""
        planned = self.recipe(0).epochs
        return replace(
            self,
            options={**self.options, "epochs": min(planned, epochs)},
            train_rows=rows if self.train_rows is None else min(self.train_rows, rows),
        )


@dataclass(frozen=True)
class Case:
    """One training of a study."""

    arm: Arm
    seed: int

    @property
    def key(self) -> str:
        """Return what the store knows the case by."""
        return f"{self.arm.name}/{self.seed}"


def cases_of(arms: Iterable[Arm], seeds: int) -> list[Case]:
    """Return every arm with seeds 0, 1, ..., all arms of one seed before the next, so that a cut study is balanced."""
    listed = list(arms)
    return [Case(arm, seed) for seed in range(seeds) for arm in listed]
