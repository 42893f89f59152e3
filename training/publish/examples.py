"""The user's examples: pictures, or rows of numbers, with their true classes where one folder stands for each.

From paths and arrays to what the served graph takes and what the unfolded network takes. Where there are none, inputs
are made up from a fixed seed, and every listing says so.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from foldserve import pictures
from foldserve.format.image import ANY_SIZE, ImageRecipe
from foldserve.format.image_options import Normalisation

from ..errors import ConfigError
from .network import Array

ENDINGS = (".png", ".jpg", ".jpeg")
MADE_ROWS = 16
_MADE_SIDE = 64  # of made-up pictures where the network takes any
_CHECKED = 64  # float64 examples at most; the rest of a labelled set goes through both forms in float32


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What the proof runs on.

    Attributes:
        kind: `pictures`, `rows` or `made`.
        rows: how many.
        take: indices -> what the served graph takes, by its input names.
        take_original: indices -> what the unfolded network takes, by its input names, through the user's transforms.
        files: the encoded picture of each row, None where they are no files.
        truth: (N,) class ids, None where they are not known.
        digest: SHA-256 over content and classes: two models were measured on the same data where it is equal.
    """

    kind: str
    rows: int
    take: Callable[[Array], dict[str, Array]]
    take_original: Callable[[Array], dict[str, Array]]
    files: Sequence[bytes] | None = None
    truth: Array | None = None
    digest: str | None = None

    @property
    def checked(self) -> Array:
        """Indices of the rows that the float64 oracle answers, spread over all."""
        return np.unique(np.linspace(0, self.rows - 1, min(self.rows, _CHECKED)).astype(int))


@dataclass(frozen=True, kw_only=True)
class PictureInput:
    """How pictures become the input of one network.

    Attributes:
        recipe: what the service does with a picture.
        normalisation: what the network expects of the pixels.
        name: of the network's own input.
        transforms: the user's own, from a PIL picture to a float tensor; None: the recipe and the normalisation.
    """

    recipe: ImageRecipe
    normalisation: Normalisation
    name: str
    transforms: Callable[[Any], Any] | None = None

    def original(self, pixels: Array) -> Array:
        """Return pixels (N, ...) as the unfolded network takes them, float64."""
        return self.normalisation.apply(pixels, 1 if self.recipe.layout == "CHW" else pixels.ndim - 1)

    def of_file(self, data: bytes) -> Array:
        """Return what the user's own transforms make of an encoded picture, as one row."""
        assert self.transforms is not None
        image = Image.open(io.BytesIO(data))
        image.load()
        return np.asarray(self.transforms(image.convert("RGB")))


def picture_examples(given: Any, images: PictureInput, labels: Sequence[str] | None) -> Examples:
    """Return pictures as examples.

    Args:
        given: a folder (of pictures, or of one folder for each class); a list of paths, of PIL pictures or of uint8
            arrays (H, W, 3) or (H, W) of any size; or uint8 pixels (N, ...) of the recipe's own shape.
        images: how they become an input.
        labels: class names, to find the classes of folders.

    Raises:
        ConfigError: there are none, one is no picture, or a folder's name is no class.
    """
    if hasattr(given, "shape") and images.recipe.takes(tuple(given.shape)[-3:]) and not images.recipe.is_free:
        return _arrays_as_pictures(np.asarray(given), images)
    if hasattr(given, "shape"):
        given = [np.asarray(given)] if len(given.shape) < 4 else list(np.asarray(given))
    if not isinstance(given, str | Path) and any(not isinstance(item, str | Path) for item in given):
        files, truth = [_encoded(item, images.recipe) for item in given], None
    else:
        paths, truth = _paths(given, labels)
        files = [_read_picture(path, images.recipe) for path in paths]

    if images.recipe.is_free:
        _check_one_size(files, images.recipe)

    @lru_cache(_CHECKED)  # those that are checked are asked for again and again
    def pixels(row: int) -> Array:
        return pictures.decode(files[row], images.recipe)

    def take(rows: Array) -> dict[str, Array]:
        return {images.recipe.input: np.stack([pixels(int(row)) for row in rows])}

    def take_original(rows: Array) -> dict[str, Array]:
        if images.transforms is None:
            return {images.name: images.original(take(rows)[images.recipe.input])}
        return {images.name: np.stack([images.of_file(files[row]) for row in rows])}

    digest = digest_of([*files, b"" if truth is None else truth.tobytes()])
    return Examples(
        kind="pictures",
        rows=len(files),
        take=take,
        take_original=take_original,
        files=files,
        truth=truth,
        digest=digest,
    )


def made_rows(inputs: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], rows: int = MADE_ROWS) -> Examples:
    """Return made-up rows: normal floats, zeros and ones for integers, a few words for texts."""
    generator = np.random.default_rng(0)

    def made(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        whole = (rows, *shape)
        if dtype.kind == "O":
            return generator.choice(["", "a", "text", "Three words here"], whole).astype(object)
        if dtype.kind == "f":
            return generator.normal(size=whole).astype(dtype)
        return generator.integers(0, 256 if dtype == np.uint8 else 2, whole).astype(dtype)

    return of_arrays("made", {name: made(*form) for name, form in inputs.items()})


def made_pictures(images: PictureInput, rows: int = MADE_ROWS) -> Examples:
    """Return made-up pixels of several kinds: noise of every contrast and smooth shades, all of the recipe's shape."""
    generator = np.random.default_rng(0)
    shape = tuple(_MADE_SIDE if side == ANY_SIZE else side for side in images.recipe.shape)
    pixels = np.empty((rows, *shape), np.uint8)
    for row in range(rows):
        middle, spread = generator.uniform(40, 215, 3 if 3 in shape else 1), generator.uniform(5, 80)
        level = middle.reshape((-1, 1, 1) if images.recipe.layout == "CHW" else (1, 1, -1))
        pixels[row] = np.clip(level + spread * generator.normal(size=shape), 0, 255)
    made = _arrays_as_pictures(pixels, images)
    return Examples(kind="made", rows=rows, take=made.take, take_original=made.take_original)


def of_arrays(
    kind: str, arrays: Mapping[str, Array], digest: str | None = None, truth: Array | None = None
) -> Examples:
    """Return rows that lie in memory, by input."""

    def take(rows: Array) -> dict[str, Array]:
        return {name: array[rows] for name, array in arrays.items()}

    rows = len(next(iter(arrays.values())))
    return Examples(kind=kind, rows=rows, take=take, take_original=take, truth=truth, digest=digest)


def _arrays_as_pictures(pixels: Array, images: PictureInput) -> Examples:
    recipe = images.recipe
    pixels = pixels[np.newaxis] if pixels.ndim == len(recipe.shape) else pixels
    if pixels.dtype != np.uint8 or not recipe.takes(pixels.shape[1:]):
        raise ConfigError(
            f"examples: {pixels.dtype} {pixels.shape}, expected uint8 pixels (N, {', '.join(map(str, recipe.shape))}), "
            "or paths of pictures"
        )

    def take(rows: Array) -> dict[str, Array]:
        return {recipe.input: pixels[rows]}

    def take_original(rows: Array) -> dict[str, Array]:
        return {images.name: images.original(pixels[rows])}

    return Examples(
        kind="pictures", rows=len(pixels), take=take, take_original=take_original, digest=digest_of([pixels.tobytes()])
    )


def _check_one_size(files: Sequence[bytes], recipe: ImageRecipe) -> None:
    """Refuse pictures that become rows of several sizes, which no batch can hold."""
    shapes = {pictures.decode(file, recipe).shape for file in files}
    if len(shapes) > 1:
        raise ConfigError(
            f"examples: they become rows of {len(shapes)} sizes, as {' and '.join(map(str, sorted(shapes)[:2]))}; "
            "the network takes any, but the proof one: give pictures of one size"
        )


def _encoded(item: Any, recipe: ImageRecipe) -> bytes:
    """Return a picture in memory as the PNG that somebody would send; a path as its content."""
    if isinstance(item, str | Path):
        return _read_picture(Path(item), recipe)
    if not isinstance(item, Image.Image):
        array = np.asarray(item)
        if array.dtype != np.uint8 or array.shape[2:] not in ((), (3,), (4,)) or array.ndim < 2:
            raise ConfigError(f"examples: an array {array.dtype} {array.shape}; expected uint8 (H, W, 3) or (H, W)")
        item = Image.fromarray(array)
    content = io.BytesIO()
    item.save(content, "PNG")
    return content.getvalue()


def _paths(given: Any, labels: Sequence[str] | None) -> tuple[list[Path], Array | None]:
    if not isinstance(given, str | Path):
        paths = [Path(path) for path in given]
        if paths:
            return paths, None
        raise _none("the list of examples is empty")
    root = Path(given)
    if root.is_file():
        return [root], None
    if not root.is_dir():
        raise _none(f"{root} does not exist")
    flat, by_class = _pictures_in(root), _pictures_by_class(root)
    if flat and by_class:
        raise ConfigError(
            f"examples: {root} holds pictures ({flat[0].name}) beside folders of them ({next(iter(by_class))}); "
            "expected pictures, or one folder of them for each class"
        )
    if flat:
        return flat, None
    if not by_class:
        raise _none(f"{root} holds no picture that ends in {', '.join(ENDINGS)}, nor folders of them")
    names = list(labels or by_class)
    unknown = [name for name in by_class if name not in names]
    if unknown:
        raise ConfigError(f"{root}: folder {unknown[0]!r} is no class; the labels are {', '.join(names[:10])}")
    pairs = [(path, names.index(name)) for name, paths in by_class.items() for path in paths]
    return [path for path, _ in pairs], np.array([class_id for _, class_id in pairs], np.int64)


def class_folders(given: Any) -> list[str] | None:
    """Return the names of a labelled set's folders, as torchvision's ImageFolder; None for anything else."""
    if not isinstance(given, str | Path) or not Path(given).is_dir() or _pictures_in(Path(given)):
        return None
    return list(_pictures_by_class(Path(given))) or None


def _pictures_by_class(root: Path) -> dict[str, list[Path]]:
    """Return the pictures in and below each folder of `root`, by its name, sorted; nothing where no folder has any.

    A folder that is empty is a class all the same: its number is taken, as in torchvision's ImageFolder.
    """
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not _is_hidden(entry))
    found = {folder.name: sorted(_pictures_below(folder)) for folder in folders}
    return found if any(found.values()) else {}


def _pictures_below(folder: Path) -> Iterator[Path]:
    """Yield the pictures in a folder and in those inside it."""
    yield from _pictures_in(folder)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink() and not _is_hidden(entry):
            yield from _pictures_below(entry)


def _is_hidden(path: Path) -> bool:
    """Return whether a system or an editor put it there: `._rose.jpg`, `.ipynb_checkpoints`."""
    return path.name.startswith(".")


def _none(why: str) -> ConfigError:
    return ConfigError(f"examples: {why}; expected pictures (PNG, JPEG), or one folder of them for each class")


def _pictures_in(folder: Path) -> list[Path]:
    entries = (path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and not _is_hidden(path))
    return sorted(path for path in entries if path.is_file())


def _read_picture(path: Path, recipe: ImageRecipe) -> bytes:
    try:
        data = path.read_bytes()
        pictures.decode(data, recipe)
    except (pictures.PictureError, UnidentifiedImageError) as err:
        raise ConfigError(f"examples: {path}: {err}") from err
    except OSError as err:
        raise ConfigError(f"examples: {path} cannot be read: {err.strerror or err}") from err
    return data


def digest_of(parts: Iterable[bytes]) -> str:
    """Return the SHA-256 over the SHA-256 of each part."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()
