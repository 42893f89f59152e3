"""The graph's metadata: what holds of a model wherever it is exported. All strings; structures are JSON.

docs/architecture.md lists the keys, which ONNX keeps under metadata_props. `foldserve.weights` is added by the export,
once the initializers are known.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import FormatError
from .image import ImageRecipe, first_format_dict, read_first_format, read_recipe

FIRST, SECOND = "1", "2"  # values of the format; the second one knows every picture recipe

FORMAT_KEY = "foldserve.format"
LABELS = "foldserve.labels"
IMAGE = "foldserve.image"
RECIPE = "foldserve.recipe"
SEED = "foldserve.seed"
DATA = "foldserve.data"
STATISTICS = "foldserve.statistics"
REVISION = "foldserve.revision"
WEIGHTS = "foldserve.weights"


def describe(
    *,
    labels: Sequence[str],
    image: ImageRecipe | None,
    recipe: Mapping[str, Any],
    seed: int,
    data: Mapping[str, str],
    statistics: str,
    revision: str,
) -> dict[str, str]:
    """Return the metadata of a model; structured values as JSON with sorted keys."""
    described = {
        FORMAT_KEY: FIRST,
        LABELS: canonical_json(labels),
        RECIPE: canonical_json(recipe),
        SEED: str(seed),
        DATA: canonical_json(data),
        STATISTICS: statistics,
        REVISION: revision,
    }
    return described if image is None else {**described, **describe_image(image)}


def describe_image(image: ImageRecipe) -> dict[str, str]:
    """Return the entries for a picture recipe, with the first format that can express it."""
    first = first_format_dict(image)
    if first is not None:
        return {FORMAT_KEY: FIRST, IMAGE: canonical_json(first)}
    return {FORMAT_KEY: SECOND, IMAGE: canonical_json(image.as_dict())}


def read_labels(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the class names, None where the model states none.

    Raises:
        FormatError: what it states is not an array of names.
    """
    if LABELS not in metadata:
        return None
    labels = _json(metadata, LABELS)
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise FormatError(f"{LABELS} is {metadata[LABELS][:80]}, expected an array of names")
    return tuple(labels)


def read_image(metadata: Mapping[str, str]) -> ImageRecipe | None:
    """Return how a picture becomes a row, None where the model takes no images.

    Raises:
        FormatError: the description lacks a field, has one too many, or is of a format that is not known here.
    """
    if IMAGE not in metadata:
        return None
    stated = _json(metadata, IMAGE)
    readers = {FIRST: read_first_format, SECOND: read_recipe}
    try:
        return readers[metadata.get(FORMAT_KEY, FIRST)](dict(stated))
    except KeyError as err:
        raise FormatError(f"{FORMAT_KEY} is {err}, expected 1 or 2: a newer foldserve wrote this model") from err
    except (TypeError, ValueError, FormatError) as err:
        raise FormatError(f"{IMAGE} cannot be read: {err}") from err


def canonical_json(value: object) -> str:
    """Return `value` as the one JSON text that the metadata uses for it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _json(metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[key])
    except (ValueError, RecursionError) as err:
        raise FormatError(f"{key} in the model's metadata is not JSON: {err}") from err
