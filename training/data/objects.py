"""torchvision's datasets, and others of their form: an object with `data`, `targets` and `classes`, or with `samples`.

Their pixels are taken as they lie in the object; its transforms are not run, since the service could not run them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..dataset import Dataset
from ..errors import DatasetError
from .assemble import assemble
from .part import Part, Parts, array_part
from .pictures import ClassFolders, Problems, common_size, pictures_part
from .request import DEFAULT_SHARE, picture_recipe


def dataset_of(
    train: Any,
    test: Any = None,
    val: Any = None,
    *,
    val_share: float = DEFAULT_SHARE,
    test_share: float = DEFAULT_SHARE,
    split_seed: int = 0,
    size: tuple[int, int] | None = None,
    resize: str = "exact",
    colour: str = "RGB",
    cache: Path | None = None,
) -> Dataset:
    """Return the data of objects such as `torchvision.datasets.CIFAR10(root)`, to train on.

    Args:
        train: has `data`, uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), with `targets` or `labels`, and `classes`
            where its classes have names; or has `samples`, pairs of path and class id, and `classes`, as an
            `ImageFolder` does.
        test: likewise; None: a share of `train` is held out.
        val: likewise.
        val_share: of each class, where there is no `val`; 0 for none.
        test_share: of each class, where there is no `test`.
        split_seed: of what is held out.
        size: height and width of an image, for objects with `samples`.
        resize: likewise, `exact`, `crop` or `letterbox`.
        colour: likewise, `RGB` or `grey`.
        cache: folder for the pixels; by default the cache's.

    Raises:
        DatasetError: an object has neither form, or its images are of no form that is known.
    """
    given = {"train": train, "val": val, "test": test}
    problems = Problems()

    def part(kind: str, source: Any) -> Part:
        if hasattr(source, "samples"):
            paths = [Path(path) for path, _ in source.samples]
            height, width = size or common_size(paths)
            image = picture_recipe(height, width, resize=resize, colour=colour)
            return pictures_part(kind, _folders(source, paths), image, problems)
        return _array(kind, source)

    parts = {kind: part(kind, source) for kind, source in given.items() if source is not None}
    return assemble(
        Parts(type(train).__name__, parts["train"], parts.get("val"), parts.get("test"), problems.raise_if_any),
        val_share=val_share,
        test_share=test_share,
        seed=split_seed,
        cache=cache,
    )


def _array(kind: str, source: Any) -> Part:
    images, labels = getattr(source, "data", None), getattr(source, "targets", getattr(source, "labels", None))
    if images is None or labels is None:
        raise DatasetError(
            f"{kind}: a {type(source).__name__} has no data with targets or labels, nor samples; expected a dataset "
            "such as torchvision's CIFAR10, MNIST or ImageFolder"
        )
    names = getattr(source, "classes", None)
    return array_part(
        np.asarray(images), np.asarray(labels), kind, class_names=None if names is None else _names(names)
    )


def _names(classes: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(name) for name in classes)


def _folders(source: Any, paths: Sequence[Path]) -> ClassFolders:
    names = _names(source.classes)
    pictures: dict[str, list[Path]] = {name: [] for name in names}
    for path, (_, number) in zip(paths, source.samples, strict=True):
        pictures[names[number]].append(path)
    return ClassFolders(Path(getattr(source, "root", ".")), pictures)
