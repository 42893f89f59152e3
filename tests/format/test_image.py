"""The picture recipe: what it may say, and how it is stored."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.format import metadata
from foldserve.format.errors import FormatError
from foldserve.format.image import CHOICES, ImageRecipe, first_format_recipe, read_recipe

RECIPE = ImageRecipe(height=224, width=224, rule="shorter", resize=(256,), crop=(224, 224))


@given(
    colour=st.tuples(*[st.integers(0, 255)] * 3),
    choices=st.fixed_dictionaries({name: st.sampled_from(CHOICES[name]) for name in ("layout", "exif", "alpha")}),
    resize=st.integers(1, 999),
)
def test_a_recipe_survives_the_metadata(colour, choices, resize):
    """What is written with format 2 is read as it was."""
    recipe = replace(RECIPE, padding=colour, background=colour, resize=(resize,), **choices)
    described = metadata.describe_image(recipe)
    assert described["foldserve.format"] == "2"
    assert metadata.read_image(described) == recipe
    assert read_recipe(json.loads(described["foldserve.image"])) == recipe


@pytest.mark.parametrize("channels", [1, 3])
def test_what_format_1_can_say_is_written_with_it(channels):
    """Models that need nothing new can be served by the release before."""
    described = metadata.describe_image(first_format_recipe(28, 28, channels, background=9))
    assert described["foldserve.format"] == "1"
    assert metadata.read_image(described) == first_format_recipe(28, 28, channels, background=9)


@pytest.mark.parametrize(
    ("change", "message"),
    [({name: "other"}, f"{name} is 'other', expected one of") for name in CHOICES]
    + [
        ({"height": 0}, "height is"),
        ({"height": True}, "height is"),
        ({"width": 10**9}, "width is"),
        ({"crop": (200, 200)}, "end at 200 x 200 pixels .*takes 224 x 224"),
        ({"crop": None}, "rule shorter without a crop"),
        ({"rule": "exact"}, "resize is .*expected 2 numbers"),
        ({"resize": ()}, "resize is .*expected 1 numbers"),
        ({"channels": 1}, "channels is 1, expected 3, or 1 with colour grey"),
        ({"channels": 4}, "channels is 4"),
        ({"padding": (0, 0, 256)}, "padding is"),
        ({"background": (0,)}, "background is"),
        ({"colour": "grey", "padding": (0, 0, 1)}, "three equal values"),
        ({"antialias": False, "filter": "lanczos"}, "nearest or bilinear without antialiasing"),
        ({"antialias": 1}, "antialias"),
    ],
)
def test_a_recipe_that_says_nonsense_is_refused(change, message):
    """Each by the name of its field, with what was expected."""
    with pytest.raises(FormatError, match=message):
        replace(RECIPE, **change)


def test_an_unknown_key_or_format_is_refused():
    """A step that is not known here cannot be left out in silence."""
    with pytest.raises(FormatError, match="unknown key 'sharpen'"):
        read_recipe(RECIPE.as_dict() | {"sharpen": 1})
    with pytest.raises(FormatError, match="is '3', expected 1 or 2"):
        metadata.read_image(metadata.describe_image(RECIPE) | {"foldserve.format": "3"})
    with pytest.raises(FormatError, match=r"foldserve\.image cannot be read"):
        metadata.read_image({"foldserve.format": "2", "foldserve.image": "[1]"})
