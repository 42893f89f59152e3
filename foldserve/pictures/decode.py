"""The steps of a recipe, one after the other: a file, or a picture in memory -> the pixels of one row."""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from foldserve.format.image import ImageRecipe

from .colours import flatten, round_sixteen_bits
from .geometry import Admit, PictureError, admit_usual_sizes, fit, resized_size

_REDUCING_GAP = 2.0
FORMATS = ("PNG", "JPEG")  # by content; every decoder more is a door more


def decode(data: bytes, recipe: ImageRecipe) -> NDArray[np.uint8]:
    """Return the pixels of a file of one's own; for a stranger's there are limits in the service.

    Args:
        data: the file, PNG or JPEG; the content decides, not a name.
        recipe: of the model.

    Returns:
        uint8 array of the form `recipe.shape`, contiguous.

    Raises:
        PictureError: not a PNG or JPEG, truncated or damaged, or not of a size that the recipe takes.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        scale(image, recipe)
        image.load()
    except UnidentifiedImageError as err:  # its text names an object in memory
        raise PictureError("not a whole PNG or JPEG image") from err
    except Exception as err:  # a decoder raises nearly anything
        raise PictureError(f"not a whole PNG or JPEG image: {err}") from err
    return prepare(image, recipe, data)


def scale(image: ImageFile, recipe: ImageRecipe) -> None:
    """Have a JPEG decoded at a part of its size where the recipe allows that, and enough is left for its resize.

    Args:
        image: opened and not loaded.
        recipe: of the model.

    Source: the reducing gap of Pillow's thumbnail, from which on a resize is as good as one of the whole picture.
    """
    if recipe.decoding != "scaled" or recipe.rule == "none" or recipe.is_free:
        return
    least = math.ceil(_REDUCING_GAP * max(resized_size(recipe, image.height, image.width)))  # it may lie on its side
    image.draft(None, (least, least))


def prepare(
    image: Image.Image, recipe: ImageRecipe, data: bytes | None = None, admit: Admit = admit_usual_sizes
) -> NDArray[np.uint8]:
    """Return the pixels of a loaded picture, brought to what the model takes.

    Each step is left out where it has nothing to do: a picture of the right size and colour arrives byte for byte.

    Args:
        image: of any mode; may be changed.
        recipe: of the model.
        data: the file that `image` was opened from, for the lower bytes of 16-bit colour; None: made in memory.
        admit: is asked before a resize.

    Returns:
        uint8 array of the form `recipe.shape`, contiguous.

    Raises:
        PictureError: not of a size that the recipe takes.
        Exception: what `admit` raises.
    """
    if data is not None and isinstance(image, ImageFile) and recipe.sixteen_bit == "scale":
        round_sixteen_bits(image, data, recipe)
    if recipe.exif == "apply":
        ImageOps.exif_transpose(image, in_place=True)
    fitted = fit(flatten(image, recipe), recipe, admit)
    if recipe.is_grey and fitted.mode != "L":
        fitted = fitted.convert("L")
    return in_layout(np.asarray(fitted, dtype=np.uint8), recipe)


def in_layout(pixels: NDArray[np.uint8], recipe: ImageRecipe) -> NDArray[np.uint8]:
    """Return (H, W) or (H, W, 3) in RGB with the model's channels, in their order and on their axis."""
    if pixels.ndim == 2:
        pixels = pixels[..., None] if recipe.channels == 1 else np.repeat(pixels[..., None], 3, axis=-1)
    elif recipe.colour == "BGR":
        pixels = pixels[..., ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if recipe.layout == "CHW" else pixels)
