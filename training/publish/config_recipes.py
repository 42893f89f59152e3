"""What timm and Hugging Face write down of their pictures -> the options of a picture recipe.

Sources: timm's transforms for evaluation on ImageNet; the image processors of transformers, in their form for Pillow.
Neither library is imported.
"""

import math
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError

_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers

# Image processors that resize, crop, rescale and normalise in this order; and those of them for which one number is
# the shorter side rather than both sides.
_PLAIN = (
    "Beit", "Bit", "Blip", "CLIP", "ChineseCLIP", "ConvNext", "DeiT", "EfficientFormer", "EfficientNet", "Levit",
    "MobileNetV1", "MobileNetV2", "MobileViT", "Pvt", "Segformer", "Siglip", "ViT", "",
)  # fmt: skip
_SHORTER = ("Bit", "CLIP", "ChineseCLIP", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT")
_DONE = (
    "do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_flip_channel_order",
    "do_reduce_labels",  # of the maps that a training is given, not of pictures
)  # fmt: skip


def is_timm(config: Mapping[str, Any]) -> bool:
    """Return whether a mapping is timm's data config, or the configuration of a network that holds one."""
    return "input_size" in config


def options_of_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of timm's data config: input_size, interpolation, crop_pct, crop_mode, mean, std.

    Raises:
        ConfigError: a value that no recipe can express.
    """
    channels, *size = config["input_size"]
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash", "border"):
        raise ConfigError(f"timm: crop_mode is {mode!r}, expected center, squash or border")
    for key in ("crop_border_pixels", "naflex", "patchify"):
        if config.get(key):
            raise ConfigError(f"timm: {key} is {config[key]!r}, which a picture recipe cannot express")
    crop_pct = config.get("crop_pct") or 0.875
    scaled = [math.floor(side / crop_pct) for side in size]
    mean = config.get("mean") or (0.485, 0.456, 0.406)
    rule = {"squash": "exact", "border": "fit"}.get(mode) or ("shorter" if scaled[0] == scaled[1] else "cover")
    padding = {"padding": [round(255 * value) for value in mean]} if mode == "border" else {}
    return (
        padding
        | _of_channels(channels)
        | {
            "rule": rule,
            "resize": scaled[:1] if rule == "shorter" else scaled,
            "crop": size,
            "filter": config.get("interpolation") or "bicubic",
            "mean": mean,
            "std": config.get("std") or (0.229, 0.224, 0.225),
        }
    )


def is_huggingface(config: Mapping[str, Any]) -> bool:
    """Return whether a mapping is a preprocessor_config.json of transformers."""
    return any(key in config for key in ("image_processor_type", "feature_extractor_type", "image_mean", "do_resize"))


def options_of_huggingface(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a preprocessor_config.json.

    Raises:
        ConfigError: a processor or a step that no recipe can express, or a value that is missing.
    """
    kind = _processor(config)
    for key, value in config.items():
        is_top = key == "include_top" and kind != "EfficientNet"
        if value and (is_top or (key.startswith("do_") and key not in _DONE)):
            raise ConfigError(f"preprocessor_config.json: {key} is {value!r}, which a picture recipe cannot express")
    flips = config.get("do_flip_channel_order", kind == "MobileViT")
    return {
        "rounding": "down",
        **({"colour": "BGR"} if flips else {}),
        **_resize(config, kind),
        **_arithmetic(config, kind),
    }


def _processor(config: Mapping[str, Any]) -> str:
    """Return which image processor wrote the file, without what all of their names end in."""
    name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    kind = name.removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if kind not in _PLAIN:
        raise ConfigError(
            f"preprocessor_config.json: {name} has steps that are not known here, expected one of "
            f"{', '.join(filter(None, _PLAIN))}; say with --image what it does"
        )
    return kind


def _resize(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return rule, size, filter and crop."""
    options: dict[str, Any] = {}
    if config.get("do_resize", "size" in config):
        side = _size(config, "size", "shorter" if kind in _SHORTER else "exact")
        options = {"rule": "shorter" if len(side) == 1 else "exact", "resize": side, "filter": _filter(config)}
        if kind == "ConvNext":
            return options | _of_convnext(side[0], config)
        if kind == "Levit" and len(side) == 1:  # it enlarges by the usual 256 to 224, and crops
            options["resize"] = [int(256 / 224 * side[0])]
    if config.get("do_center_crop", False):
        options["crop"] = _size(config, "crop_size", "exact")
    return options


def _of_convnext(side: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return rule, size and crop of ConvNeXt's processor: it crops below 384 pixels, and squeezes from there on."""
    if side >= 384:
        return {"rule": "exact", "resize": [side, side]}
    crop_pct = config.get("crop_pct") or 224 / 256
    return {"rule": "shorter", "resize": [int(side / crop_pct)], "crop": [side, side]}


def _size(config: Mapping[str, Any], key: str, rule: str) -> list[int]:
    """Return one number for the shorter side, or height and width."""
    size = config.get(key)
    if isinstance(size, int):
        return [size] if rule == "shorter" else [size, size]
    if isinstance(size, list | tuple) and len(size) == 2:
        return list(size)
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        return [size["height"], size["width"]]
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return [size["shortest_edge"]] if key == "size" else [size["shortest_edge"]] * 2
    raise ConfigError(
        f"preprocessor_config.json: {key} is {size!r}, expected a number, height and width, or shortest_edge"
    )


def _filter(config: Mapping[str, Any]) -> str:
    resample = config.get("resample")
    if not isinstance(resample, int) or not 0 <= resample < len(_RESAMPLE):
        raise ConfigError(
            f"preprocessor_config.json: resample is {resample!r}, expected a number of Pillow's filters, "
            f"0 to {len(_RESAMPLE) - 1}"
        )
    return _RESAMPLE[resample]


def _arithmetic(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return mean, std and factor; a file that says nothing of the factor is of the time when there was one alone."""
    normalises = kind != "MobileViT" and config.get("do_normalize", "image_mean" in config)  # which never does
    mean = list(config.get("image_mean") or (0.0,)) if normalises else [0.0]
    std = list(config.get("image_std") or (1.0,)) if normalises else [1.0]
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    if config.get("rescale_offset"):  # values from -1 on before mean and std
        mean = [value + 1.0 for value in mean]
    if kind == "EfficientNet" and config.get("include_top", True):  # it divides by image_std once more
        own = list(config.get("image_std") or (1.0,))
        std = [one * other for one, other in zip(std * (len(own) // len(std)), own, strict=True)]
    return {"mean": mean, "std": std, "rescale": factor}


def _of_channels(channels: int) -> dict[str, Any]:
    return {"colour": "grey", "channels": 1} if channels == 1 else {"channels": channels}
