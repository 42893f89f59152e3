"""What a training is given: images, labels, class names, and where they are from; here from Fashion-MNIST's files.

`load` goes through the places that may hold Fashion-MNIST in a fixed order and checks every file's digest; the room
`data` makes the same of other data. It is the only module that knows how pixels become numbers. It does not shuffle,
augment or split.
"""

import hashlib
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from foldserve.format.image import ImageRecipe, first_format_recipe

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


@dataclass(frozen=True)
class Interface:
    """What the data ask of a network.

    Attributes:
        image_shape: channels, height and width of an image.
        classes: how many logits it gives.
    """

    image_shape: tuple[int, int, int] = (1, 28, 28)
    classes: int = len(CLASS_NAMES)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels to train and to test on, with what they are called and where they are from.

    Attributes:
        train_images: (N, C, H, W) uint8; may lie in a file that is mapped into memory.
        train_labels: (N,) int64, index into `class_names`.
        test_images: likewise; nothing is chosen by them.
        test_labels: likewise.
        source: the place in words.
        digests: name of a file or of a part -> SHA-256 of its decompressed bytes.
        class_names: index = class id.
        val_images: likewise; what is chosen during a training is chosen by them. None: nothing is held out.
        val_labels: likewise.
        image: how a picture becomes an image; None: as format 1 has it, laid into the image on black.
        test_files: the picture of each test image, where they are files.
        warnings: what people should know of the data before they are trained on.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    source: str
    digests: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = field(kw_only=True)
    val_images: NDArray[np.uint8] | None = field(default=None, kw_only=True)
    val_labels: NDArray[np.int64] | None = field(default=None, kw_only=True)
    image: ImageRecipe | None = field(default=None, kw_only=True)
    test_files: Sequence[Path] = field(default=(), kw_only=True)
    warnings: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def picture(self) -> ImageRecipe:
        """How a picture becomes an image, for training and service alike."""
        channels, height, width = self.interface.image_shape
        return self.image or first_format_recipe(height, width, channels)

    @property
    def interface(self) -> Interface:
        """What a network for these data takes and gives."""
        channels, height, width = self.train_images.shape[1:]
        return Interface((channels, height, width), len(self.class_names))

    @property
    def title(self) -> str:
        """What the data are called, for people."""
        return self.source

    @property
    def about(self) -> str:
        """What a network of these data does, in sentences for its model card."""
        (channels, height, width), names = self.interface.image_shape, self.class_names
        listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        return (
            f"Names one of {len(names)} classes on a picture of {height}×{width} pixels, {channels} values each: "
            f"{listed}.\nWhat is in none of these classes gets one of their names all the same."
        )

    def on(self, device: torch.device) -> "Tensors":
        """Return the arrays as tensors of the same types on `device`; on the CPU they share the arrays' memory."""
        arrays = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        train_images, train_labels, test_images, test_labels = (as_tensor(array).to(device) for array in arrays)
        return Tensors(
            train_images,
            train_labels,
            test_images,
            test_labels,
            None if self.val_images is None else as_tensor(self.val_images).to(device),
            None if self.val_labels is None else as_tensor(self.val_labels).to(device),
        )


@dataclass(frozen=True, eq=False)
class FashionMNIST(Dataset):
    """The four files: 60,000 images (1, 28, 28) to train and 10,000 to test on, 0 is background."""

    class_names: tuple[str, ...] = field(default=CLASS_NAMES, kw_only=True)

    @property
    def title(self) -> str:
        """What the data are called, with their licence."""
        return "Fashion-MNIST (MIT licence, Zalando SE)"

    @property
    def about(self) -> str:
        """What a network of these data does, in sentences for its model card."""
        return (
            "Names the piece of clothing on a grey 28×28 image in the manner of Fashion-MNIST: light on dark, centred."
            "\nPhotographs, other sizes of cut-out and dark-on-light drawings are outside of what it has learned."
        )


class Tensors(NamedTuple):
    """The images and labels of a data set on one device."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    val_images: torch.Tensor | None = None
    val_labels: torch.Tensor | None = None


def as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """Return `array` as a tensor on the same memory, which nobody writes to although PyTorch could."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(array)


def rows_at_once(images: NDArray[np.uint8] | torch.Tensor, most: int) -> int:
    """Return how many of `images` (N, C, H, W) one forward pass may take: `most` of 28 x 28, fewer of larger ones.

    What the layers give for them grows with the pixels, and memory with it.
    """
    return max(2, min(most, most * 28 * 28 // math.prod(images.shape[1:])))


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


def scale_pixels(images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return uint8 images (N, C, H, W) in [0, 1], as `dtype`: what the network takes."""
    return images.to(dtype).div_(PIXEL_SCALE)


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
