"""Which data a training takes, as it was asked for.

A run and a version keep it, so that the same can be asked for again.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from foldserve.format.errors import FormatError
from foldserve.format.image import ImageRecipe, read_recipe

from ..errors import ConfigError, DatasetError

DEFAULT_SHARE = 0.1
RESIZES = ("exact", "crop", "letterbox")
COLOURS = ("RGB", "grey")


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """What `--data` and the flags beside it say.

    Attributes:
        data: path of a folder or file; empty for Fashion-MNIST.
        val: path of a set of its own, or the share of each class that is held out, `0` for none; empty: the set that
            the data bring along, else a tenth.
        test: likewise; never `0`.
        split_seed: of the rows that are held out.
        image: how a picture becomes an image, in the form of the graph's metadata; None: by the three below.
        size: height x width of an image, such as 64x64; empty: that of the pictures, which have to have one size.
        resize: `exact` (the sides are stretched), `crop` (the middle of it) or `letterbox` (all of it, on black).
        colour: `RGB` or `grey`.
    """

    data: str = ""
    val: str = ""
    test: str = ""
    split_seed: int = 0
    image: Mapping[str, Any] | None = None
    size: str = ""
    resize: str = "exact"
    colour: str = "RGB"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def read(cls, stated: Mapping[str, Any]) -> Self:
        """Return the request that `as_dict` stated.

        Raises:
            TypeError, ValueError: it did not.
        """
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in stated.items() if name in known})

    @property
    def shares(self) -> tuple[float | None, float | None]:
        """Shares of validation and test where they are given as numbers; None where a path is, or nothing.

        Raises:
            ConfigError: a share is out of its range.
        """
        return _share("--val", self.val, may_be_nothing=True), _share("--test", self.test, may_be_nothing=False)

    def recipe(self, common_size: tuple[int, int] | None) -> ImageRecipe:
        """Return how a picture becomes an image.

        Args:
            common_size: height and width of all pictures, for when no size was given.

        Raises:
            ConfigError: size or recipe cannot be read.
        """
        if self.image is not None:
            return _stated(self.image)
        height, width = common_size if common_size and not self.size else _size(self.size)
        return picture_recipe(height, width, resize=self.resize, colour=self.colour)

    def absolute(self) -> Self:
        """Return the request with paths that hold in any folder."""
        val_share, test_share = self.shares
        return replace(
            self,
            data=_absolute(self.data),
            val=_absolute(self.val) if val_share is None else self.val,
            test=_absolute(self.test) if test_share is None else self.test,
        )

    @property
    def split(self) -> dict[str, Any] | None:
        """What a manifest says of how own data were split: no path, only shares; None for Fashion-MNIST."""
        if not self.data:
            return None
        val, test = self.shares
        return {
            "val": self.val if val is not None or not self.val else "own",
            "test": self.test if test is not None or not self.test else "own",
            "seed": self.split_seed,
        }

    @property
    def needs_common_size(self) -> bool:
        """Whether the pictures have to say their size."""
        return self.image is None and not self.size


def picture_recipe(height: int, width: int, *, resize: str = "exact", colour: str = "RGB") -> ImageRecipe:
    """Return the recipe for pictures of any size.

    Args:
        height: of an image, in pixels.
        width: of an image, in pixels.
        resize: one of `RESIZES`.
        colour: one of `COLOURS`.

    Raises:
        ConfigError: a size that no image has.
    """
    rule = {"exact": "exact", "crop": "cover", "letterbox": "letterbox"}[resize]
    try:
        return ImageRecipe(
            height=height,
            width=width,
            channels=1 if colour == "grey" else 3,
            colour=colour,
            rule=rule,
            resize=(height, width),
            crop=(height, width) if resize == "crop" else None,
            exif="apply",
            alpha="composite",
            sixteen_bit="scale",
        )
    except FormatError as err:
        raise ConfigError(f"--size {height}x{width}: {err}") from err


def read_image_file(path: Path) -> dict[str, Any]:
    """Return the picture recipe in a JSON file.

    Raises:
        ConfigError: it cannot be read, or is none that a training can use.
    """
    try:
        stated = json.loads(path.read_bytes())
    except (OSError, ValueError) as err:
        raise ConfigError(f"--image {path}: cannot be read as JSON: {err}") from err
    if not isinstance(stated, dict):
        raise ConfigError(f"--image {path}: expected an object with the keys of a picture recipe")
    return _stated(stated).as_dict()


def _stated(stated: Mapping[str, Any]) -> ImageRecipe:
    try:
        recipe = read_recipe(stated)
    except FormatError as err:
        raise ConfigError(f"--image: {err}") from err
    if recipe.layout != "CHW" or recipe.input != "image":
        raise ConfigError("--image: a training takes the layout CHW, and its input is named image")
    return recipe


def _absolute(text: str) -> str:
    return str(Path(text).expanduser().absolute()) if text else ""


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) not in (1, 2) or not all(side.isdecimal() and 0 < int(side) <= 4096 for side in sides):
        raise ConfigError(f"--size {text}: expected HEIGHTxWIDTH in pixels, such as 64x64, up to 4096")
    return int(sides[0]), int(sides[-1])


def _share(flag: str, text: str, *, may_be_nothing: bool) -> float | None:
    try:
        share = float(text)
    except ValueError:
        return None
    if not (0 < share < 1 or (share == 0 and may_be_nothing)):
        raise ConfigError(f"{flag} {text}: expected a share above 0 and below 1, or the path of a set of its own")
    return share


def existing(flag: str, text: str) -> Path:
    """Return the path that a flag names.

    Raises:
        DatasetError: nothing is there.
    """
    path = Path(text).expanduser()
    if not path.exists():
        raise DatasetError(f"{flag} {text}: no such file or folder")
    return path
