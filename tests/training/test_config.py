"""The recipe: what it accepts, what it refuses, and that the message names the flag."""

import dataclasses
import json

import pytest

from foldserve.training.config import PRESETS, Recipe
from foldserve.training.errors import ConfigError


def test_book_preset_is_the_published_recipe():
    """Learning rate 1.0, batches of 256 and 10 epochs, as every published run of the chapter."""
    recipe = Recipe.from_preset("book")
    assert (recipe.learning_rate, recipe.batch_size, recipe.epochs) == (1.0, 256, 10)
    assert (recipe.pool, recipe.norm, recipe.statistics) == ("avg", "torch", "population")


def test_best_preset_is_the_same_network_trained_otherwise():
    """Only how it is trained differs: pooling, norms and statistics are the book's."""
    best, book = Recipe.from_preset("best"), Recipe.from_preset("book")
    assert (best.pool, best.norm, best.statistics) == (book.pool, book.norm, book.statistics)
    assert (best.optimizer, best.schedule, best.augment) == ("muon", "linear", "mirror")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_is_a_valid_recipe(preset):
    """A name in PRESETS always gives a recipe that remembers it."""
    assert Recipe.from_preset(preset).preset == preset


def test_overrides_replace_the_preset_and_none_leaves_it():
    """A flag that was not given arrives as None and must not erase the preset's value."""
    recipe = Recipe.from_preset("book", epochs=3, learning_rate=None, pool="max")
    assert (recipe.epochs, recipe.learning_rate, recipe.pool) == (3, 1.0, "max")


def test_without_norms_the_statistics_are_none():
    """Nobody has to say twice that a network without norms has no statistics."""
    assert Recipe.from_preset("book", norm="none").statistics == "none"


def test_recipe_cannot_be_changed():
    """What is published as the recipe is what ran."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().epochs = 3


def test_as_dict_survives_json_and_gives_the_recipe_again():
    """The recipe in a model's metadata is enough to repeat the training."""
    recipe = Recipe.from_preset("book", seed=7, norm="scratch")
    assert Recipe(**json.loads(json.dumps(recipe.as_dict()))) == recipe


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"learning_rate": float("nan")}, "--lr nan"),
        ({"learning_rate": float("inf")}, "--lr inf"),
        ({"learning_rate": 0.0}, "--lr 0.0"),
        ({"learning_rate": -1.0}, "--lr -1.0"),
        ({"learning_rate": "fast"}, "--lr fast"),
        ({"epochs": 0}, "--epochs 0"),
        ({"epochs": 2.5}, "--epochs 2.5"),
        ({"epochs": True}, "--epochs True"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"batch_size": 1}, "--batch-size 1 with --norm torch"),
        ({"optimizer": "lion"}, "--optimizer lion"),
        ({"schedule": "step"}, "--schedule step"),
        ({"augment": "rotate"}, "--augment rotate"),
        ({"batch_size": 1, "norm": "scratch"}, "--batch-size 1 with --norm scratch"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**63}, "--seed 9223372036854775808"),
        ({"pool": "min"}, "--pool min"),
        ({"norm": "layer"}, "--norm layer"),
        ({"tail": "middle"}, "--tail middle"),
        ({"statistics": "batch"}, "--statistics batch"),
        ({"statistics": "none"}, "--statistics none with --norm torch"),
        ({"norm": "none", "statistics": "running"}, "--statistics running with --norm none"),
    ],
)
def test_refusal_names_the_flag_and_what_came(options, flag):
    """One line that starts with the flag as it would have been typed."""
    with pytest.raises(ConfigError) as refusal:
        Recipe.from_preset("book", **options)
    assert str(refusal.value).startswith(flag)
    assert "\n" not in str(refusal.value)


def test_batch_size_one_is_fine_without_norms():
    """Only norms need a second value."""
    assert Recipe.from_preset("book", norm="none", batch_size=1).batch_size == 1


def test_unknown_preset_is_refused_with_the_known_ones():
    """A typing error in --preset lists what there is."""
    with pytest.raises(ConfigError, match=r"--preset boook: expected .*book"):
        Recipe.from_preset("boook")


def test_unknown_option_is_refused():
    """A misspelt hyperparameter must not be dropped silently."""
    with pytest.raises(ConfigError, match="unknown option 'lr'"):
        Recipe.from_preset("book", lr=0.1)


def test_the_book_to_the_letter():
    """Its hand-written norms, its variance, its order of batches, its statistics; the rest is the book's already."""
    recipe = Recipe.from_preset("book-letter")
    assert (recipe.norm, recipe.variance, recipe.tail, recipe.statistics) == ("scratch", "biased", "last", "running")
    assert (recipe.learning_rate, recipe.batch_size, recipe.epochs, recipe.pool) == (1.0, 256, 10, "avg")
    assert (recipe.optimizer, recipe.schedule, recipe.augment) == ("sgd", "constant", "none")


@pytest.mark.parametrize("norm", ["torch", "none"])
def test_only_hand_written_norms_average_the_biased_variance(norm):
    """PyTorch's layer has no such option, and the message says what to choose."""
    with pytest.raises(ConfigError, match=f"--variance biased with --norm {norm}: .*choose --norm scratch"):
        Recipe(norm=norm, variance="biased", statistics="none" if norm == "none" else "running")
