"""Arrays in a .npz file: images and labels, all together or as sets to train, to choose and to test by.

The file is read a piece at a time, and no pickle in it is ever loaded.
"""

import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from .part import Part, Parts, axes_of, flat_labels, rows_of_chunk, stretched

# Names of the images and labels of each set: MedMNIST's and many others', Keras's, and plain ones for all together.
SETS = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train"), ("images", "labels"), ("x", "y")),
    "val": (("val_images", "val_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}
CLASS_NAMES = "class_names"


def read_npz(path: Path) -> Parts:
    """Return the sets of a .npz file.

    Raises:
        DatasetError: it cannot be read, has no images and labels under names that are known, or not of that form.
    """
    try:
        with zipfile.ZipFile(path) as file:
            names = {name.removesuffix(".npy") for name in file.namelist()}
    except (OSError, zipfile.BadZipFile) as err:
        raise DatasetError(f"{path} is no .npz file: {err}") from err
    kinds = {}
    class_names = _class_names(path) if CLASS_NAMES in names else None
    for kind, pairs in SETS.items():
        for images, labels in pairs:
            if {images, labels} <= names:
                kinds[kind] = _part(path, images, labels, class_names)
                break
    if "train" not in kinds:
        known = ", ".join(f"{images} and {labels}" for images, labels in SETS["train"])
        raise DatasetError(f"{path} holds {', '.join(sorted(names))}; expected {known}")
    return Parts(str(path), kinds["train"], kinds.get("val"), kinds.get("test"))


def _part(path: Path, images: str, labels: str, class_names: tuple[str, ...] | None) -> Part:
    shape, dtype, digest = _described(path, images)
    to_channels_first, image_shape = axes_of(shape, dtype, f"{path}, {images}")

    def chunks() -> Iterator[NDArray[np.uint8]]:
        size, rows = math.prod(shape[1:]), rows_of_chunk(image_shape)
        with _Member(path, images) as (file, _, _):
            left = shape[0]
            while left:
                block = _exactly(file, min(rows, left) * size, path)
                chunk = np.frombuffer(block, np.uint8).reshape(-1, *shape[1:])
                left -= len(chunk)
                yield to_channels_first(chunk)

    return Part(
        labels=flat_labels(_small_array(path, labels), shape[0], f"{path}, {labels}"),
        image_shape=image_shape,
        chunks=chunks,
        digests={images: digest, labels: _described(path, labels)[2]},
        class_names=class_names,
        image=stretched(image_shape),
    )


class _Member:
    """One array of the file, opened behind its header; whatever goes wrong is a `DatasetError` that names it."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def __enter__(self) -> tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]:
        try:
            self.zip = zipfile.ZipFile(self.path)
            self.file = self.zip.open(f"{self.name}.npy")
            version = np.lib.format.read_magic(self.file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, is_fortran, dtype = read(self.file)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as err:
            raise DatasetError(f"{self.path}, {self.name} cannot be read: {err}") from err
        if dtype.hasobject or (is_fortran and len(shape) > 1):
            got = "Python objects" if dtype.hasobject else f"{dtype} in Fortran order"
            raise DatasetError(
                f"{self.path}, {self.name}: expected plain numbers or text in C order, got {got}; save it once more "
                "from np.ascontiguousarray(...), with a type"
            )
        return self.file, tuple(shape), dtype

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        self.file.close()
        self.zip.close()
        if isinstance(err, OSError | EOFError | zipfile.BadZipFile | zlib.error):
            raise DatasetError(f"{self.path}, {self.name} cannot be read: {err}") from err


def _described(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any], str]:
    """Return shape and type of an array, and the SHA-256 of its elements."""
    digest = hashlib.sha256()
    with _Member(path, name) as (file, shape, dtype):
        while block := file.read(1 << 20):
            digest.update(block)
    return shape, dtype, digest.hexdigest()


def _small_array(path: Path, name: str) -> NDArray[Any]:
    with _Member(path, name) as (file, shape, dtype):
        content = _exactly(file, math.prod(shape) * dtype.itemsize, path)
    return np.frombuffer(content, dtype).reshape(shape)


def _exactly(file: IO[bytes], count: int, path: Path) -> bytes:
    content = file.read(count)
    if len(content) != count:
        raise DatasetError(f"{path}: the file ends after {len(content)} of {count} bytes of an array")
    return content


def _class_names(path: Path) -> tuple[str, ...]:
    names = _small_array(path, CLASS_NAMES)
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DatasetError(f"{path}: {CLASS_NAMES} is {names.dtype} {names.shape}, expected one name for each class")
    return tuple(str(name) for name in names)
