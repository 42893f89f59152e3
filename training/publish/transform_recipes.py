"""The transforms of torchvision and timm, as objects -> the options of a picture recipe.

Read by the names of their classes and their attributes, so that neither library is imported. Pictures are taken to be
loaded as both do for a training, by `Image.open(file).convert("RGB")`: orientation and transparency are left alone.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ..errors import ConfigError

_NOTHING = ("RGB", "Identity", "ToPureTensor")  # what they do is done, or changes no value


def options_of_transforms(transforms: object) -> dict[str, Any]:
    """Return the options of a chain of transforms that turns a PIL image into the input of a network.

    Raises:
        ConfigError: a step that no recipe can express, or an order of steps.
    """
    chain = _Chain()
    for step in _steps(transforms):
        name = type(step).__name__
        if name in _NOTHING:
            continue
        if name not in _READERS:
            raise ConfigError(
                f"transforms: {name} is not a step that a picture recipe can express, expected one of "
                f"{', '.join([*_READERS, *_NOTHING])}; say with image= what it does"
            )
        _READERS[name](chain, step)
    if not chain.is_tensor:
        raise ConfigError("transforms: got no ToTensor or PILToTensor, expected the whole way to the network's input")
    return {"rescale": 1.0} | chain.options


class _Chain:
    """What the steps so far come to."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.is_tensor = False

    def add(self, step: object, keys: Iterable[str], **options: Any) -> None:
        """Take the options of a step, which none of the steps before may have set or made meaningless.

        Raises:
            ConfigError: the step comes a second time or too late.
        """
        name = type(step).__name__
        if taken := sorted({*keys, *options} & set(self.options)):
            raise ConfigError(f"transforms: {name} comes after a step that set {taken[0]}, which no recipe can express")
        self.options |= options

    def on_pictures(self, step: object) -> None:
        """Raise ConfigError for a step on tensors, whose pixels differ from those of Pillow."""
        if self.is_tensor:
            raise ConfigError(
                f"transforms: {type(step).__name__} comes after the step that makes a tensor, where it gives other "
                "pixels than on a picture: put it before, as torchvision's weights do"
            )


def _steps(transforms: object) -> Iterator[object]:
    """Yield the steps of a Compose or Sequential, and of those inside it."""
    inner = getattr(transforms, "transforms", None)
    if type(transforms).__name__ == "Sequential" and isinstance(transforms, Iterable):
        inner = list(transforms)
    if inner is None:
        yield transforms
        return
    if type(transforms).__name__ not in ("Compose", "Sequential"):
        raise ConfigError(f"transforms: {type(transforms).__name__} is not a plain sequence of steps, expected Compose")
    for step in inner:
        yield from _steps(step)


def _preset(chain: _Chain, step: Any) -> None:
    """ImageClassification, which `transforms()` of torchvision's weights gives."""
    chain.on_pictures(step)
    _set_resize(chain, step, step.resize_size, step.interpolation)
    chain.add(step, (), crop=_both(step.crop_size), mean=list(step.mean), std=list(step.std), rescale=1 / 255)
    chain.is_tensor = True


def _resize(chain: _Chain, step: Any) -> None:
    chain.on_pictures(step)
    if getattr(step, "max_size", None) is not None:
        raise ConfigError(f"transforms: Resize has max_size={step.max_size}, which a picture recipe cannot express")
    _set_resize(chain, step, step.size, step.interpolation)


def _set_resize(chain: _Chain, step: object, size: Any, interpolation: Any) -> None:
    """Take one number as the shorter side, two as height and width."""
    size = [size] if isinstance(size, int) else list(size)
    rule = "shorter" if len(size) == 1 else "exact"
    chain.add(step, ("crop", "mean"), rule=rule, resize=size, filter=_filter(interpolation))


def _keep_ratio(chain: _Chain, step: Any) -> None:
    """ResizeKeepRatio of timm, which fits inside its size or covers it."""
    chain.on_pictures(step)
    if step.longest not in (0.0, 1.0) or step.random_scale_prob or step.random_aspect_prob:
        raise ConfigError(f"transforms: {step} is random or between fit and cover, which no recipe can express")
    rule = "fit" if step.longest else "cover"
    chain.add(step, ("crop", "mean"), rule=rule, resize=list(step.size), filter=_filter(step.interpolation))


def _crop(chain: _Chain, step: Any) -> None:
    """CenterCrop; of whole pixels it is the same before and after they become a tensor."""
    chain.add(step, ("mean",), crop=_both(step.size))


def _crop_or_pad(chain: _Chain, step: Any) -> None:
    """CenterCropOrPad of timm, with a colour of its own."""
    chain.on_pictures(step)
    if step.padding_mode != "constant":
        raise ConfigError(f"transforms: padding_mode is {step.padding_mode!r}, expected 'constant'")
    fill = list(step.fill) if isinstance(step.fill, list | tuple) else [step.fill] * 3
    chain.add(step, ("mean",), crop=_both(step.size), padding=fill)


def _grey(chain: _Chain, step: Any) -> None:
    chain.on_pictures(step)
    order = "after" if "resize" in chain.options else "before"
    chain.add(step, ("mean",), colour="grey", channels=step.num_output_channels, grey=order)


def _to_float(chain: _Chain, step: Any) -> None:
    """ToTensor: whole pixels become floats from 0 to 1."""
    chain.on_pictures(step)
    chain.add(step, ("mean",), rescale=1 / 255)
    chain.is_tensor = True


def _to_pixels(chain: _Chain, step: Any) -> None:
    """PILToTensor and ToImage: the pixels stay whole."""
    chain.on_pictures(step)
    chain.is_tensor = True


def _to_dtype(chain: _Chain, step: Any) -> None:
    """ConvertImageDtype and ToDtype: floats from 0 to 1, or the same numbers as floats; whole pixels are bytes."""
    scales = getattr(step, "scale", True)
    if str(step.dtype) == "torch.uint8" and "rescale" not in chain.options:
        return
    if not str(step.dtype).startswith("torch.float"):
        raise ConfigError(f"transforms: {type(step).__name__} to {step.dtype}, expected a float type")
    if "rescale" not in chain.options:
        chain.add(step, ("mean",), rescale=1 / 255 if scales else 1.0)


def _normalize(chain: _Chain, step: Any) -> None:
    numbers = {key: np.atleast_1d(getattr(step, key)).astype(float).tolist() for key in ("mean", "std")}
    if not chain.is_tensor:
        raise ConfigError("transforms: Normalize comes before the step that makes a tensor")
    chain.add(step, (), **numbers)


def _both(size: Any) -> list[int]:
    """Return height and width of one number, of a list of one, or of two."""
    numbers = [size] if isinstance(size, int) else list(size)
    return numbers * 2 if len(numbers) == 1 else numbers


def _filter(interpolation: Any) -> str:
    """Return the filter's name; on pictures the nearest neighbour is Pillow's, the exact one too."""
    name = str(getattr(interpolation, "value", interpolation))
    return "nearest" if name == "nearest-exact" else name


_READERS: dict[str, Callable[[_Chain, Any], None]] = {
    "ImageClassification": _preset,
    "Resize": _resize,
    "ResizeKeepRatio": _keep_ratio,
    "CenterCrop": _crop,
    "CenterCropOrPad": _crop_or_pad,
    "Grayscale": _grey,
    **dict.fromkeys(("ToTensor", "MaybeToTensor"), _to_float),
    **dict.fromkeys(("PILToTensor", "ToImage", "MaybePILToTensor"), _to_pixels),
    **dict.fromkeys(("ConvertImageDtype", "ToDtype"), _to_dtype),
    "Normalize": _normalize,
}
