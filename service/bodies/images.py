"""A stranger's PNG or JPEG file -> the pixels that a model expects, as the recipe in its own file says.

The border for image files: what is not an image, is too large or cannot be decoded is refused here. The steps
themselves are those of `foldserve.pictures`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from PIL.ImageFile import ImageFile

from foldserve.format.picture_types import listed
from foldserve.pictures import PictureError, prepare, scale

from ..errors import InvalidInput, ServiceError
from .limits import PixelBudget
from .picture_header import has_more_scans

if TYPE_CHECKING:
    from foldserve.format.image import ImageRecipe

_TIFF_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")
_TIFF_PACKINGS = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate")
_BLOCK_BYTES = 8_192  # of a file that its decoder gets at one time
# A decoder looks at each chunk of a PNG and each segment of a JPEG in Python; writers make them of 4 KiB at least.
_FEWEST_READS, _BYTES_OF_A_READ = 10_000, 256

PngImagePlugin.MAX_TEXT_MEMORY = PngImagePlugin.MAX_TEXT_CHUNK  # of inflated texts; 64 times as much else

# It would go to standard error as it stands, which is no line of a log, once for each text that a stranger thinks of.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# Below 179 megapixels Pillow only warns of a decompression bomb, and goes on.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def decode_image(data: bytes, spec: ImageRecipe, budget: PixelBudget, place: str = "image") -> NDArray[np.uint8]:
    """Return the pixels of an image file, brought to what the model takes.

    Args:
        data: the file, of a format that the budget names; the content decides, not a name.
        spec: the model's picture recipe.
        budget: the pixels that the request may still have decoded.
        place: how a message names this image, for example "instances[3]".

    Returns:
        uint8 array of the form `spec.shape`; its own size where that is free.

    Raises:
        InvalidInput: not of such a format, too many pixels, truncated or damaged, or of a size that the recipe refuses.
        BodyTooLarge: too many pixels together with the images before it.
    """
    image = open_image(data, budget, place)
    usual = 0 if spec.is_free else spec.height * spec.width

    def admit(width: int, height: int) -> None:
        budget.take_resized(width, height, usual, place)

    try:
        whole = scale(image, spec)
        image.load()
        return prepare(image, spec, data, admit, whole)
    except ServiceError:
        raise
    except PictureError as err:
        raise InvalidInput(f"{place}: {err}") from err
    except Exception as err:  # a hostile file makes a decoder raise nearly anything: the file is at fault, not we
        raise InvalidInput(f"{place}: the {image.format} file is truncated or damaged, send it whole") from err


def open_image(data: bytes, budget: PixelBudget, place: str = "image") -> ImageFile:
    """Return the opened file with only its header read, once its format and its size are acceptable.

    Raises:
        InvalidInput: empty, not of a format that is decoded, or too many pixels.
        BodyTooLarge: too many pixels together with the images before it.
    """
    expected = listed(budget.formats)
    if not data:
        raise InvalidInput(f"{place}: 0 bytes, expected a {expected} file")
    try:
        image = Image.open(_Watched(data, budget.beat, place), formats=[name.upper() for name in budget.formats])
    except ServiceError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise InvalidInput(f"{place}: more than 89 million pixels, {budget.expected}") from err
    except Exception as err:
        raise InvalidInput(f"{place}: not a {expected} image, expected the bytes of one") from err
    budget.take(image.width, image.height, place)
    _refuse_unusual_tiff(image, place)
    if data.startswith(b"\xff\xd8") and has_more_scans(data, budget.scans, _most_reads(data)):
        raise InvalidInput(
            f"{place}: more than {budget.scans} scans, or more segments than a file of its size has, expected a "
            "baseline or progressive JPEG with fewer"
        )
    image.decodermaxblock = _BLOCK_BYTES
    if image.format == "TIFF":
        _hush_libtiff()
    return image


@functools.cache
def _hush_libtiff() -> None:
    """Keep the library behind Pillow from writing to standard error what it thinks of a stranger's file."""
    with contextlib.suppress(OSError, AttributeError):
        mapped = Path("/proc/self/maps").read_text().splitlines()
        for path in {line.split(maxsplit=5)[-1] for line in mapped if "libtiff" in line}:
            library = ctypes.CDLL(path)
            for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
                getattr(library, name)(None)


def _refuse_unusual_tiff(image: ImageFile, place: str) -> None:
    """Refuse what a TIFF file may be beside a picture of 8 or 16 bits: floats, other colour spaces, a JPEG inside."""
    if image.format != "TIFF":
        return
    if image.mode not in _TIFF_MODES:
        raise InvalidInput(f"{place}: a TIFF file of mode {image.mode}, expected one of {', '.join(_TIFF_MODES)}")
    packing = str(image.info.get("compression", "raw"))
    if packing not in _TIFF_PACKINGS:
        expected = ", ".join(_TIFF_PACKINGS)
        raise InvalidInput(f"{place}: a TIFF file packed by {packing[:40]}, expected one of {expected}")


class _Watched(io.BytesIO):
    """A file that says each time it is read that its decoder goes on, and can end it so, as many tiny parts do."""

    def __init__(self, data: bytes, beat: Callable[[], None], place: str) -> None:
        super().__init__(data)
        self._beat = beat
        self._place = place
        self._reads_left = _most_reads(data)

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes.

        Raises:
            InvalidInput: it was read more often than a file of its size has to be.
        """
        self._beat()
        self._reads_left -= 1
        if self._reads_left < 0:
            raise InvalidInput(
                f"{self._place}: more chunks or segments than one of {len(self.getbuffer())} bytes has, save it anew"
            )
        return super().read(size)


def _most_reads(data: bytes) -> int:
    return _FEWEST_READS + len(data) // _BYTES_OF_A_READ
