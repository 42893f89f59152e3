"""Golden files: encoded pictures of a version, packed for its manifest, and decoded again before it may answer."""

import io
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foldserve.format.errors import GoldenError
from foldserve.format.golden import Golden
from foldserve.format.golden_files import (
    DECODING_BOUND,
    MOST_BYTES,
    MOST_FILES,
    GoldenFile,
    check_amount,
    digest_of_pixels,
)
from foldserve.format.image import ImageRecipe

from .decode import decode, in_layout
from .encode import as_image, encoded
from .geometry import PictureError

_ORIGINAL_BYTES = 200_000  # of a picture that is kept as it came, whatever its share
_QUALITY = 92  # of a JPEG at the model's size, where a PNG takes more than its share

Pixels = NDArray[np.uint8]


def pack(pictures: Iterable[tuple[str, bytes]], recipe: ImageRecipe) -> tuple[GoldenFile, ...]:
    """Return pictures as golden files: at most 16, and never more than a manifest is to hold.

    A picture that is larger than its share is kept at the model's size; the first one below 200 KB stays as it came.
    Where room is left, files hold their pixels too, so that another decoder can be told from another graph.

    Args:
        pictures: name and content, PNG or JPEG, the most welcome first.
        recipe: of the model.

    Returns:
        As many files as fit, in the order of `pictures`; at least one, where there is one. Where the recipe leaves
        the size free, those that are as large as the first.

    Raises:
        PictureError: a picture cannot be decoded, or its recipe does not take it.
    """
    offered = list(pictures)[:MOST_FILES]
    share = MOST_BYTES // max(1, len(offered)) * 3 // 4 - 200
    has_original, shape = False, None
    files: list[GoldenFile] = []
    for name, data in offered:
        is_kept = len(data) <= share or (not has_original and len(data) <= _ORIGINAL_BYTES)
        content = data if is_kept else _at_the_models_size(data, recipe, share)
        has_original = has_original or is_kept
        pixels = decode(content, recipe)
        shape = shape or pixels.shape
        file = GoldenFile(name, content, digest_of_pixels(pixels))
        if pixels.shape == shape and sum(kept.size for kept in (*files, file)) <= MOST_BYTES:
            files.append(file)
    return _with_room_used(files, recipe)


def with_pixels(golden: Golden, recipe: ImageRecipe) -> tuple[Golden, str | None]:
    """Return golden answers whose picture input holds the rows that the files decode to here.

    Where a file decodes to other pixels than when it was published, the row is taken from the manifest, or left out
    where the manifest does not hold it; the graph is then proved on the others.

    Args:
        golden: with files, or without; then it comes back as it is.
        recipe: of the model.

    Returns:
        The golden answers, and a remark where a decoder gave other pixels.

    Raises:
        GoldenError: a file cannot be decoded, its pixels are further off than two decoders are, or no row is left.
    """
    if not golden.files:
        return golden, None
    rows = [_row(file, recipe) for file in golden.files]
    kept = [index for index, (row, _) in enumerate(rows) if row is not None]
    if len({row.shape for row, _ in rows if row is not None}) > 1:
        raise GoldenError("golden pictures become rows of several sizes, expected one size for all")
    changed = [difference for _, difference in rows if difference is not None]
    if not kept:
        raise GoldenError(
            "every golden picture decodes to other pixels than when it was published, and the manifest holds none: "
            "use the release of Pillow that its environment names, or publish the model again"
        )
    inputs = {name: array[kept] for name, array in golden.inputs.items()}
    inputs[recipe.input] = np.stack([rows[index][0] for index in kept])  # type: ignore[misc]  # none of them is None
    outputs = {name: array[kept] for name, array in golden.outputs.items()}
    remark = _remark(changed, len(kept)) if changed else None
    return replace(golden, inputs=inputs, outputs=outputs, files=()), remark


def _remark(differences: list[float], rows: int) -> str:
    """Return what is to be said of files that decode to other pixels here; NaN is a difference that is not known."""
    known = [difference for difference in differences if not math.isnan(difference)]
    off = f", by up to {max(known):.2f} of 255 in the mean, where {DECODING_BOUND} is allowed" if known else ""
    return (
        f"{len(differences)} golden pictures decode to other pixels than when it was published{off}; the graph is "
        f"proved on {rows} rows, with the pixels that the manifest holds"
    )


def _row(file: GoldenFile, recipe: ImageRecipe) -> tuple[Pixels | None, float | None]:
    """Return the row of a file, None where it is not known, and how far this decoder is off: None not, NaN unknown.

    Raises:
        GoldenError: it cannot be decoded, or is further off than two decoders are.
    """
    try:
        row = decode(file.content, recipe)
    except PictureError as err:
        raise GoldenError(f"golden picture {file.name!r}: {err}") from err
    if digest_of_pixels(row) == file.sha256_pixels:
        return row, None
    if file.pixels is None:
        return None, math.nan
    published = _from_png(file, recipe)
    difference = float(np.abs(row.astype(np.int16) - published).mean())
    if difference > DECODING_BOUND:
        raise GoldenError(
            f"golden picture {file.name!r} decodes to pixels that differ from those it was published with by "
            f"{difference:.1f} of 255 in the mean, expected at most {DECODING_BOUND}: decoding or recipe "
            "do not do here what they did"
        )
    return published, difference


def _from_png(file: GoldenFile, recipe: ImageRecipe) -> Pixels:
    """Return the pixels that the manifest holds, after comparing them with their digest."""
    try:
        image = Image.open(io.BytesIO(file.pixels or b""), formats=("PNG",))
        row = in_layout(np.asarray(image, dtype=np.uint8), recipe)
    except Exception as err:  # a decoder raises nearly anything
        raise GoldenError(f"golden picture {file.name!r}: its pixels cannot be read: {err}") from err
    if not recipe.takes(row.shape) or digest_of_pixels(row) != file.sha256_pixels:
        raise GoldenError(
            f"golden picture {file.name!r}: its pixels are not those of its digest: file or recipe was changed"
        )
    return row


def _at_the_models_size(data: bytes, recipe: ImageRecipe, share: int) -> bytes:
    """Return a large picture as a file of the model's size: PNG, or JPEG where that is larger than its share."""
    image = as_image(decode(data, recipe), recipe)
    png = encoded(image, "PNG", optimize=True)
    return png if len(png) <= share else encoded(image, "JPEG", quality=_QUALITY)


def _with_room_used(files: list[GoldenFile], recipe: ImageRecipe) -> tuple[GoldenFile, ...]:
    """Return the files, with the pixels of as many of them as fit."""
    left = MOST_BYTES - sum(file.size for file in files)
    for index, file in enumerate(files):
        png = encoded(as_image(decode(file.content, recipe), recipe), "PNG", optimize=True)
        larger = replace(file, pixels=png)
        if larger.size - file.size <= left:
            left -= larger.size - file.size
            files[index] = larger
    check_amount(files)
    return tuple(files)
