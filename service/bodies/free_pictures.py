"""Pictures of a model that leaves height or width free: those of one request are equally large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from .limits import Limits

if TYPE_CHECKING:
    from foldserve.format.image import ImageRecipe

Images = NDArray[np.uint8]


def stacked(images: Sequence[Images], spec: ImageRecipe, limits: Limits, place: Callable[[int], str]) -> Images:
    """Return the images of one request as one array.

    Args:
        images: uint8 of the form `spec.shape`, each of its own size where that is free.
        spec: the model's picture recipe.
        limits: how large a free side may be.
        place: how a message names the image with this index.

    Raises:
        InvalidInput: an image is too large, or of another size than the first one.
    """
    first = images[0].shape
    if spec.is_free:
        for index, image in enumerate(images):
            if image.shape != first:
                raise InvalidInput(
                    f"{place(index)}: {_size(image.shape, spec)} pixels (width x height), expected "
                    f"{_size(first, spec)} as {place(0)}: send pictures of different sizes in different requests"
                )
        if max(first) > limits.side:
            raise InvalidInput(
                f"{place(0)}: {_size(first, spec)} pixels (width x height), expected at most {limits.side} on a side"
            )
    return images[0][None] if len(images) == 1 else np.stack(images)


def with_size(spec: ImageRecipe, shape: tuple[int, ...]) -> ImageRecipe:
    """Return the recipe of pixels that have this shape already: nothing is resized."""
    height, width = (shape[0], shape[1]) if spec.layout == "HWC" or len(shape) == 2 else (shape[1], shape[2])
    return replace(spec, height=height, width=width, rule="none", resize=())


def _size(shape: tuple[int, ...], spec: ImageRecipe) -> str:
    height, width = shape[:2] if spec.layout == "HWC" else shape[1:]
    return f"{width}x{height}"
