"""The size of a picture: resize, crop and padding, with the formulas of those whose pixels a recipe wants to equal."""

import math
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image

from foldserve.format.image import ANY_SIZE, ImageRecipe

Admit = Callable[[int, int], None]  # gets width and height that a picture is about to be resized to; may refuse them

_MOST_PIXELS = 100_000_000


class Source(NamedTuple):
    """What a picture is resized from, where it was decoded at a part of its size.

    Attributes:
        width: of the whole picture, in pixels.
        height: the same.
        box: where it lies in the pixels that there are; its edges may run through some of them.
    """

    width: int
    height: int
    box: tuple[float, float, float, float]


class PictureError(ValueError):
    """A picture that its recipe cannot bring to the size that the model takes."""


def admit_usual_sizes(width: int, height: int) -> None:
    """Refuse what a picture of a strange aspect would grow to.

    Raises:
        PictureError: more than 100 million pixels.
    """
    if width * height > _MOST_PIXELS:
        raise PictureError(f"resized to {width}x{height} pixels, expected at most {_MOST_PIXELS} on the way")


def resized_size(recipe: ImageRecipe, height: int, width: int) -> tuple[int, int]:
    """Return height and width after the resize and before crop and padding.

    Sources: torchvision's resize for `shorter`, timm's `ResizeKeepRatio` for `fit` and `cover`.

    Args:
        recipe: names the rule.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
    """
    if recipe.rule == "none":
        return height, width
    if recipe.rule == "shorter":
        short = recipe.resize[0]
        long = int(short * max(height, width) / min(height, width))
        return (long, short) if width <= height else (short, long)
    target_height, target_width = recipe.resize
    if recipe.rule == "exact":
        return target_height, target_width
    if recipe.rule == "letterbox":
        scale = min(target_width / width, target_height / height)
        return max(1, round(height * scale)), max(1, round(width * scale))
    ratios = (height / target_height, width / target_width)
    ratio = max(ratios) if recipe.rule == "fit" else min(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def fit(
    image: Image.Image, recipe: ImageRecipe, admit: Admit = admit_usual_sizes, source: Source | None = None
) -> Image.Image:
    """Return the picture at the recipe's size.

    Args:
        image: the picture.
        recipe: says what is done to it.
        admit: is asked before a resize.
        source: what it is a part of; None: it is whole.

    Raises:
        PictureError: the recipe does not bring the picture to the size that the model takes.
        Exception: what `admit` raises.
    """
    source = source or Source(image.width, image.height, (0, 0, image.width, image.height))
    height, width = resized_size(recipe, source.height, source.width)
    if (width, height) != image.size:
        admit(width, height)
        image = _resized(image, width, height, recipe, source.box)
    if recipe.rule == "letterbox":
        top, left = (recipe.resize[0] - height) // 2, (recipe.resize[1] - width) // 2
        image = _window(image, -top, -left, recipe.resize, recipe)
    if recipe.crop is not None:
        top = _middle(image.height, recipe.crop[0], recipe.rounding)
        left = _middle(image.width, recipe.crop[1], recipe.rounding)
        image = _window(image, top, left, recipe.crop, recipe)
    if recipe.height not in (ANY_SIZE, image.height) or recipe.width not in (ANY_SIZE, image.width):
        wide, high = ("any" if side == ANY_SIZE else side for side in (recipe.width, recipe.height))
        why = f"this is what its rule {recipe.rule!r} makes of the picture"
        if recipe.rule == "none":
            why = "the model states no rule for resizing, send a picture of this size"
        raise PictureError(f"{image.width}x{image.height} pixels, expected {wide}x{high} (width x height): {why}")
    return image


def _resized(
    image: Image.Image, width: int, height: int, recipe: ImageRecipe, box: tuple[float, float, float, float]
) -> Image.Image:
    """Return the picture with other sides; Pillow's own filters widen with the reduction, its transforms do not."""
    filter = Image.Resampling[recipe.filter.upper()]
    if recipe.antialias or recipe.filter == "nearest":
        return image.resize((width, height), filter, box)
    return image.transform((width, height), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)


def _middle(size: int, kept: int, rounding: str) -> int:
    """Return where the middle begins on one axis; negative where the picture is smaller and has to be padded.

    Sources: torchvision's centre crop for `even`, that of Hugging Face's transformers for `down`.
    """
    if rounding == "down":
        return math.floor((size - kept) / 2)
    return round((size - kept) / 2) if size >= kept else -((kept - size) // 2)


def _window(image: Image.Image, top: int, left: int, size: tuple[int, ...], recipe: ImageRecipe) -> Image.Image:
    """Return height x width pixels from `top` and `left` on; what lies outside of the picture is padding."""
    height, width = size
    if (top, left, height, width) == (0, 0, image.height, image.width):
        return image
    if top >= 0 and left >= 0 and top + height <= image.height and left + width <= image.width:
        return image.crop((left, top, left + width, top + height))
    colour = recipe.padding[0] if image.mode == "L" else recipe.padding
    canvas = Image.new(image.mode, (width, height), colour)
    canvas.paste(image, (-left, -top))
    return canvas
