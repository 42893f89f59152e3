"""What a reader gives: one set of labelled images, with its pixels still where they are."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foldserve.format.image import ImageRecipe

from ..errors import DatasetError

CHUNK_BYTES = 8 << 20  # of pixels that a reader holds at a time


@dataclass(frozen=True, eq=False)
class Part:
    """One set of images: all there are, or those to train, to choose or to test by.

    Attributes:
        labels: (N,) what each image shows, as the source says it: class ids, or names.
        image_shape: channels, height and width of an image.
        chunks: gives the pixels in the order of the labels, a few MiB at a time: uint8 (n, C, H, W).
        digests: name of a file, or of the part -> SHA-256 of its decompressed bytes.
        class_names: index = class id, where the source has names; None: they follow from the labels.
        image: how a picture becomes an image; None: as format 1 has it.
        files: the picture of each image, where they are files.
    """

    labels: NDArray[Any]
    image_shape: tuple[int, int, int]
    chunks: Callable[[], Iterator[NDArray[np.uint8]]]
    digests: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    image: ImageRecipe | None = None
    files: Sequence[Path] = ()


@dataclass(frozen=True, eq=False)
class Parts:
    """What there is at a place.

    Attributes:
        source: the place in words.
        train: to train on, and to split where a part is missing.
        val: to choose by, where the source has such a set.
        test: likewise, to test on.
        check: raises `DatasetError` with all that was wrong with the images, called when they have been read.
    """

    source: str
    train: Part
    val: Part | None = None
    test: Part | None = None
    check: Callable[[], None] = lambda: None


def rows_of_chunk(image_shape: tuple[int, ...]) -> int:
    """Return how many images a chunk holds."""
    return max(1, CHUNK_BYTES // int(np.prod(image_shape)))


def array_part(
    images: NDArray[Any],
    labels: NDArray[Any],
    name: str,
    *,
    class_names: tuple[str, ...] | None = None,
    image: ImageRecipe | None = None,
) -> Part:
    """Return a part of images in memory, or mapped into it.

    Args:
        images: uint8, (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W).
        labels: (N,) or (N, 1), class ids or names.
        name: of the part, for messages and digests.
        class_names: index = class id.
        image: how a picture becomes an image; None: stretched to its size.

    Raises:
        DatasetError: they are not that.
    """
    to_channels_first, image_shape = axes_of(images.shape, images.dtype, name)
    rows = rows_of_chunk(image_shape)

    def chunks() -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(images), rows):
            yield to_channels_first(np.asarray(images[start : start + rows]))

    digest = hashlib.sha256()
    for chunk in chunks():
        digest.update(chunk.tobytes())
    return Part(
        labels=flat_labels(labels, len(images), name),
        image_shape=image_shape,
        chunks=chunks,
        digests={name: digest.hexdigest()},
        class_names=class_names,
        image=image or stretched(image_shape),
    )


def axes_of(
    shape: tuple[int, ...], dtype: np.dtype[Any], name: str
) -> tuple[Callable[[NDArray[np.uint8]], NDArray[np.uint8]], tuple[int, int, int]]:
    """Return how images of this form become (n, C, H, W), and their channels, height and width.

    Raises:
        DatasetError: it is no form of images.
    """
    if dtype != np.uint8:
        raise DatasetError(f"{name}: the images are {dtype}, expected uint8 from 0 to 255")
    if 0 in shape:
        raise DatasetError(f"{name}: the images have the shape {shape}, so that there is not one pixel")
    if len(shape) == 3:
        return (lambda chunk: chunk[:, np.newaxis]), (1, shape[1], shape[2])
    if len(shape) == 4 and shape[3] in (1, 3):
        return (lambda chunk: chunk.transpose(0, 3, 1, 2)), (shape[3], shape[1], shape[2])
    if len(shape) == 4 and shape[1] in (1, 3):
        return (lambda chunk: chunk), (shape[1], shape[2], shape[3])
    raise DatasetError(
        f"{name}: the images have the shape {shape}, expected (N, height, width), (N, height, width, channels) or "
        "(N, channels, height, width) with 1 or 3 channels"
    )


def flat_labels(labels: NDArray[Any], rows: int, name: str) -> NDArray[Any]:
    """Return labels as (N,), after seeing that there is one for each image.

    Raises:
        DatasetError: there is not, or they are neither whole numbers nor names.
    """
    if labels.shape not in ((rows,), (rows, 1)):
        raise DatasetError(
            f"{name}: {rows} images with labels of the shape {labels.shape}, expected one for each image"
        )
    if labels.dtype.kind not in "iuU":
        raise DatasetError(f"{name}: the labels are {labels.dtype}, expected whole numbers or names")
    return labels.reshape(rows)


def stretched(image_shape: tuple[int, int, int]) -> ImageRecipe:
    """Return the recipe that brings any picture to the size of the images, its sides stretched."""
    channels, height, width = image_shape
    return ImageRecipe(
        height=height,
        width=width,
        channels=channels,
        colour="grey" if channels == 1 else "RGB",
        rule="exact",
        resize=(height, width),
        exif="apply",
        alpha="composite",
        sixteen_bit="scale",
    )
