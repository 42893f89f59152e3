"""Fashion-MNIST from the first place that has it to arrays; the only module that knows how pixels become numbers.

`load` goes through the sources in a fixed order and checks every file's digest. It does not shuffle, augment or split.
"""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import DatasetError
from .sources import DEBIAN_FOLDER, DIGESTS, TORCHVISION_FOLDER, DebianArchive, Folder, Mirrors, Source

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
PIXEL_SCALE = 255  # the network sees pixel / 255; the exporter folds this into the first convolution
IDX_UINT8 = 0x08  # third byte of an IDX header: the type of the elements


@dataclass(frozen=True, eq=False)
class FashionMNIST:
    """The four files as arrays, with their source and their digests.

    Attributes:
        train_images: (60000, 1, 28, 28) uint8, 0 is background.
        train_labels: (60000,) int64, index into `CLASS_NAMES`.
        test_images: (10000, 1, 28, 28) uint8.
        test_labels: (10000,) int64.
        source: the place in words.
        digests: file name -> SHA-256 of its decompressed bytes.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    source: str
    digests: Mapping[str, str] = field(default_factory=dict)

    def on(self, device: torch.device) -> "Tensors":
        """Return the four arrays as tensors of the same types on `device`."""
        arrays = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        return Tensors(*(torch.as_tensor(array).to(device) for array in arrays))


class Tensors(NamedTuple):
    """The images and labels of a data set on one device."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def load(data_dir: str | Path | None = None, *, download: bool = True) -> FashionMNIST:
    """Return Fashion-MNIST from the first place that holds all four files with the right digests.

    A folder that is named (`data_dir`, else the environment's FASHION_MNIST_DIR) is the only one looked at: other data
    would be a silent surprise. Otherwise, in this order: the cache (foldserve/ under
    XDG_CACHE_HOME, else ~/.cache), Debian's dataset-fashion-mnist, data/FashionMNIST/raw as torchvision leaves it, the
    HTTPS mirrors, `apt-get download`.

    Args:
        data_dir: folder with the four files, .gz or decompressed, in it or in FashionMNIST/raw below it.
        download: whether mirrors and apt may be used.

    Raises:
        DatasetError: no place holds the data; the message lists each place and why it failed.
    """
    named = data_dir or os.environ.get("FASHION_MNIST_DIR")
    if named:
        flag = "--data-dir" if data_dir else "FASHION_MNIST_DIR"
        return load_from([Folder(flag, Path(named).expanduser())])
    return load_from(default_sources(download=download))


def default_sources(*, download: bool = True) -> list[Source]:
    """Return the places to look in, in order, when no folder is named."""
    cache = cache_folder()
    places: list[Source] = [
        Folder("cache", cache),
        Folder("Debian's dataset-fashion-mnist", DEBIAN_FOLDER),
        Folder("torchvision", Path("data") / TORCHVISION_FOLDER),
    ]
    return [*places, Mirrors(cache), DebianArchive(cache)] if download else places


def cache_folder() -> Path:
    """Return where downloads are kept: foldserve/fashion-mnist under XDG_CACHE_HOME, else under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "foldserve" / "fashion-mnist"


def load_from(sources: Sequence[Source], digests: Mapping[str, str] = DIGESTS) -> FashionMNIST:
    """Return the data from the first of `sources` that gives every file named in `digests`.

    Raises:
        DatasetError: none does; one line for each place with its reason.
    """
    reasons = []
    for source in sources:
        try:
            return _parse({name: source.read(name) for name in digests}, source.label)
        except DatasetError as error:
            reasons.append(f"  {source.label}: {error}")
    raise DatasetError(
        "Fashion-MNIST is in none of these places:\n" + "\n".join(reasons) + "\n"
        "give a folder with the four .gz files by --data-dir, or install Debian's dataset-fashion-mnist"
    )


def scale_pixels(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images (N, 1, 28, 28) as float32 in [0, 1], which is what the network takes."""
    return images.to(torch.float32).div_(PIXEL_SCALE)


def _parse(files: Mapping[str, bytes], label: str) -> FashionMNIST:
    return FashionMNIST(
        train_images=read_idx(files["train-images-idx3-ubyte"])[:, np.newaxis],
        train_labels=read_idx(files["train-labels-idx1-ubyte"]).astype(np.int64),
        test_images=read_idx(files["t10k-images-idx3-ubyte"])[:, np.newaxis],
        test_labels=read_idx(files["t10k-labels-idx1-ubyte"]).astype(np.int64),
        source=label,
        digests={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    )


def read_idx(content: bytes) -> NDArray[np.uint8]:
    """Return a fresh uint8 array of an IDX file: two zero bytes, type, number of axes, big-endian lengths, elements.

    Raises:
        DatasetError: the header is not that of uint8 elements, or the length disagrees with it.
    """
    if len(content) < 4 or content[:3] != bytes([0, 0, IDX_UINT8]):
        raise DatasetError(f"IDX header {content[:4].hex()!r}, expected '000008' and the number of axes")
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[at : at + 4]) for at in range(4, start, 4))
    if len(content) - start != math.prod(shape):
        raise DatasetError(f"IDX file with {len(content) - start} bytes of elements, its header says {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
