"""MNIST's form: pairs of IDX files, images and labels, as they are or as .gz, one pair to train and one to test on.

The files of MNIST, Fashion-MNIST, KMNIST and EMNIST have names of this form and the same header; nothing else tells
them apart, so that class names come from a file beside them, from known digests, or are the labels.
"""

import gzip
import hashlib
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..dataset import CLASS_NAMES, IDX_UINT8
from ..errors import DatasetError
from ..sources import DIGESTS
from .part import Part, Parts, rows_of_chunk

NAMES_FILES = ("classes.txt", "class_names.txt", "labels.txt")
_IMAGES = re.compile(r"(?P<set>.*?)[-_.]?images[-_.]idx3[-_]ubyte(\.gz)?")
_TEST, _VAL = ("t10k", "test"), ("val", "valid", "validation")


def find_pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return name of a set -> its files of images and labels, in a folder or where torchvision puts them below it.

    Raises:
        DatasetError: images without labels.
    """
    for place in (folder, folder / "raw", *sorted(folder.glob("*/raw"))):  # torchvision lays them in the last
        pairs: dict[str, tuple[Path, Path]] = {}
        for path in sorted(place.iterdir() if place.is_dir() else ()):
            if match := _IMAGES.fullmatch(path.name):
                pairs.setdefault(match["set"], (path, _labels_of(path)))
        if pairs:
            return pairs
    return {}


def _labels_of(images: Path) -> Path:
    plain = re.sub(r"images([-_.])idx3", r"labels\1idx1", images.name).removesuffix(".gz")
    for name in (plain, f"{plain}.gz"):
        if (images.parent / name).is_file():
            return images.parent / name
    raise DatasetError(f"{images}: expected its labels beside it, {plain} or {plain}.gz")


def read_idx_folder(folder: Path) -> Parts:
    """Return the sets of a folder with pairs of IDX files.

    Raises:
        DatasetError: a file is none, is cut off, or the sets cannot be told apart.
    """
    pairs = find_pairs(folder)
    kinds: dict[str, Part] = {}
    for name, (images, labels) in pairs.items():
        part = _part(images, labels, _class_names(images.parent))
        last = re.split(r"[-_.]", name)[-1]
        kind = "test" if last in _TEST else "val" if last in _VAL else "train"
        if kind in kinds:
            raise DatasetError(f"{folder} holds several sets to {kind} on: {', '.join(sorted(pairs))}; expected one")
        kinds[kind] = part
    if list(kinds) == ["test"]:
        kinds = {"train": kinds["test"]}  # given for itself, by --val or --test
    if "train" not in kinds:
        raise DatasetError(f"{folder} holds no set to train on, only {', '.join(sorted(pairs))}")
    if _digests(kinds) == set(DIGESTS.values()):
        kinds = {kind: _renamed(part, CLASS_NAMES) for kind, part in kinds.items()}
    return Parts(str(folder), kinds["train"], kinds.get("val"), kinds.get("test"))


def _part(images: Path, labels: Path, class_names: tuple[str, ...] | None) -> Part:
    shape, digest = _header_and_digest(images)
    if len(shape) != 3:
        raise DatasetError(f"{images}: the header says {shape}, expected images, height and width")
    values = np.concatenate(list(_rows(labels, 1 << 20)) or [np.zeros(0, np.uint8)])
    if values.ndim != 1 or len(values) != shape[0]:
        raise DatasetError(f"{labels}: {len(values)} labels for the {shape[0]} images of {images.name}")
    image_shape = (1, shape[1], shape[2])

    def chunks() -> Iterator[NDArray[np.uint8]]:
        for chunk in _rows(images, rows_of_chunk(image_shape)):
            yield chunk[:, np.newaxis]

    return Part(
        labels=values,
        image_shape=image_shape,
        chunks=chunks,
        digests={_plain(images): digest, _plain(labels): _header_and_digest(labels)[1]},
        class_names=class_names,
    )


def _header_and_digest(path: Path) -> tuple[tuple[int, ...], str]:
    """Return the lengths of the axes, and the SHA-256 of the decompressed file, which has the length that they say."""
    digest, count = hashlib.sha256(), 0
    with _opened(path) as file:
        shape = _header(file, path)
        digest.update(_header_bytes(shape))
        while block := file.read(1 << 20):
            digest.update(block)
            count += len(block)
    if count != math.prod(shape):
        raise DatasetError(f"{path}: {count} bytes of elements, its header says {shape}")
    return shape, digest.hexdigest()


def _rows(path: Path, rows: int) -> Iterator[NDArray[np.uint8]]:
    with _opened(path) as file:
        shape = _header(file, path)
        size = math.prod(shape[1:])
        while block := file.read(rows * size):
            yield np.frombuffer(block, np.uint8).reshape(-1, *shape[1:])


class _opened:  # noqa: N801 - used as a function is
    """The decompressed content of a file; whatever goes wrong with it is a `DatasetError` that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> IO[bytes]:
        try:
            with self.path.open("rb") as file:
                packed = file.read(2) == b"\x1f\x8b"
            opener: Any = gzip.open if packed else open
            self.file = opener(self.path, "rb")
        except OSError as err:
            raise DatasetError(f"{self.path} cannot be read: {err.strerror or err}") from err
        opened: IO[bytes] = self.file
        return opened

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        self.file.close()
        if isinstance(err, OSError | EOFError | zlib.error):
            raise DatasetError(f"{self.path} cannot be read: {err}") from err


def _header(file: IO[bytes], path: Path) -> tuple[int, ...]:
    start = file.read(4)
    if len(start) < 4 or start[:3] != bytes([0, 0, IDX_UINT8]):
        raise DatasetError(f"{path}: IDX header {start.hex()!r}, expected '000008' and the number of axes")
    lengths = file.read(4 * start[3])
    if len(lengths) < 4 * start[3] or not lengths:
        raise DatasetError(f"{path}: the file ends within its header")
    return tuple(int.from_bytes(lengths[at : at + 4]) for at in range(0, len(lengths), 4))


def _header_bytes(shape: tuple[int, ...]) -> bytes:
    return bytes([0, 0, IDX_UINT8, len(shape)]) + b"".join(size.to_bytes(4) for size in shape)


def _class_names(folder: Path) -> tuple[str, ...] | None:
    for name in NAMES_FILES:
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    return None


def _plain(path: Path) -> str:
    return path.name.removesuffix(".gz")


def _digests(kinds: dict[str, Part]) -> set[str]:
    return {digest for part in kinds.values() for digest in part.digests.values()}


def _renamed(part: Part, class_names: tuple[str, ...]) -> Part:
    return Part(part.labels, part.image_shape, part.chunks, part.digests, class_names, part.image)
