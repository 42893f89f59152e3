"""A PNG or JPEG file of any size and colour -> the pixels that a model expects, as its own file describes them.

The border for image files: what is not an image, is too large or cannot be decoded is refused here. Values stay 0-255
and are never inverted: scaling belongs to the graph, and whether light means ink is for the sender to know.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin
from PIL.ImageFile import ImageFile

from ..errors import DeadlineExceeded, InvalidInput
from .limits import PixelBudget
from .picture_header import has_more_scans

if TYPE_CHECKING:
    from foldserve.format.image import ImageSpec

FORMATS = ("PNG", "JPEG")  # by content; every decoder more is a door more

_BLOCK_BYTES = 8_192  # of a file that its decoder gets at one time
_STRIP_PIXELS = 65_536
# Bit depth and colour type of a PNG -> how its lower bytes are read: colour, colour with alpha, grey with alpha.
_COLOUR_FORMS = {b"\x10\x02": "RGB;16L", b"\x10\x06": "RGBA;16L", b"\x10\x04": "RGBA"}

PngImagePlugin.MAX_TEXT_MEMORY = PngImagePlugin.MAX_TEXT_CHUNK  # of inflated texts; 64 times as much else

# Below 179 megapixels Pillow only warns of a decompression bomb, and goes on.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def decode_image(data: bytes, spec: ImageSpec, budget: PixelBudget, place: str = "image") -> NDArray[np.uint8]:
    """Return the pixels of an image file, fitted to what the model takes.

    The steps, each left out where it has nothing to do: EXIF orientation, transparency over `spec.background`, grey
    after ITU-R 601 (or RGB for a model of three channels), reduction by area averaging with the aspect kept, padding
    with `spec.background`. A grey image of the right size arrives byte for byte.

    Args:
        data: the file, PNG or JPEG; the content decides, not a name.
        spec: the model's height, width, channels (1 or 3) and background (0-255).
        budget: the pixels that the request may still have decoded.
        place: how a message names this image, for example "instances[3]".

    Returns:
        uint8 array (C, H, W).

    Raises:
        InvalidInput: not a PNG or JPEG, too many pixels, truncated or damaged.
        BodyTooLarge: too many pixels together with the images before it.
    """
    image = open_image(data, budget, place)
    try:
        image.load()
        _round_sixteen_bits(image, data, spec)
        ImageOps.exif_transpose(image, in_place=True)
        pixels = _fit(_flatten(image, spec), spec)
    except DeadlineExceeded:
        raise
    except Exception as err:  # a hostile file makes a decoder raise nearly anything: the file is at fault, not we
        raise InvalidInput(f"{place}: the {image.format} file is truncated or damaged, send it whole") from err
    array = np.asarray(pixels, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))  # (C, H, W)


def open_image(data: bytes, budget: PixelBudget, place: str = "image") -> ImageFile:
    """Return the opened file with only its header read, once its format and its size are acceptable.

    Raises:
        InvalidInput: empty, not a PNG or JPEG, or too many pixels.
        BodyTooLarge: too many pixels together with the images before it.
    """
    if not data:
        raise InvalidInput(f"{place}: 0 bytes, expected a PNG or JPEG file")
    try:
        image = Image.open(_Watched(data, budget.beat), formats=FORMATS)
    except DeadlineExceeded:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise InvalidInput(f"{place}: more than 89 million pixels, {budget.expected}") from err
    except Exception as err:
        raise InvalidInput(f"{place}: not a PNG or JPEG image, expected the bytes of one") from err
    budget.take(image.width, image.height, place)
    if image.format != "PNG" and has_more_scans(data, budget.scans):
        raise InvalidInput(
            f"{place}: more than {budget.scans} scans, expected a baseline or progressive JPEG with fewer"
        )
    image.decodermaxblock = _BLOCK_BYTES
    return image


class _Watched(io.BytesIO):
    """A file that says each time it is read that its decoder goes on, and can end it so."""

    def __init__(self, data: bytes, beat: Callable[[], None]) -> None:
        super().__init__(data)
        self._beat = beat

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        self._beat()
        return super().read(size)


def _round_sixteen_bits(image: ImageFile, data: bytes, spec: ImageSpec) -> None:
    """Put rounded values in the place of the upper bytes, which are all that Pillow reads of 16-bit colour.

    The lower bytes are read as if the file were little-endian, where they would be the upper ones.
    """
    form = _COLOUR_FORMS.get(data[24:26]) if image.format == "PNG" else None
    if form is None:
        return
    lower = Image.open(io.BytesIO(data), formats=FORMATS)
    lower.tile = [tile._replace(args=form) for tile in lower.tile]
    lower.load()
    key = image.info.pop("transparency", None)
    for box in _strips(image):
        high, low = np.asarray(image.crop(box)), np.asarray(lower.crop(box))
        if form == "RGBA":  # grey, alpha: both bytes of both
            high, low = low[..., [0, 0, 0, 2]], low[..., [1, 1, 1, 3]]
        difference = low.astype(np.int16) - high
        rounded = high + (difference > 128) - (difference < -128)  # (256 high + low + 128) // 257
        if isinstance(key, tuple):  # this one colour means "nothing here"
            rounded[((high.astype(np.uint16) << 8 | low) == key).all(axis=-1)] = spec.background
        image.paste(Image.fromarray(rounded.astype(np.uint8), image.mode), box)


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes of whole rows, so that what is computed for one takes little memory."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _flatten(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Return the image without transparency, in the model's own mode (`L` or `RGB`)."""
    mode: Literal["L", "RGB"] = "L" if spec.channels == 1 else "RGB"
    if image.mode.startswith("I"):
        image = _eight_bits(image, spec)
    if image.has_transparency_data:
        colour = image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
        backdrop = Image.new(mode, image.size, _background(mode, spec))
        return Image.composite(colour.convert(mode), backdrop, colour.getchannel("A"))
    if image.mode in ("CMYK", "YCbCr"):
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)  # RGB -> L is ITU-R 601: 0.299 R + 0.587 G + 0.114 B


def _eight_bits(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Return a 16-bit grey image as 8 bits, rounded; Pillow's own conversion would clip at 255 instead of scaling."""
    result = Image.new("L", image.size)
    key = image.info.get("transparency")
    for box in _strips(image):
        values = np.asarray(image.crop(box)).astype(np.int32)
        grey = ((values + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257
        if isinstance(key, int):  # PNG: this one value means "nothing here"
            grey[values == key] = spec.background
        result.paste(Image.fromarray(grey), box)
    return result


def _fit(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Return the image at the model's size: aspect kept, area averaging, centred on the background."""
    target = (spec.width, spec.height)
    if image.size == target:
        return image
    scale = min(spec.width / image.width, spec.height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # BOX weighs each source pixel by the area it covers; the other filters ring or skip pixels when they reduce much.
    resized = image.resize(size, Image.Resampling.BOX)
    if size == target:
        return resized
    canvas = Image.new(image.mode, target, _background(image.mode, spec))
    canvas.paste(resized, ((spec.width - size[0]) // 2, (spec.height - size[1]) // 2))
    return canvas


def _background(mode: str, spec: ImageSpec) -> int | tuple[int, ...]:
    """Return the model's background in the terms of an image's mode."""
    return spec.background if mode == "L" else (spec.background,) * 3
