"""CIFAR-10 and CIFAR-100 in the two forms they are given out in: pickles for Python, and binary records.

Source of both forms: Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html, "Python version" and "binary version".
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError
from .arrays_pickle import read_pickle
from .part import Part, Parts, stretched

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Form:
    """One of the ways that a CIFAR is given out.

    Attributes:
        folder: as the archive unpacks to.
        train: names of the files to train on.
        test: name of the file to test on.
        names: of the file with the class names.
        labels: key of the labels in a pickle; or how many bytes of labels a record has, the last of which counts.
        classes: key of the class names in their pickle; None for a text file.
    """

    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    labels: str | int
    classes: str | None = None


_TEN = tuple(f"data_batch_{number}" for number in range(1, 6))
FORMS = (
    Form("cifar-10-batches-py", _TEN, "test_batch", "batches.meta", "labels", "label_names"),
    Form("cifar-10-batches-bin", tuple(f"{name}.bin" for name in _TEN), "test_batch.bin", "batches.meta.txt", 1),
    Form("cifar-100-python", ("train",), "test", "meta", "fine_labels", "fine_label_names"),
    Form("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", 2),
)


def find_cifar(folder: Path) -> tuple[Path, Form] | None:
    """Return where CIFAR's files lie, in a folder or in the archive's own below it, and in which form."""
    for form in FORMS:
        for place in (folder, folder / form.folder):
            if all((place / name).is_file() for name in (form.train[0], form.test, form.names)):
                return place, form
    return None


def read_cifar(folder: Path) -> Parts:
    """Return the training and the test set.

    Raises:
        DatasetError: a file is missing, or is not of the form.
    """
    found = find_cifar(folder)
    if found is None:
        raise DatasetError(f"{folder} holds no files of CIFAR-10 or CIFAR-100, in the version for Python or in binary")
    place, form = found
    names = _class_names(place, form)
    train, test = (_part(place, form, files, names) for files in (form.train, (form.test,)))
    return Parts(f"{form.folder} in {folder}", train, test=test)


def _part(place: Path, form: Form, files: tuple[str, ...], names: tuple[str, ...]) -> Part:
    labels = np.concatenate([_read(place / name, form)[0] for name in files])

    def chunks() -> Iterator[NDArray[np.uint8]]:
        return (_read(place / name, form)[1] for name in files)

    return Part(labels, SHAPE, chunks, _digests(place, files), names, stretched(SHAPE))


def _read(path: Path, form: Form) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    return _read_records(path, form.labels) if isinstance(form.labels, int) else _read_pickle(path, form.labels)


def _read_pickle(path: Path, key: str) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    content = read_pickle(path)
    data, labels = content.get("data"), content.get(key)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != PIXELS:
        raise DatasetError(f"{path}: expected 'data', rows of {PIXELS} bytes; its keys are {', '.join(content)}")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(label) is int for label in labels):
        raise DatasetError(f"{path}: expected {key!r}, a whole number for each of its {len(data)} images")
    return np.array(labels, np.int64), data.reshape(-1, *SHAPE)


def _read_records(path: Path, label_bytes: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    try:
        content = path.read_bytes()
    except OSError as err:
        raise DatasetError(f"{path} cannot be read: {err.strerror or err}") from err
    length = label_bytes + PIXELS
    if not content or len(content) % length:
        raise DatasetError(f"{path}: {len(content)} bytes, expected records of {length}")
    records = np.frombuffer(content, np.uint8).reshape(-1, length)
    return records[:, label_bytes - 1].astype(np.int64), records[:, label_bytes:].reshape(-1, *SHAPE)


def _class_names(place: Path, form: Form) -> tuple[str, ...]:
    if form.classes is None:
        text = (place / form.names).read_text(encoding="utf-8", errors="replace")
        names: Any = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        names = read_pickle(place / form.names).get(form.classes) or []
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise DatasetError(f"{place / form.names}: expected class names")
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names)


def _digests(place: Path, files: tuple[str, ...]) -> dict[str, str]:
    digests = {}
    for name in files:
        with (place / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
