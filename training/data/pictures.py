"""A folder of pictures, one folder a class, prepared by the recipe and the code that the service will run.

Either the class folders lie in it, or below `train` and, where there are such, `val` and `test`. Everything that is
wrong with any folder or picture is found before the training, and said at once.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foldserve.format.image import ImageRecipe
from foldserve.pictures import FORMATS, PictureError, decode

from ..errors import DatasetError
from .part import Part, Parts, rows_of_chunk

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_NO_PICTURES = ("thumbs.db", "desktop.ini")  # left by systems that show folders; names with a dot in front are too
_AT_ONCE = 64  # pictures whose files are in memory at a time

T = TypeVar("T")


@dataclass
class Problems:
    """What is wrong with the folders, collected so that all of it is said at once."""

    lines: list[str] = field(default_factory=list)

    def raise_if_any(self) -> None:
        """Raise DatasetError with every line."""
        if self.lines:
            count = "1 problem" if len(self.lines) == 1 else f"{len(self.lines)} problems"
            listed = "".join(f"\n  {line}" for line in self.lines)
            raise DatasetError(f"{count} with the pictures; nothing was trained:{listed}")


@dataclass(frozen=True, eq=False)
class ClassFolders:
    """One set: class name -> its pictures, in order.

    Attributes:
        root: of the class folders.
        pictures: class name -> paths.
    """

    root: Path
    pictures: Mapping[str, Sequence[Path]]

    @property
    def paths(self) -> list[Path]:
        """All pictures, class by class."""
        return [path for paths in self.pictures.values() for path in paths]

    @property
    def labels(self) -> NDArray[np.str_]:
        """The class of each of `paths`, (N,)."""
        return np.array([name for name, paths in self.pictures.items() for _ in paths], dtype=np.str_)


def read_pictures(folder: Path, recipe: Callable[[Sequence[Path]], ImageRecipe], others: Mapping[str, Path]) -> Parts:
    """Return the sets of pictures in `folder`, and in folders of their own.

    Args:
        folder: with the class folders, or with `train`, `val` and `test` that hold them.
        recipe: gives how a picture becomes an image, from all pictures there are.
        others: `val` or `test` -> a folder with class folders of its own.

    Raises:
        DatasetError: there are no pictures, no set to train on, or something that is no file; or the list of all that
            is wrong: empty classes, classes that differ between the sets, files that are no pictures or unreadable.
    """
    problems = Problems()
    sets = {kind: class_folders(root, problems) for kind, root in (split_folders(folder) | dict(others)).items()}
    _check_classes(sets, problems)
    if not any(each.paths for each in sets.values()):
        problems.raise_if_any()
    image = _recipe_or_problem(recipe, sets, problems)
    parts = {kind: pictures_part(kind, each, image, problems) for kind, each in sets.items()}
    if problems.lines:  # then all pictures are looked at now, so that nothing is found out later
        for each in sets.values():
            for _ in decoded(each.paths, image, problems):
                pass
        problems.raise_if_any()
    return Parts(str(folder), parts["train"], parts.get("val"), parts.get("test"), problems.raise_if_any)


def split_folders(folder: Path) -> dict[str, Path]:
    """Return name of a set -> folder of its class folders: `folder` itself, or those below it that have such names."""
    inside = {entry.name.lower(): entry for entry in _folders(folder)}
    found = {kind: inside[name] for kind, names in SPLITS.items() for name in names if name in inside}
    if found and "train" not in found and len(found) == len(inside):
        raise DatasetError(f"{folder}: holds {' and '.join(sorted(inside))} but no train; expected train beside them")
    return found if "train" in found else {"train": folder}


def class_folders(root: Path, problems: Problems) -> ClassFolders:
    """Return the pictures of each class folder in `root`, in order; what is wrong is added to `problems`."""
    pictures = {entry.name: list(_files(entry)) for entry in _folders(root)}
    if not pictures:
        problems.lines.append(f"{root}: holds no folders, expected one for each class with its pictures")
    problems.lines += [f"{root / name}: no picture in this class" for name, paths in pictures.items() if not paths]
    problems.lines += [
        f"{str(root / name)!a}: its name is no UTF-8, as the name of a class has to be; rename it"
        for name in pictures
        if any("\udc80" <= letter <= "\udcff" for letter in name)
    ]
    return ClassFolders(root, pictures)


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as err:
        raise DatasetError(f"{root} cannot be read ({err.strerror or err}); expected a folder") from err


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and below it, in order, but for what systems leave there."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name.lower() in _NO_PICTURES:
            continue
        if entry.is_dir():
            yield from () if entry.is_symlink() else _files(entry)  # a link may lead back
        elif entry.exists() and not entry.is_file():
            raise DatasetError(f"{entry}: neither a file nor a folder; take it out")
        else:
            yield entry


def _check_classes(sets: Mapping[str, ClassFolders], problems: Problems) -> None:
    train = sets["train"]
    for kind, each in sets.items():
        missing = sorted(set(train.pictures) - set(each.pictures))
        unknown = sorted(set(each.pictures) - set(train.pictures))
        problems.lines += [f"{each.root}: no folder for the class {name!r} of {train.root}" for name in missing]
        problems.lines += [f"{each.root / name}: {kind} has this class, {train.root} has not" for name in unknown]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""  # it is named when it is decoded


def _recipe_or_problem(
    recipe: Callable[[Sequence[Path]], ImageRecipe], sets: Mapping[str, ClassFolders], problems: Problems
) -> ImageRecipe:
    try:
        return recipe([path for each in sets.values() for path in each.paths])
    except DatasetError as err:
        problems.lines.append(str(err))
        problems.raise_if_any()
        raise


def pictures_part(kind: str, folders: ClassFolders, image: ImageRecipe, problems: Problems) -> Part:
    """Return a set of pictures as a part; what goes wrong with a file is added to `problems` when it is read."""
    digest = hashlib.sha256()
    for name, paths in folders.pictures.items():
        for path in paths:
            digest.update(f"{name}\0{_digest(path)}\n".encode("utf-8", "surrogateescape"))
    shape = (image.channels, image.height, image.width)

    def chunks() -> Iterator[NDArray[np.uint8]]:
        return decoded(folders.paths, image, problems)

    return Part(
        folders.labels, shape, chunks, {kind: digest.hexdigest()}, tuple(folders.pictures), image, folders.paths
    )


def decoded(paths: Sequence[Path], image: ImageRecipe, problems: Problems) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of the pictures, a chunk at a time; one that cannot be read is black, and a problem."""
    black = np.zeros(image.shape, np.uint8)

    def read(path: Path) -> NDArray[np.uint8] | str:
        try:
            return decode(path.read_bytes(), image)
        except OSError as err:
            return f"{path}: cannot be read: {err.strerror or err}"
        except PictureError as err:
            return f"{path}: {err}"

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for some in _by(min(_AT_ONCE, rows_of_chunk(image.shape)), paths):
            results = list(threads.map(read, some))
            problems.lines += [result for result in results if isinstance(result, str)]
            yield np.stack([black if isinstance(result, str) else result for result in results])


def common_size(paths: Iterable[Path]) -> tuple[int, int]:
    """Return height and width of all the pictures, for which no size was given.

    Raises:
        DatasetError: they differ.
    """
    sizes: dict[tuple[int, int], Path] = {}
    for path in paths:
        try:
            with Image.open(path, formats=FORMATS) as image:
                sizes.setdefault((image.height, image.width), path)
        except Exception:  # noqa: S112 - it is named when it is decoded
            continue
    if len(sizes) == 1:
        return next(iter(sizes))
    if not sizes:
        raise DatasetError("none of the files is a PNG or JPEG picture")
    (small, one), (large, other) = (function(sizes.items()) for function in (min, max))
    raise DatasetError(
        f"pictures of {len(sizes)} sizes, such as {small[0]}x{small[1]} ({one.name}) and {large[0]}x{large[1]} "
        f"({other.name}), height x width; give --size HEIGHTxWIDTH for all"
    )


def _by(count: int, items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + count] for start in range(0, len(items), count))
