"""How a picture becomes a row of a model's input; the graph's metadata states it, `foldserve.pictures` carries it out.

The steps, in this order: orientation, transparency, colour, resize, crop or padding, order of channels and axes. The
graph takes the result as whole pixels 0-255: range, mean and standard deviation are arithmetic of the graph.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import FormatError

CHOICES = {
    "colour": ("RGB", "BGR", "grey"),
    "layout": ("CHW", "HWC"),
    "rule": ("none", "shorter", "exact", "letterbox", "fit", "cover"),
    "filter": ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"),
    "rounding": ("even", "down"),
    "grey": ("before", "after"),
    "exif": ("apply", "ignore"),
    "alpha": ("composite", "drop"),
    "sixteen_bit": ("scale", "clip"),
    "decoding": ("exact", "scaled"),
    "polarity": (None, "light-on-dark", "dark-on-light"),
}

_FIRST_FORMAT = ("input", "height", "width", "channels", "range", "polarity", "background", "grey")
_MOST_PIXELS_A_SIDE = 65_536
ANY_SIZE = -1  # height or width that the graph leaves open, as the protocol writes it


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecipe:
    """What is done with a picture, and what the graph takes.

    Attributes:
        input: name of the graph's input, uint8, whose rows have the form `shape`.
        height: of the result, in pixels; -1 where the graph takes any: it is what the rule makes of the picture.
        width: of the result, in pixels, or -1.
        channels: 1 or 3 of the result; three of a grey picture are equal.
        colour: `RGB`, `BGR` (the same, last channel first) or `grey` (ITU-R 601: 0.299 R + 0.587 G + 0.114 B).
        layout: `CHW` or `HWC`, the order of the axes in a row of the input and in raw bytes.
        rule: `shorter` (the shorter side becomes `resize[0]`, the longer one keeps the aspect, rounded down), `exact`
            (to `resize`), `letterbox` (inside `resize`, aspect kept, centred on `padding`), `fit` and `cover` (the
            aspect kept, inside or around `resize`, to be cropped) or `none` (another size is refused).
        resize: height and width in pixels, or the one number of `shorter`; empty for `none`.
        filter: of Pillow.
        antialias: whether the filter widens with the reduction; without it only nearest and bilinear.
        crop: height and width of the middle that is kept, padded where the picture is smaller; None: all.
        rounding: of half a pixel when the middle is cut out: to the `even` neighbour (torchvision) or `down`.
        padding: red, green, blue of what a picture does not fill.
        grey: whether colour becomes grey `before` or `after` the resize.
        exif: whether the orientation that a camera noted is applied.
        alpha: `composite` lays a transparent picture over `background`; `drop` forgets how transparent it is.
        background: red, green, blue below a transparent picture.
        sixteen_bit: `scale` rounds 0-65535 to 0-255; `clip` does as Pillow's `convert`: grey above 255 is white, of
            colour the upper byte counts.
        decoding: `exact`, or `scaled`: a JPEG that is much larger than its resize may be decoded at a half, quarter or
            eighth of its size, by its own transform; two to five times as fast for a photograph, values move by a few.
        polarity: what light means, for people; nothing is inverted.

    Raises:
        FormatError: a value is none of these, or the steps do not end at height x width.
    """

    input: str = "image"
    height: int
    width: int
    channels: int = 3
    colour: str = "RGB"
    layout: str = "CHW"
    rule: str = "none"
    resize: tuple[int, ...] = ()
    filter: str = "bilinear"
    antialias: bool = True
    crop: tuple[int, int] | None = None
    rounding: str = "even"
    padding: tuple[int, int, int] = (0, 0, 0)
    grey: str = "before"
    exif: str = "ignore"
    alpha: str = "drop"
    background: tuple[int, int, int] = (0, 0, 0)
    sixteen_bit: str = "clip"
    decoding: str = "exact"
    polarity: str | None = None

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise _refusal(name, getattr(self, name), f"one of {', '.join(map(str, choices))}")
        if not isinstance(self.input, str) or not isinstance(self.antialias, bool):
            raise FormatError(f"image recipe: input is {self.input!r} and antialias {self.antialias!r}")
        self._check_sizes()
        self._check_colours()
        if not self.antialias and self.filter not in ("nearest", "bilinear"):
            raise _refusal("filter", self.filter, "nearest or bilinear without antialiasing")
        reached = self._reached()
        if reached is not None and reached != (self.height, self.width):
            raise FormatError(
                f"image recipe: its steps end at {reached[0]} x {reached[1]} pixels (height x width), "
                f"the model takes {self.height} x {self.width}"
            )

    def _check_sizes(self) -> None:
        stated = {name: () if size == ANY_SIZE else (size,) for name, size in self._sides().items()}
        sizes = stated | {"resize": self.resize, "crop": self.crop or ()}
        for name, size in sizes.items():
            if not isinstance(size, tuple) or not all(_is_side(side) for side in size):
                raise _refusal(name, size, f"whole numbers of pixels, 1 to {_MOST_PIXELS_A_SIDE}")
        if self.crop is not None and len(self.crop) != 2:
            raise _refusal("crop", self.crop, "height and width")
        numbers = {"none": 0, "shorter": 1}.get(self.rule, 2)
        if len(self.resize) != numbers:
            raise _refusal("resize", self.resize, f"{numbers} numbers for rule {self.rule}")

    def _sides(self) -> dict[str, int]:
        return {"height": self.height, "width": self.width}

    def _check_colours(self) -> None:
        if self.channels not in (1, 3) or isinstance(self.channels, bool) or (self.channels == 1) > self.is_grey:
            raise _refusal("channels", self.channels, "3, or 1 with colour grey")
        for name in ("padding", "background"):
            colour = getattr(self, name)
            if not isinstance(colour, tuple) or len(colour) != 3 or not all(_is_byte(value) for value in colour):
                raise _refusal(name, colour, "red, green and blue, each 0 to 255")
            if self.is_grey and len(set(colour)) > 1:
                raise _refusal(name, colour, "three equal values for a grey picture")

    def _reached(self) -> tuple[int, int] | None:
        """Return height and width after the steps, None where they depend on the picture."""
        if self.crop is not None:
            return self.crop
        if self.rule in ("exact", "letterbox"):
            return self.resize[0], self.resize[1]
        if self.rule == "none" or self.is_free:
            return None
        raise FormatError(
            f"image recipe: rule {self.rule} without a crop leaves a size that depends on the picture; "
            "add crop, or give height and width of an exact resize"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a row of the graph's input, in its own layout; -1 for a side of any size."""
        size = (self.height, self.width)
        return (self.channels, *size) if self.layout == "CHW" else (*size, self.channels)

    @property
    def is_free(self) -> bool:
        """Whether height or width of the result depend on the picture."""
        return ANY_SIZE in (self.height, self.width)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return whether a row of the graph's input may have this shape."""
        return len(shape) == 3 and all(
            stated in (ANY_SIZE, size) for stated, size in zip(self.shape, shape, strict=True)
        )

    @property
    def is_grey(self) -> bool:
        """Whether colour is left out."""
        return self.colour == "grey"

    @property
    def may_resize(self) -> bool:
        """Whether a picture of another size is taken."""
        return self.rule != "none" or self.crop is not None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; without the usual decoding, of which earlier releases do not know."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return values if self.decoding != "exact" else {n: value for n, value in values.items() if n != "decoding"}


def first_format_recipe(
    height: int,
    width: int,
    channels: int = 1,
    *,
    input: str = "image",
    background: int = 0,
    polarity: str = "light-on-dark",
) -> ImageRecipe:
    """Return what format 1 says of a picture: reduced by area into a box with its aspect kept, on one background."""
    return ImageRecipe(
        input=input,
        height=height,
        width=width,
        channels=channels,
        colour="grey" if channels == 1 else "RGB",
        rule="letterbox",
        resize=(height, width),
        filter="box",
        rounding="down",
        padding=(background,) * 3,
        exif="apply",
        alpha="composite",
        background=(background,) * 3,
        sixteen_bit="scale",
        polarity=polarity,
    )


def first_format_dict(recipe: ImageRecipe) -> dict[str, Any] | None:
    """Return the JSON values of format 1, None for a recipe that it cannot express."""
    background, polarity = recipe.background[0], recipe.polarity
    if polarity is None or recipe != first_format_recipe(
        recipe.height, recipe.width, recipe.channels, input=recipe.input, background=background, polarity=polarity
    ):
        return None
    values = (*recipe.shape[1:], recipe.channels, [0, 255], polarity, background, "ITU-R 601")
    return dict(zip(_FIRST_FORMAT, (recipe.input, *values), strict=True))


def read_first_format(stated: Mapping[str, Any]) -> ImageRecipe:
    """Return the recipe that the JSON values of format 1 stand for.

    Raises:
        FormatError: a field is missing, unknown or not what it should be.
    """
    if set(stated) != set(_FIRST_FORMAT):
        raise FormatError(f"got the fields {sorted(stated)}, expected {sorted(_FIRST_FORMAT)}")
    low_high = stated["range"]
    if low_high != [0, 255]:
        raise _refusal("range", low_high, "[0, 255]")
    return first_format_recipe(
        stated["height"],
        stated["width"],
        stated["channels"],
        input=stated["input"],
        background=stated["background"],
        polarity=stated["polarity"],
    )


def read_recipe(stated: Mapping[str, Any]) -> ImageRecipe:
    """Return the recipe in JSON values of format 2; fields that are missing have their defaults.

    Raises:
        FormatError: a field is unknown or not what it should be.
    """
    known = {field.name for field in fields(ImageRecipe)}
    if unknown := sorted(set(stated) - known):
        raise FormatError(f"image recipe: unknown key {unknown[0]!r}, expected some of {', '.join(sorted(known))}")
    values: dict[str, Any] = {name: tuple(it) if isinstance(it, list) else it for name, it in stated.items()}
    try:
        return ImageRecipe(**values)
    except TypeError as err:
        raise FormatError(f"image recipe: {err}") from err


def _refusal(name: str, value: object, expected: str) -> FormatError:
    return FormatError(f"image recipe: {name} is {value!r}, expected {expected}")


def _is_side(value: object) -> bool:
    return type(value) is int and 1 <= value <= _MOST_PIXELS_A_SIDE


def _is_byte(value: object) -> bool:
    return type(value) is int and 0 <= value <= 255
