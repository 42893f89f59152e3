"""`--image` in all its forms -> the recipe and the arithmetic that they stand for."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.format.errors import FormatError
from foldserve.format.image import CHOICES, ImageRecipe
from foldserve.format.image_options import Normalisation, build_image, read_image_options

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255)
SCHEMA = Path(__file__).parents[2] / "docs/image-recipe.schema.json"


def read(text: str, shape: tuple[int, ...] | None = None) -> tuple[ImageRecipe, Normalisation]:
    return build_image(read_image_options(text), shape)


def test_the_usual_line_of_a_classifier():
    """Shorter side to 256, the middle 224, ImageNet's numbers; and one word for all of it."""
    recipe = ImageRecipe(height=224, width=224, rule="shorter", resize=(256,), crop=(224, 224))
    assert read("resize=256,crop=224,mean=imagenet,std=imagenet") == (recipe, IMAGENET)
    assert read("imagenet", (3, 224, 224)) == (recipe, IMAGENET)


@pytest.mark.parametrize(
    ("text", "shape", "expected"),
    [
        ("resize=32x48", None, {"height": 32, "width": 48, "rule": "exact", "resize": (32, 48)}),
        ("resize=32/48", None, {"height": 32, "width": 48, "rule": "exact", "resize": (32, 48)}),
        ("", (3, 5, 6), {"height": 5, "width": 6}),
        ("", (5, 6, 3), {"height": 5, "width": 6, "layout": "HWC"}),
        ("", (1, 5, 6), {"height": 5, "width": 6, "channels": 1, "colour": "grey"}),
        ("layout=hwc", (3, 6, 3), {"height": 3, "width": 6, "layout": "HWC"}),
        ("rule=letterbox,padding=114", (3, 5, 6), {"height": 5, "width": 6, "rule": "letterbox", "resize": (5, 6),
         "padding": (114, 114, 114)}),
        ("resize=9, rule=exact, colour=bgr, filter=bicubic, antialias=true", None,
         {"height": 9, "width": 9, "rule": "exact", "resize": (9, 9), "colour": "BGR", "filter": "bicubic"}),
        ("crop=8,colour=gray,exif=apply,alpha=composite,background=255", None,
         {"height": 8, "width": 8, "crop": (8, 8), "colour": "grey", "channels": 1, "exif": "apply",
          "alpha": "composite", "background": (255, 255, 255)}),
        ("rule=fit,resize=10,crop=8x9", None, {"height": 8, "width": 9, "rule": "fit", "resize": (10, 10),
         "crop": (8, 9)}),
    ],
)  # fmt: skip
def test_what_is_left_out_follows_from_the_rest(text, shape, expected):
    """The rule from the numbers of a size, the size of the result from the steps or from the model."""
    assert read(text, shape)[0] == ImageRecipe(**expected)


@pytest.mark.parametrize(
    ("text", "pixel", "value"),
    [
        ("crop=8", 255, 1.0),
        ("crop=8,rescale=1", 255, 255.0),
        ("crop=8,rescale=1/51", 255, 5.0),
        ("crop=8,range=-1/1", 0, -1.0),
        ("crop=8,range=-1/1", 255, 1.0),
        ("crop=8,range=0/255", 7, 7.0),
        ("crop=8,mean=0.5,std=0.25", 255, 2.0),
        ("crop=8,rescale=1,mean=5/5/5,std=2/2/2", 25, 10.0),
    ],
)
def test_the_arithmetic_of_a_pixel(text, pixel, value):
    """Mean, std, factor and range say what becomes of one value, in every channel."""
    normalisation = read(text)[1]
    assert len(normalisation.mean) == len(normalisation.std) == 3
    for mean, std in zip(normalisation.mean, normalisation.std, strict=True):
        assert (pixel * normalisation.scale - mean) / std == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crop", "got 'crop', expected key=value"),
        ("sharpen=3", "unknown key 'sharpen', expected one of alpha, antialias"),
        ("crop=8,crop=9", "crop stands there twice"),
        ("crop=8.5", "crop is '8.5', expected whole numbers"),
        ("crop=", "crop is '', expected numbers"),
        ("crop=8,mean=cifar", "mean is 'cifar', expected numbers.* imagenet"),
        ("crop=8,mean=1/2", "mean has 2 numbers, the model takes 3 channels"),
        ("crop=8,std=0", "std is .*expected numbers above 0"),
        ("crop=8,std=nan", "expected numbers"),
        ("crop=8,rescale=1/0", "rescale is '1/0'"),
        ("crop=8,range=1/0", "the lower number first"),
        ("crop=8,range=-1/1,mean=0.5", "range beside mean"),
        ("crop=8,antialias=perhaps", "expected true or false"),
        ("crop=8,filter=sinc", "filter is 'sinc', expected one of nearest"),
        ("mean=imagenet", "no size of the result"),
        ("resize=256", "no size of the result"),
        ("@/no/such/file.json", "cannot be read as JSON"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(text, message):
    """The key, what came and what was expected."""
    with pytest.raises(FormatError, match=message):
        read(text)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("crop=8", (3, 9, 9), "end at 8 x 8 pixels .*takes 9 x 9"),
        ("resize=256", (3, 224, 224), "rule shorter without a crop"),
        ("", (5,), r"rows of \(5,\), expected \(C, H, W\)"),
        ("", (4, 9, 9), "1 or 3 channels"),
        ("channels=3", (1, 9, 9), "it makes rows of"),
    ],
)
def test_a_recipe_that_does_not_fit_the_model_is_refused(text, shape, message):
    """Before anything is exported."""
    with pytest.raises(FormatError, match=message):
        read(text, shape)


@given(st.integers(1, 300), st.sampled_from(CHOICES["filter"]), st.sampled_from(["apply", "ignore"]))
def test_a_file_holds_the_same_keys(tmp_path_factory, size, filter, exif):
    """As text, as a JSON file of the same keys, and as the JSON that is stored: one recipe."""
    text = f"rule=cover,resize={size},crop={size},filter={filter},exif={exif},mean=imagenet"
    file = tmp_path_factory.getbasetemp() / "recipe.json"
    file.write_text(json.dumps({"rule": "cover", "resize": size, "crop": [size, size], "filter": filter, "exif": exif}))
    recipe = read(text)[0]
    assert read(f"@{file}")[0] == recipe
    file.write_text(json.dumps(recipe.as_dict()))
    assert read(f"@{file}", recipe.shape)[0] == recipe


def test_the_schema_names_every_key_and_every_choice():
    """Who writes the file by hand finds in the docs what the program takes."""
    properties = json.loads(SCHEMA.read_text())["properties"]
    with pytest.raises(FormatError) as refusal:
        read_image_options("x=1")
    assert sorted(properties) == re.findall(r"\w+", str(refusal.value).partition("one of ")[2])
    for name, choices in CHOICES.items():
        assert tuple(properties[name]["enum"]) == choices
