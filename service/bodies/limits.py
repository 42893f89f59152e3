"""How much one request may hold."""

from collections.abc import Callable
from dataclasses import dataclass

from foldserve.format.picture_types import USUAL_FORMATS

from ..errors import BodyTooLarge, InvalidInput, TooManyRows
from ..settings import Settings

QUICK_BYTES = 65_536  # parsed within a millisecond or two: an event loop can afford to do it itself
_USUAL_CROP = 4  # times as many pixels as are kept: a resize to that is as quick as reading the body
WHOLE_JSON_BYTES = 262_144  # parsed in one go; a longer document is read in slices


@dataclass(frozen=True)
class Limits:
    """How much one request may hold.

    Args:
        rows: images in one body.
        pixels: width x height of one encoded image, checked before it is decoded; see `PixelBudget` for their sum.
        scans: of one JPEG file, each of which goes over all its pixels.
        side: pixels of a height or width that the model leaves free.
        beat: called while files are decoded; raises when nobody waits for them any more.
        formats: of files that are decoded.
    """

    rows: int
    pixels: int
    scans: int = 64
    side: int = 4_096
    beat: Callable[[], None] | None = None
    formats: tuple[str, ...] = USUAL_FORMATS

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """Return the limits that the settings state."""
        return cls(
            settings.max_rows,
            settings.max_image_pixels,
            settings.max_image_scans,
            side=settings.max_free_axis,
            formats=settings.image_formats,
        )

    def pixel_budget(self) -> "PixelBudget":
        """Return what one request may have decoded."""
        return PixelBudget(self.pixels, self.scans, self.beat, self.formats)


class PixelBudget:
    """The pixels that one request may have decoded: a file of 6 KB can hold 49 million, and a body 10,000 such files.

    Args:
        per_image: width x height of one image; all images of a request together may have `IMAGES` times as many.
        scans: of one JPEG file.
        beat: called from time to time while a file is decoded.
        formats: of files that are decoded.
    """

    IMAGES = 8

    def __init__(
        self,
        per_image: int,
        scans: int = 64,
        beat: Callable[[], None] | None = None,
        formats: tuple[str, ...] = USUAL_FORMATS,
    ) -> None:
        self.per_image = per_image
        self.scans = scans
        self.formats = formats
        self.beat = beat or _no_beat
        self.left = per_image * self.IMAGES

    @property
    def expected(self) -> str:
        """The limit of one image, for a message."""
        return f"expected at most {self.per_image} in one image: send it smaller"

    def take(self, width: int, height: int, place: str) -> None:
        """Count an image that is about to be decoded.

        Raises:
            InvalidInput: it has too many pixels.
            BodyTooLarge: it has too many together with those before it.
        """
        pixels = width * height
        if pixels > self.per_image:
            raise InvalidInput(f"{place}: {width}x{height} pixels, {self.expected}")
        if pixels > self.left:
            most = self.per_image * self.IMAGES
            raise BodyTooLarge(
                f"{place}: more than {most} pixels in one request, send the images in several or smaller"
            )
        self.left -= pixels

    def take_resized(self, width: int, height: int, usual: int, place: str) -> None:
        """Count what an image is about to be resized to, where that is much more than the model takes.

        Args:
            width: after the resize, before the crop.
            height: after the resize, before the crop.
            usual: pixels that the model takes.
            place: how a message names the image.

        Raises:
            InvalidInput: too many pixels, as of an image that is very long and flat.
            BodyTooLarge: too many together with those before it.
        """
        if width * height > self.per_image:
            raise InvalidInput(f"{place}: {width}x{height} pixels after the model's resize, {self.expected}")
        if width * height > _USUAL_CROP * usual:
            self.take(width, height, place)


def _no_beat() -> None:
    """Nothing watches."""


def check_rows(rows: int, limits: Limits) -> None:
    """Refuse more images than one request may hold."""
    if rows > limits.rows:
        raise TooManyRows(f"{rows} images, expected at most {limits.rows} in one request: send them in several")
