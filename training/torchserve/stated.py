"""What a TorchServe archive says of its model: name, handler, weights, classes; and whether it can be taken over.

The default of TorchServe for `image_classifier`, as its sources have it (ts/torch_handler): the shorter side
to 256, the middle 224 x 224, ImageNet's mean and standard deviation, a softmax, names from index_to_name.json.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ..errors import ConfigError
from ..publish.wanted import labels_in_json
from .archive import Archive

MANIFEST = "MAR-INF/MANIFEST.json"
LABELS = "index_to_name.json"
IMAGE = "imagenet,exif=ignore,alpha=drop"  # as `image_classifier` prepares a picture
HANDLER = "image_classifier"
_MOST_JSON = 2**24

_PUBLISH = "foldserve publish package.module:factory --weights FILE"
_OTHER_HANDLERS = {
    "image_segmenter": f"publish its network with --task tensors: {_PUBLISH} --image imagenet --task tensors",
    "object_detector": f"its boxes have another number for each picture; publish what is before them: {_PUBLISH}",
    "text_classifier": f"words are turned into numbers by its code; publish the network of numbers: {_PUBLISH} "
    "--input tokens=int64:2,128",
    "base_handler": f"it takes rows as they are: {_PUBLISH} --examples rows.csv",
}


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What an archive states.

    Attributes:
        name: of the model.
        version: as its author numbered it.
        weights: name of the file of weights, or of the program, in the archive.
        is_eager: the file holds weights of a network whose code is Python.
        labels: class names, None where the archive has none.
    """

    name: str
    version: str
    weights: str
    is_eager: bool
    labels: tuple[str, ...] | None


def read_stated(archive: Archive) -> Stated:
    """Return what an archive states.

    Raises:
        ConfigError: it has no manifest or no model, or a handler that is not taken over.
    """
    model = _model_of(archive)
    _require_known_handler(archive, _text(archive, model, "handler"))
    weights = _text(archive, model, "serializedFile") if model.get("serializedFile") else None
    if weights is None:
        raise ConfigError(f"{archive.path}: its manifest names no serializedFile, so there are no weights to take over")
    if weights not in archive.sizes:
        raise ConfigError(f"{archive.path}: its manifest names {weights!r}, which is not among its files")
    return Stated(
        name=_text(archive, model, "modelName"),
        version=str(model.get("modelVersion", "1.0")),
        weights=weights,
        is_eager=bool(model.get("modelFile")),
        labels=_labels(archive),
    )


def _model_of(archive: Archive) -> Mapping[str, Any]:
    if MANIFEST not in archive.sizes:
        raise ConfigError(f"{archive.path} holds no {MANIFEST}; expected what torch-model-archiver wrote")
    manifest = _json(archive, MANIFEST)
    model = manifest.get("model") if isinstance(manifest, dict) else None
    if isinstance(manifest, dict) and "workflow" in manifest:
        raise ConfigError(f"{archive.path} is a workflow of several models; import the .mar of each of them")
    if not isinstance(model, dict):
        raise ConfigError(f"{archive.path}: {MANIFEST} states {type(model).__name__} as its model, expected one object")
    return model


def _require_known_handler(archive: Archive, handler: str) -> None:
    stem = PurePosixPath(handler.partition(":")[0]).name.removesuffix(".py")
    own = [name for name in archive.sizes if PurePosixPath(name).name in (stem, f"{stem}.py")]
    if handler == HANDLER and not own:
        return
    if handler in _OTHER_HANDLERS and not own:
        raise ConfigError(f"{archive.path}: handler {handler!r} is not taken over; {_OTHER_HANDLERS[handler]}")
    raise ConfigError(
        f"{archive.path}: handler {handler!r} is code of its own, which is never run here; say with --image what it "
        f"does to pictures, and publish the network itself: {_PUBLISH} --image resize=256,crop=224,mean=imagenet,"
        "std=imagenet"
    )


def _labels(archive: Archive) -> tuple[str, ...] | None:
    if LABELS not in archive.sizes:
        return None
    return labels_in_json(_json(archive, LABELS), f"{archive.path}: {LABELS}")


def _json(archive: Archive, name: str) -> Any:
    try:
        return json.loads(archive.read(name, _MOST_JSON))
    except (ValueError, RecursionError) as err:
        raise ConfigError(f"{archive.path}: {name} is not JSON: {err}") from err


def _text(archive: Archive, model: Mapping[str, Any], key: str) -> str:
    value = model.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{archive.path}: {MANIFEST} states {value!r} as {key}, expected text")
    return value
