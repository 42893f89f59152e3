"""The colours of a picture: 16 bits, transparency, palettes and CMYK -> plain grey or RGB of 8 bits."""

import io
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from foldserve.format.image import ImageRecipe

_STRIP_PIXELS = 65_536
# Bit depth and colour type of a PNG -> how its lower bytes are read: colour, colour with alpha, grey with alpha.
_COLOUR_FORMS = {b"\x10\x02": "RGB;16L", b"\x10\x06": "RGBA;16L", b"\x10\x04": "RGBA"}

Mode = Literal["L", "RGB"]


def flatten(image: Image.Image, recipe: ImageRecipe) -> Image.Image:
    """Return a loaded picture without transparency, as `RGB`, or as `L` where it is to be grey before the resize."""
    mode: Mode = "L" if recipe.is_grey and recipe.grey == "before" else "RGB"
    if recipe.sixteen_bit == "scale" and image.mode.startswith("I"):
        image = _eight_bits(image, recipe)
    if recipe.alpha == "composite" and image.has_transparency_data:
        colour = image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
        backdrop = Image.new(mode, image.size, recipe.background[0] if mode == "L" else recipe.background)
        return Image.composite(colour.convert(mode), backdrop, colour.getchannel("A"))
    if recipe.alpha == "drop":
        image.info.pop("transparency", None)  # it changes no pixel, and Pillow warns of some of its forms
        image = image if image.mode == "RGB" else image.convert("RGB")  # as those do who load pictures for a training
    elif image.mode in ("CMYK", "YCbCr"):
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)  # RGB -> L is ITU-R 601: 0.299 R + 0.587 G + 0.114 B


def round_sixteen_bits(image: ImageFile, data: bytes, recipe: ImageRecipe) -> None:
    """Put rounded values in the place of the upper bytes, which are all that Pillow reads of 16-bit colour.

    The lower bytes are read as if the file were little-endian, where they would be the upper ones.

    Args:
        image: loaded; is changed.
        data: the file that it was opened from.
        recipe: of 16 bits that are scaled; its background shows where one colour means "nothing here".
    """
    form = _COLOUR_FORMS.get(data[24:26]) if image.format == "PNG" else None
    if form is None:
        return
    lower = Image.open(io.BytesIO(data), formats=("PNG",))
    lower.tile = [tile._replace(args=form) for tile in lower.tile]
    lower.load()
    key = image.info.pop("transparency", None)
    for box in _strips(image):
        high, low = np.asarray(image.crop(box)), np.asarray(lower.crop(box))
        if form == "RGBA":  # grey, alpha: both bytes of both
            high, low = low[..., [0, 0, 0, 2]], low[..., [1, 1, 1, 3]]
        difference = low.astype(np.int16) - high
        rounded = high + (difference > 128) - (difference < -128)  # (256 high + low + 128) // 257
        if isinstance(key, tuple) and recipe.alpha == "composite":  # this one colour means "nothing here"
            rounded[((high.astype(np.uint16) << 8 | low) == key).all(axis=-1)] = recipe.background
        image.paste(Image.fromarray(rounded.astype(np.uint8), image.mode), box)


def _eight_bits(image: Image.Image, recipe: ImageRecipe) -> Image.Image:
    """Return a 16-bit grey picture as 8 bits, rounded; Pillow's own conversion would clip at 255 instead of scaling."""
    background = recipe.background
    key = image.info.get("transparency") if recipe.alpha == "composite" else None
    is_coloured = isinstance(key, int) and len(set(background)) > 1
    result = Image.new("RGB" if is_coloured else "L", image.size)
    for box in _strips(image):
        values = np.asarray(image.crop(box)).astype(np.int32)
        grey = ((values + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257
        if is_coloured:
            grey = np.repeat(grey[..., None], 3, axis=-1)
        if isinstance(key, int):  # PNG: this one value means "nothing here"
            grey[values == key] = background if is_coloured else background[0]
        result.paste(Image.fromarray(grey), box)
    return result


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes of whole rows, so that what is computed for one takes little memory."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)
