"""The data of a published version once more: read and split as its manifest says, prepared as its graph says."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx

from foldserve.format.errors import FormatError
from foldserve.format.metadata import read_image

from ..dataset import Dataset
from ..errors import ConfigError, DatasetError
from .opening import open_data
from .request import DataRequest


def same_data(model: bytes, manifest: Mapping[str, Any], request: DataRequest) -> Dataset | None:
    """Return the data that a version was trained and tested on, None where that is Fashion-MNIST.

    Args:
        model: content of its model.onnx, digest checked.
        manifest: of the version.
        request: where the data lie now; what it leaves out of the split is the manifest's.

    Raises:
        DatasetError: the version was made from other data than Fashion-MNIST, and nothing says where they are.
        ConfigError: data are named for a version of Fashion-MNIST.
    """
    split = manifest.get("training", {}).get("split")
    if split is None:
        if request.data:
            raise ConfigError("--data for a version that was trained on Fashion-MNIST: give --data-dir, or neither")
        return None
    if not request.data:
        raise DatasetError("this version was trained on data of its own; name them by --data")
    for name in ("val", "test"):
        if split[name] == "own" and not getattr(request, name):
            raise DatasetError(f"this version was trained with a set of its own; name it by --{name}")
    image = _image(model)
    return open_data(
        replace(
            request,
            val=request.val or split["val"],
            test=request.test or split["test"],
            split_seed=request.split_seed or split["seed"],
            image=image if image is None else dict(image),
        )
    )


def _image(model: bytes) -> Mapping[str, Any] | None:
    stated = {entry.key: entry.value for entry in onnx.ModelProto.FromString(model).metadata_props}
    try:
        image = read_image(stated)
    except FormatError as err:
        raise DatasetError(f"the graph's picture recipe cannot be read: {err}") from err
    return None if image is None else image.as_dict()
