"""The steps of a recipe, one after the other: a file, or a picture in memory -> the pixels of one row."""

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from foldserve.format.image import ImageRecipe

from .colours import flatten, round_sixteen_bits
from .geometry import Admit, PictureError, Source, admit_usual_sizes, fit, resized_size

_LEAST_GAP = 2.75  # times the resize that a picture decoded at a part of its size still is
_PARTS = (8, 4, 2)
_ORIENTATION = 0x0112  # the tag of EXIF
# What EXIF's orientations do: whether the axes change places, and which of the new ones run backwards then.
_TURNS = {
    2: (False, True, False), 3: (False, True, True), 4: (False, False, True), 5: (True, False, False),
    6: (True, True, False), 7: (True, True, True), 8: (True, False, True),
}  # fmt: skip
_NO_TURN = (False, False, False)
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
        whole = scale(image, recipe)
        image.load()
    except UnidentifiedImageError as err:  # its text names an object in memory
        raise PictureError("not a whole PNG or JPEG image") from err
    except Exception as err:  # a decoder raises nearly anything
        raise PictureError(f"not a whole PNG or JPEG image: {err}") from err
    return prepare(image, recipe, data, whole=whole)


class Whole(NamedTuple):
    """What a picture is a part of that was decoded at a half, quarter or eighth of its size.

    Attributes:
        part: 2, 4 or 8.
        width: of the whole, in pixels, as the file has it.
        height: the same.
    """

    part: int
    width: int
    height: int


def scale(image: ImageFile, recipe: ImageRecipe) -> Whole | None:
    """Have a JPEG decoded at a part of its size where the recipe allows that, and enough is left for its resize.

    Args:
        image: opened and not loaded.
        recipe: of the model.

    Returns:
        For `prepare`, which measures the whole; None where it is decoded in whole.
    """
    if recipe.decoding != "scaled" or recipe.rule == "none" or recipe.is_free or image.format != "JPEG":
        return None
    width, height = image.size
    is_turned = _turn(image, recipe)[0]
    turned = (width, height) if is_turned else (height, width)
    ratio = min(side / target for side, target in zip(turned, resized_size(recipe, *turned), strict=True))
    part = next((part for part in _PARTS if ratio / part >= _LEAST_GAP), 1)
    if part == 1 or image.draft(None, (width // part, height // part)) is None:
        return None
    return Whole(round(width / image.width), width, height)


def _turn(image: Image.Image, recipe: ImageRecipe) -> tuple[bool, bool, bool]:
    orientation = image.getexif().get(_ORIENTATION, 1) if recipe.exif == "apply" else 1
    return _TURNS.get(orientation, _NO_TURN)


def _source(image: Image.Image, whole: Whole, turn: tuple[bool, bool, bool]) -> Source:
    """Return size and place of the whole in a turned image; its last row and column may lie in it in part."""
    is_turned, *backwards = turn
    size = (whole.height, whole.width) if is_turned else (whole.width, whole.height)
    begins = [
        decoded - side / whole.part if is_backwards else 0.0
        for decoded, side, is_backwards in zip(image.size, size, backwards, strict=True)
    ]
    ends = [begin + side / whole.part for begin, side in zip(begins, size, strict=True)]
    return Source(size[0], size[1], (begins[0], begins[1], ends[0], ends[1]))


def prepare(
    image: Image.Image,
    recipe: ImageRecipe,
    data: bytes | None = None,
    admit: Admit = admit_usual_sizes,
    whole: Whole | None = None,
) -> NDArray[np.uint8]:
    """Return the pixels of a loaded picture, brought to what the model takes.

    Each step is left out where it has nothing to do: a picture of the right size and colour arrives byte for byte.

    Args:
        image: of any mode; may be changed.
        recipe: of the model.
        data: the file that `image` was opened from, for the lower bytes of 16-bit colour; None: made in memory.
        admit: is asked before a resize.
        whole: what `scale` has said of the file.

    Returns:
        uint8 array of the form `recipe.shape`, contiguous.

    Raises:
        PictureError: not of a size that the recipe takes.
        Exception: what `admit` raises.
    """
    if data is not None and isinstance(image, ImageFile) and recipe.sixteen_bit == "scale":
        round_sixteen_bits(image, data, recipe)
    turn = _NO_TURN if whole is None else _turn(image, recipe)
    if recipe.exif == "apply":
        ImageOps.exif_transpose(image, in_place=True)
    source = None if whole is None else _source(image, whole, turn)
    fitted = fit(flatten(image, recipe), recipe, admit, source)
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
