"""A request -> the data: what lies at the path is recognised by its content, and read by the reader of its form."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from foldserve.format.image import ImageRecipe

from ..dataset import Dataset
from ..errors import ConfigError, DatasetError
from .assemble import assemble
from .cifar import find_cifar, read_cifar
from .idx import find_pairs, read_idx_folder
from .npz import read_npz
from .part import Part, Parts
from .pictures import common_size, read_pictures, split_folders
from .request import DEFAULT_SHARE, DataRequest, existing


def open_data(request: DataRequest, cache: Path | None = None) -> Dataset:
    """Return the data that `request` names; they are read whole once, and from the cache after that.

    Args:
        request: with a path; Fashion-MNIST has a loader of its own.
        cache: folder for the pixels; by default the cache's.

    Raises:
        DatasetError: the data are missing, broken or too few; all that is wrong with pictures is listed. Or images to
            choose or to test by were seen before.
        ConfigError: a flag contradicts the data.
    """
    path = existing("--data", request.data)
    val_share, test_share = request.shares
    others = {
        kind: existing(f"--{kind}", text)
        for kind, text, share in (("val", request.val, val_share), ("test", request.test, test_share))
        if text and share is None
    }
    arrays = _arrays(path)
    if arrays is None:
        parts = read_pictures(path, lambda paths: _recipe(request, paths), others)
    else:
        _refuse_picture_flags(request)
        own = {kind: _only_part(f"--{kind}", other) for kind, other in others.items()}
        parts = replace(arrays, val=own.get("val", arrays.val), test=own.get("test", arrays.test))
    for kind, share in (("val", val_share), ("test", test_share)):
        if share and kind not in others and getattr(parts, kind) is not None:
            raise ConfigError(f"--{kind} {share}: the data bring a set of their own for that; leave --{kind} out")
    if val_share == 0:
        parts = replace(parts, val=None)
    return assemble(
        parts,
        val_share=DEFAULT_SHARE if val_share is None else val_share,
        test_share=DEFAULT_SHARE if test_share is None else test_share,
        seed=request.split_seed,
        cache=cache,
    )


def require_outside(request: DataRequest, places: Mapping[str, Path]) -> None:
    """Raise ConfigError when a folder that is written to lies among the pictures, where it would be taken for a class.

    Args:
        request: with a path of pictures.
        places: flag that names a folder, whether or not it was given -> the folder.
    """
    roots = list(split_folders(Path(request.data)).values())
    roots += [
        Path(text)
        for text, share in zip((request.val, request.test), request.shares, strict=True)
        if text and share is None
    ]
    for flag, place in places.items():
        for root in roots:
            if place.resolve().is_relative_to(root.resolve()):
                raise ConfigError(
                    f"{flag} {place}: lies in {root}, whose folders are the classes; choose a folder outside by {flag}"
                )


def _arrays(path: Path) -> Parts | None:
    """Return the sets at a path, None for a folder of pictures.

    Raises:
        DatasetError: it is a file of no known form.
    """
    if path.is_dir():
        if find_cifar(path):
            return read_cifar(path)
        return read_idx_folder(path) if find_pairs(path) else None
    if path.suffix == ".npz":
        return read_npz(path)
    raise DatasetError(
        f"{path} is a file of no known form; expected a .npz file, a folder with IDX files or CIFAR's, or a folder "
        "with one folder of pictures for each class"
    )


def _only_part(flag: str, path: Path) -> Part:
    """Return all images at the path of a set of its own.

    Raises:
        DatasetError: pictures beside arrays, or several sets.
    """
    parts = _arrays(path)
    if parts is None:
        raise DatasetError(f"{flag} {path} holds pictures and --data does not; expected the same form")
    if parts.val is not None or parts.test is not None:
        raise DatasetError(f"{flag} {path} holds several sets; expected one")
    return parts.train


def _recipe(request: DataRequest, paths: Sequence[Path]) -> ImageRecipe:
    return request.recipe(common_size(paths) if request.needs_common_size else None)


def _refuse_picture_flags(request: DataRequest) -> None:
    plain = DataRequest()
    for name in ("size", "resize", "colour"):
        if getattr(request, name) != getattr(plain, name):
            raise ConfigError(f"--{name}: these data are images already; leave --{name} out")
