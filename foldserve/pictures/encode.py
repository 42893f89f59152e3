"""The way back: the pixels of a row -> a picture that people can look at, or a file of it."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foldserve.format.image import ImageRecipe


def as_image(row: NDArray[np.uint8], recipe: ImageRecipe) -> Image.Image:
    """Return a row of the form `recipe.shape` as a picture, grey or RGB: what `in_layout` undone gives."""
    pixels = row.transpose(1, 2, 0) if recipe.layout == "CHW" else row
    if recipe.is_grey:
        return Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
    return Image.fromarray(np.ascontiguousarray(pixels[..., ::-1] if recipe.colour == "BGR" else pixels))


def encoded(image: Image.Image, kind: str, **options: bool | int) -> bytes:
    """Return a picture as a file; `kind` and `options` are those of Pillow's `save`."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_png(row: NDArray[np.uint8], recipe: ImageRecipe) -> bytes:
    """Return a row of the form `recipe.shape` as a PNG file that holds its pixels as they are."""
    return encoded(as_image(row, recipe), "PNG")
