"""Whether the images to train, to choose and to test by are others: what was seen before measures nothing.

Images are compared by their pixels, so that a link, another name or a folder given twice makes no difference.
"""

import hashlib
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from ..dataset import Dataset
from ..errors import DatasetError

PURPOSES = {"train": "to train on", "val": "to choose by", "test": "to test on"}


def overlaps(dataset: Dataset, given: Collection[str]) -> tuple[str, ...]:
    """Return a warning for each two sets that share images.

    Args:
        dataset: with its sets.
        given: those of `val` and `test` that are sets of their own, and not held out of the images to train on.

    Raises:
        DatasetError: a set of its own holds nothing but images of the others, or images to choose by are in the test
            set and both are sets of their own.
    """
    images = {"train": dataset.train_images, "val": dataset.val_images, "test": dataset.test_images}
    digests = {kind: _digests(rows) for kind, rows in images.items() if rows is not None}
    for kind in given:
        others = np.concatenate([rows for other, rows in digests.items() if other != kind])
        if np.isin(digests[kind], others).all():
            raise DatasetError(_shared(len(digests[kind]), digests[kind], kind, "those of the other sets", kind))
    warnings = []
    for one, other in (("val", "test"), ("train", "test"), ("train", "val")):
        shared = int(np.isin(digests[other], digests[one]).sum()) if {one, other} <= set(digests) else 0
        whose = f"those {PURPOSES[one]}"
        if shared and {one, other} <= set(given):
            raise DatasetError(_shared(shared, digests[other], other, whose, f"{one} and --{other}"))
        if shared:
            warnings.append(_shared(shared, digests[other], other, whose))
    return tuple(warnings)


def _shared(shared: int, rows: NDArray[np.uint64], kind: str, whose: str, flags: str = "") -> str:
    what = f"{shared} of the {len(rows)} images {PURPOSES[kind]} are also among {whose}, pixel for pixel"
    if flags:
        return f"{what}; what was seen before measures nothing: give other images by --{flags}"
    return f"{what}: what is measured on them says nothing about new ones"


def _digests(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return a number of each image, (N,); different images have the same one once in 10^19."""
    rows = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in images)
    return np.fromiter((int.from_bytes(digest) for digest in rows), np.uint64, len(images))
