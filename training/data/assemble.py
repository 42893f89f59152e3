"""Parts -> a `Dataset`: classes named alike in all of them, rows held out, pixels in one file mapped into memory."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dataset import Dataset
from ..errors import DatasetError
from .cache import mapped
from .overlap import overlaps
from .part import Part, Parts
from .split import held_out

LAYOUT = 1  # of the pixels in a file; another number makes the files anew
TEST, VAL = 1, 2  # what is held out: each has random numbers of its own


def assemble(parts: Parts, *, val_share: float, test_share: float, seed: int = 0, cache: Path | None = None) -> Dataset:
    """Return the data of `parts`, with what they lack held out of the training set.

    Args:
        parts: as a reader gives them.
        val_share: of each class, held out to choose by where there is no such part; 0 holds nothing out.
        test_share: likewise to test on, of what there was at first; above 0 where there is no such part.
        seed: of the choice of rows.
        cache: folder for the pixels; by default the cache's.

    Raises:
        DatasetError: parts do not fit together, or are too small; or reading an image fails; or images to
            choose or to test by were seen before.
    """
    given = [part for part in (parts.train, parts.val, parts.test) if part is not None]
    _check_alike(given)
    class_names, labels = _named([part.labels for part in given], parts.train.class_names)
    places = _places(parts, labels[0], class_names, val_share, test_share, seed)
    rows = np.concatenate(labels)
    _check_classes(class_names, rows[places == 0])
    order = np.argsort(places, kind="stable")  # training rows first, then validation, then test
    images = _pixels(parts, given, order, cache)
    sizes = [int((places == place).sum()) for place in range(3)]
    starts = np.cumsum([0, *sizes])
    train, val, test = (slice(starts[place], starts[place + 1]) for place in range(3))
    sorted_labels = rows[order]
    dataset = Dataset(
        images[train],
        sorted_labels[train],
        images[test],
        sorted_labels[test],
        source=parts.source,
        digests=_digests(given),
        class_names=class_names,
        val_images=images[val] if sizes[1] else None,
        val_labels=sorted_labels[val] if sizes[1] else None,
        image=parts.train.image,
        test_files=_files(given, order[test]),
    )
    own = [kind for kind in ("val", "test") if getattr(parts, kind) is not None]
    return replace(dataset, warnings=overlaps(dataset, own))


def share_out(dataset: Dataset, val_share: float, seed: int = 0) -> Dataset:
    """Return a data set in memory with a share of each class of its training images held out to choose by."""
    chosen = held_out(dataset.train_labels, val_share, _seed(seed, VAL), "--val", dataset.class_names)
    return replace(
        dataset,
        train_images=dataset.train_images[~chosen],
        train_labels=dataset.train_labels[~chosen],
        val_images=dataset.train_images[chosen],
        val_labels=dataset.train_labels[chosen],
    )


def _files(given: Sequence[Part], rows: NDArray[np.int64]) -> Sequence[Path]:
    """Return the files of these rows of all parts; none where a part has none."""
    files = [path for part in given for path in part.files]
    return [files[row] for row in rows] if all(part.files for part in given) else ()


def _check_alike(given: Sequence[Part]) -> None:
    first = given[0]
    for part in given:
        if not len(part.labels):
            raise DatasetError("a set holds no image at all; expected images with labels")
        if part.image_shape != first.image_shape:
            raise DatasetError(
                f"sets of images {first.image_shape} and {part.image_shape} (channels, height, width), expected one"
            )


def _named(
    labels: Sequence[NDArray[Any]], names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
    """Return the class names and each part's labels as ids; without names the labels themselves are the names."""
    found = np.unique(np.concatenate(labels))
    if names is None:
        names = tuple(str(value) for value in found)
        return names, [np.searchsorted(found, part).astype(np.int64) for part in labels]
    if found.dtype.kind == "U":
        known = {name: number for number, name in enumerate(names)}
        if unknown := [name for name in found if name not in known]:
            raise DatasetError(f"label {unknown[0]!r} is none of the class names {', '.join(names)}")
        return names, [np.array([known[name] for name in part], np.int64) for part in labels]
    if found.min() < 0 or found.max() >= len(names):
        raise DatasetError(f"labels from {found.min()} to {found.max()} with {len(names)} class names, expected below")
    return names, [part.astype(np.int64) for part in labels]


def _places(
    parts: Parts,
    train_labels: NDArray[np.int64],
    class_names: Sequence[str],
    val_share: float,
    test_share: float,
    seed: int,
) -> NDArray[np.int64]:
    """Return of each row of all parts where it goes: 0 training, 1 validation, 2 test."""
    places = np.zeros(len(train_labels), np.int64)
    if parts.test is None:
        places[held_out(train_labels, test_share, _seed(seed, TEST), "--test", class_names)] = 2
    left = np.flatnonzero(places == 0)
    if parts.val is None and val_share:
        chosen = held_out(train_labels[left], val_share, _seed(seed, VAL), "--val", class_names)
        places[left[chosen]] = 1
    others = [(parts.val, 1), (parts.test, 2)]
    return np.concatenate([places, *(np.full(len(part.labels), place) for part, place in others if part is not None)])


def _seed(seed: int, purpose: int) -> int:
    return int(np.random.SeedSequence([seed, purpose]).generate_state(1)[0])


def _pixels(parts: Parts, given: Sequence[Part], order: NDArray[np.int64], cache: Path | None) -> NDArray[np.uint8]:
    position = np.empty_like(order)
    position[order] = np.arange(len(order))  # where each row of the parts lies in the file

    def fill(out: NDArray[np.uint8]) -> None:
        row = 0
        for part in given:
            end = row + len(part.labels)
            for chunk in part.chunks():
                if row + len(chunk) > end:
                    raise DatasetError("a set holds more images than labels")
                out[position[row : row + len(chunk)]] = chunk
                row += len(chunk)
            if row != end:
                raise DatasetError(f"a set holds {end - row} images fewer than labels")
        parts.check()

    return mapped(_key(given, order), (len(order), *given[0].image_shape), fill, cache)


def _key(given: Sequence[Part], order: NDArray[np.int64]) -> str:
    image = given[0].image
    stated = [LAYOUT, [dict(part.digests) for part in given], None if image is None else image.as_dict()]
    digest = hashlib.sha256(json.dumps([*stated, given[0].image_shape], sort_keys=True).encode())
    digest.update(order.tobytes())
    return digest.hexdigest()


def _digests(given: Sequence[Part]) -> Mapping[str, str]:
    return {name: digest for part in given for name, digest in part.digests.items()}


def _check_classes(names: tuple[str, ...], train_labels: NDArray[np.int64]) -> None:
    """Raise DatasetError when there is nothing to tell apart, or a name that cannot stand on a line."""
    if len(names) < 2:
        raise DatasetError(f"there is one class only, {names[0]!r}; expected two or more")
    bad = [name for name in names if not name.strip() or any(ord(letter) < 32 for letter in name)]
    if bad or len(set(names)) < len(names):
        raise DatasetError(
            f"class names {', '.join(map(repr, bad or names))}: expected different ones of one line each"
        )
    absent = sorted({*range(len(names))} - set(np.unique(train_labels).tolist()))
    if absent:
        raise DatasetError(
            f"no image to train on for {', '.join(names[number] for number in absent[:20])}; expected one of each class"
        )
