"""What people write about pictures -> a recipe and a normalisation: `--image resize=256,crop=224,mean=imagenet`.

`@file.json` holds the same keys, and so does the metadata of a model, without `mean`, `std`, `rescale` and `range`:
those become arithmetic of the graph.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import FormatError
from .image import CHOICES, ImageRecipe, read_recipe

NAMED_SETS: dict[str, dict[str, tuple[float, ...]]] = {
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "half": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "clip": {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)},
}
IMAGENET = {"resize": 256, "crop": 224, "mean": "imagenet", "std": "imagenet"}  # what most classifiers were tested with


@dataclass(frozen=True, slots=True)
class Normalisation:
    """What the graph does with a pixel of 0 to 255: `(pixel * scale - mean) / std`.

    Attributes:
        mean: of each channel, in the order in which the graph takes them.
        std: of each channel, above 0.
        scale: of all channels, 1/255 by habit.
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1 / 255

    def factors(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what pixels are multiplied by and what is added then, float64, one number or one for each channel."""
        mean, std = np.array(self.mean, np.float64), np.array(self.std, np.float64)
        return self.scale / std, -mean / std

    def apply(self, pixels: NDArray[np.uint8], channel_axis: int) -> NDArray[np.float64]:
        """Return pixels as the network takes them, in float64; channels lie along `channel_axis`."""
        shape = [1] * pixels.ndim
        shape[channel_axis] = -1
        factor, shift = (numbers.reshape(shape) for numbers in self.factors())
        return pixels * factor + shift

    @property
    def is_identity(self) -> bool:
        """Whether the network takes pixels as they are."""
        factor, shift = self.factors()
        return bool((factor == 1).all() and (shift == 0).all())

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"mean": list(self.mean), "std": list(self.std), "scale": self.scale}


def read_image_options(text: str) -> dict[str, Any]:
    """Return the values of `--image` by key; what they mean together is for `build_image`.

    Args:
        text: `key=value` by commas, lists by `x` or `/`; `imagenet` alone stands for its usual resize, crop, mean and
            std; or `@` and the path of a JSON file with the same keys.

    Raises:
        FormatError: a key is unknown or written twice, a value cannot be read, or the file cannot.
    """
    if text.startswith("@"):
        return _checked_keys(json_object(Path(text[1:])))
    options: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        if item == "imagenet":
            options |= IMAGENET
            continue
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise FormatError(f"--image: got {item!r}, expected key=value, for example resize=256,crop=224")
        _checked_keys({key: value})
        if key in options:
            raise FormatError(f"--image: {key} stands there twice, expected each key once")
        options[key] = value
    return options


def build_image(
    options: Mapping[str, Any], shape: tuple[int, ...] | None = None, input: str = "image"
) -> tuple[ImageRecipe, Normalisation]:
    """Return the recipe and the normalisation that the options of a model's pictures say.

    Args:
        options: by key, as text or as JSON values.
        shape: of one row of the model's input, (C, H, W) or (H, W, C); None: the options say it.
        input: name of the graph's input.

    Raises:
        FormatError: a key or value is wrong, or the steps do not end at the model's size.
    """
    values = {key: _KINDS[key](key, value) for key, value in _checked_keys(options).items() if value is not None}
    arithmetic = {key: values.pop(key) for key in _ARITHMETIC if key in values}
    if shape is not None:
        values = _of_shape(values, shape) | values
    recipe = read_recipe(_completed({"input": input} | values))
    if shape is not None and tuple(shape) != recipe.shape:
        raise FormatError(f"image recipe: it makes rows of {recipe.shape} ({recipe.layout}), the model takes {shape}")
    return recipe, _normalisation(arithmetic, recipe.channels)


def json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file that `--image` names.

    Raises:
        FormatError: it cannot be read, or holds something else.
    """
    try:
        stated = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as err:
        raise FormatError(f"--image: {path} cannot be read as JSON: {err}") from err
    if not isinstance(stated, dict):
        raise FormatError(f"--image: {path} holds a {type(stated).__name__}, expected an object of keys")
    return stated


def _checked_keys(options: Mapping[str, Any]) -> dict[str, Any]:
    for key in options:
        if key not in _KINDS:
            raise FormatError(f"--image: unknown key {key!r}, expected one of {', '.join(sorted(_KINDS))}")
    return dict(options)


def _of_shape(values: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Return height, width, channels and layout of a row of the input, where it looks like a picture."""
    if len(shape) == 3 and values.get("layout", "CHW") == "CHW" and shape[0] in (1, 3):
        return dict(zip(("channels", "height", "width"), shape, strict=True)) | {"layout": "CHW"} | _grey(shape[0])
    if len(shape) == 3 and values.get("layout", "HWC") == "HWC" and shape[2] in (1, 3):
        return dict(zip(("height", "width", "channels"), shape, strict=True)) | {"layout": "HWC"} | _grey(shape[2])
    raise FormatError(
        f"image recipe: the model takes rows of {tuple(shape)}, expected (C, H, W) or (H, W, C) with 1 or 3 channels"
    )


def _grey(channels: int) -> dict[str, Any]:
    return {"colour": "grey"} if channels == 1 else {}


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with what follows from others: the rule, both numbers of a size, the size of the result."""
    resize, crop = values.get("resize", ()), values.get("crop")
    rule = values.get("rule") or {0: "none", 1: "shorter"}.get(len(resize), "exact")
    if crop is not None and len(crop) == 1:
        crop = crop * 2
    if rule not in ("none", "shorter"):
        size = (values["height"], values["width"]) if {"height", "width"} <= set(values) else crop
        resize = resize * 2 if len(resize) == 1 else resize or size or ()
    end = crop or (resize if len(resize) == 2 else None)
    height_width = {"height": end[0], "width": end[1]} if end else {}
    whole = height_width | values | {"resize": resize, "rule": rule, "crop": crop}
    if not {"height", "width"} <= set(whole):
        raise FormatError("image recipe: got no size of the result, expected crop=224, resize=224x224 or height, width")
    return whole | ({"channels": 1} if whole.get("colour") == "grey" and "channels" not in whole else {})


def _normalisation(values: Mapping[str, Any], channels: int) -> Normalisation:
    """Return the arithmetic that the graph has to do for so many channels."""
    low, high = values.get("range", (0.0, 1.0))
    if (low, high) != (0.0, 1.0) and len(values) > 1:
        raise FormatError("image recipe: got range beside mean, std or rescale, expected one or the other")
    if not low < high:
        raise FormatError(f"image recipe: range is {low} to {high}, expected the lower number first")
    span = high - low
    mean = _each_channel("mean", values.get("mean", (-low / span,)), channels)
    std = _each_channel("std", values.get("std", (1 / span,)), channels)
    if not all(value > 0 for value in std):
        raise FormatError(f"image recipe: std is {std}, expected numbers above 0")
    return Normalisation(mean, std, float(values.get("rescale", 1 / 255)))


def _each_channel(key: str, numbers: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(numbers) not in (1, channels):
        raise FormatError(f"image recipe: {key} has {len(numbers)} numbers, the model takes {channels} channels")
    return tuple(float(number) + 0.0 for number in (numbers * channels if len(numbers) == 1 else numbers))


def _word(key: str, value: Any) -> str:
    """Return a word as the recipe spells it, whatever its case, and with the American spelling of grey."""
    text = "grey" if key == "colour" and str(value).lower() in ("gray", "l") else str(value)
    return next((str(choice) for choice in CHOICES.get(key, ()) if str(choice).lower() == text.lower()), text)


def _whole(key: str, value: Any) -> int:
    return _whole_numbers(key, value)[0]


def _whole_numbers(key: str, value: Any) -> tuple[int, ...]:
    numbers = _numbers(key, value)
    if not all(float(number).is_integer() for number in numbers):
        raise FormatError(f"image recipe: {key} is {value!r}, expected whole numbers")
    return tuple(int(number) for number in numbers)


def _colour(key: str, value: Any) -> tuple[int, ...]:
    numbers = _whole_numbers(key, value)
    return numbers * 3 if len(numbers) == 1 else numbers


def _numbers(key: str, value: Any) -> tuple[float, ...]:
    """Return the numbers of a list, of one number, or of text with `x` or `/` between them."""
    if key in ("mean", "std") and isinstance(value, str) and value in NAMED_SETS:
        return NAMED_SETS[value][key]
    parts = value.replace("x", "/").split("/") if isinstance(value, str) else value
    parts = parts if isinstance(parts, list | tuple) else [parts]
    try:
        numbers = tuple(float(part) for part in parts if not isinstance(part, bool))
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or len(numbers) != len(parts) or not all(map(math.isfinite, numbers)):
        named = f" or one of {', '.join(NAMED_SETS)}" if key in ("mean", "std") else ""
        raise FormatError(f"image recipe: {key} is {value!r}, expected numbers, as in 224x224 or 0.5/0.5/0.5{named}")
    return numbers


def _pair(key: str, value: Any) -> tuple[float, float]:
    numbers = _numbers(key, value)
    if len(numbers) != 2:
        raise FormatError(f"image recipe: {key} is {value!r}, expected two numbers, as in 0/1")
    return numbers[0], numbers[1]


def _factor(key: str, value: Any) -> float:
    """Return a number that may be written as a fraction, 1/255."""
    try:
        factor = float(Fraction(value)) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        factor = math.nan
    if not (math.isfinite(factor) and factor > 0):
        raise FormatError(f"image recipe: {key} is {value!r}, expected a number above 0, as in 1/255")
    return factor


def _flag(key: str, value: Any) -> bool:
    flags = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if str(value).lower() not in flags:
        raise FormatError(f"image recipe: {key} is {value!r}, expected true or false")
    return flags[str(value).lower()]


_ARITHMETIC = ("mean", "std", "rescale", "range")
_KINDS: dict[str, Callable[[str, Any], Any]] = {
    **{field.name: _word for field in fields(ImageRecipe)},
    **dict.fromkeys(("height", "width", "channels"), _whole),
    **dict.fromkeys(("resize", "crop"), _whole_numbers),
    **dict.fromkeys(("padding", "background"), _colour),
    **dict.fromkeys(("mean", "std"), _numbers),
    "antialias": _flag,
    "rescale": _factor,
    "range": _pair,
}
