"""Pixels in a file that is mapped into memory: a data set may be larger than memory, and is decoded once.

The system keeps of it what fits and reads the rest again, so a training needs memory for its batches alone. A file
appears whole or not at all, under a name that its content decides; all of them may be deleted at any time. What a
process that was killed left unfinished goes when the next file is made.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..disk import unfinished
from ..errors import DatasetError


def cache_folder() -> Path:
    """Return where pixels are kept: foldserve/pixels under XDG_CACHE_HOME, else under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "foldserve" / "pixels"


def mapped(
    key: str, shape: tuple[int, ...], fill: Callable[[NDArray[np.uint8]], None], folder: Path | None = None
) -> NDArray[np.uint8]:
    """Return the array of this key, mapped into memory and not to be written to; made by `fill` when it is not there.

    Args:
        key: of everything that decides the content.
        shape: of the array.
        fill: gets the array to write to, mapped as well.
        folder: for the file; by default the cache's.

    Raises:
        DatasetError: the disk refuses. What `fill` raises goes through, and nothing is left behind.
    """
    folder = folder or cache_folder()
    path = folder / f"{key}.npy"
    found = _read(path, shape)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with unfinished(folder) as temporary:
            _write(temporary, shape, fill)
            os.replace(temporary, path)
    except OSError as err:
        raise _refusal(folder, err) from err
    made = _read(path, shape)
    if made is None:
        raise DatasetError(f"{path} was written and is gone; is something clearing the cache?")
    return made


def _write(path: Path, shape: tuple[int, ...], fill: Callable[[NDArray[np.uint8]], None]) -> None:
    array: Any = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    # Taken from the disk now: where it is full, writing to a mapped page later would end the process.
    with path.open("rb+") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    fill(array)
    array.flush()


def _read(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    with contextlib.suppress(OSError, ValueError):
        array: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.shape == shape and array.dtype == np.uint8:
            return array
    return None


def _refusal(folder: Path, err: OSError) -> DatasetError:
    return DatasetError(
        f"{folder}: the pixels cannot be kept there ({err.strerror or err}); free the disk, or set XDG_CACHE_HOME to a "
        "folder with room"
    )
