"""Where a picture recipe may come from: flags, a file, or the object that prepared the pictures of a training.

The front door to `transform_recipes` (objects of torchvision and timm) and `config_recipes` (what timm and Hugging Face
write down). What cannot be expressed is refused by name: a step left out in silence gives other answers in silence.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from foldserve.format.errors import FormatError
from foldserve.format.image import ImageRecipe
from foldserve.format.image_options import Normalisation, build_image, json_object, read_image_options

from ..errors import ConfigError
from .config_recipes import is_huggingface, is_timm, options_of_huggingface, options_of_timm
from .transform_recipes import options_of_transforms


def read_image(
    source: object, shape: tuple[int, ...] | None = None, input: str = "image"
) -> tuple[ImageRecipe, Normalisation]:
    """Return how pictures are prepared, as the recipe of a model file and the arithmetic of its graph.

    Args:
        source: text as `--image` has it; a mapping of the same keys, of timm's data config or of Hugging Face's
            preprocessor_config.json; `@` and the path of a JSON file with one of these, or that path; `transforms()`
            of torchvision's weights, a Compose of torchvision or timm; a recipe, or a recipe and a normalisation.
        shape: of one row of the model's input without the batch, where it is known.
        input: name of the graph's input.

    Raises:
        ConfigError: a step or a value cannot be expressed, or does not fit the model.
    """
    try:
        if isinstance(source, ImageRecipe):
            return source, Normalisation((0.0,) * source.channels, (1.0,) * source.channels)
        if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], ImageRecipe):
            return source[0], source[1]
        return build_image(_options(source), shape, input)
    except FormatError as err:
        raise ConfigError(str(err)) from err


def _options(source: object) -> Mapping[str, Any]:
    """Return the options that a source stands for."""
    if isinstance(source, str) and not source.startswith("@"):
        return read_image_options(source)
    if isinstance(source, str | Path):
        source = _json(Path(str(source).removeprefix("@")))
    source = getattr(source, "pretrained_cfg", source)  # a network of timm knows its own
    if hasattr(source, "transforms") and isinstance(source.transforms, partial):
        source = source.transforms()  # a member of torchvision's weights
    if isinstance(source, partial):
        source = source()
    if not isinstance(source, Mapping) and hasattr(source, "to_dict"):
        source = source.to_dict()  # an image processor of transformers
    if not isinstance(source, Mapping):
        return options_of_transforms(source)
    source = source["pretrained_cfg"] if isinstance(source.get("pretrained_cfg"), Mapping) else source
    if is_huggingface(source):
        return options_of_huggingface(source)
    return options_of_timm(source) if is_timm(source) else source


def _json(path: Path) -> Any:
    try:
        return json_object(path)
    except FormatError as err:
        raise ConfigError(str(err)) from err
