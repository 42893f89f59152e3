"""Rows of numbers as examples: arrays, .npy, .npz and .csv files, with their true classes where a column states them.

The column, array or key `label` holds the classes, as numbers or as names; it is no input, unless the network has one
of that name.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foldserve.format.errors import FormatError
from foldserve.format.tensors import tensor_bytes
from foldserve.format.text import decoded

from ..errors import ConfigError
from .examples import Examples, digest_of, of_arrays
from .network import Array

LABEL = "label"


def row_examples(
    given: Any,
    inputs: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    labels: Sequence[str] | None = None,
    *,
    have_classes: bool = False,
) -> Examples:
    """Return rows of numbers as examples.

    Args:
        given: an array for the one input, a mapping or a tuple of one array for each; or the path of a .npy, .npz or
            .csv file, whose first line may name the columns.
        inputs: name -> shape of a row and type.
        labels: class names.
        have_classes: read the true classes that stand beside the rows.

    Raises:
        ConfigError: they do not fit the inputs.
    """
    arrays = _row_arrays(read_rows(given), list(inputs))
    lengths = {len(array) for array in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ConfigError(f"examples: the inputs have {sorted(lengths)} rows, expected one number above 0")
    for name, (shape, dtype) in inputs.items():
        if len(arrays[name].shape[1:]) != len(shape) or any(
            size and size != got for size, got in zip(shape, arrays[name].shape[1:], strict=True)
        ):
            raise ConfigError(f"examples: input {name!r} has rows of {arrays[name].shape[1:]}, expected {shape}")
        if dtype.kind == "O" and arrays[name].dtype.kind not in "OUS":
            raise ConfigError(
                f"examples: input {name!r} takes text, got numbers; give a list, or .npy or .npz of texts"
            )
        arrays[name] = arrays[name].astype(dtype)
    stated = _stated_classes(given) if have_classes and LABEL not in inputs else None
    truth = None if stated is None else _truth(stated, labels, lengths.pop())
    parts = [tensor_bytes(array) for array in arrays.values()] + ([] if truth is None else [truth.tobytes()])
    return of_arrays("rows", arrays, digest_of(parts), truth)


def read_rows(given: Any) -> Any:
    """Return rows as they were given, or those of a .npy, .npz or .csv file without its column of classes.

    Raises:
        ConfigError: the file cannot be read so.
    """
    if not isinstance(given, str | Path):
        return given
    path = Path(given)
    if not path.is_file():
        pictures_need = "; a folder of pictures needs --image, which says how they become rows" if path.is_dir() else ""
        raise ConfigError(f"examples: {path} is no file; expected rows as .npy, .npz or .csv{pictures_need}")
    try:
        if path.suffix == ".csv":
            header = _header(path)
            kept = None if header is None else [place for place, name in enumerate(header) if name != LABEL]
            skipped = int(header is not None)
            return np.genfromtxt(path, np.float32, delimiter=",", skip_header=skipped, usecols=kept, ndmin=2)
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError) as err:
        raise ConfigError(f"examples: {path} cannot be read as .npy, .npz or .csv: {err}") from err


def column_names(path: Any) -> tuple[str, ...] | None:
    """Return the names of the inputs in the first line of a .csv file, None where it has none or is another file."""
    header = _header(path)
    return None if header is None else tuple(name for name in header if name != LABEL)


def _header(path: Any) -> tuple[str, ...] | None:
    if not isinstance(path, str | Path) or Path(path).suffix != ".csv" or not Path(path).is_file():
        return None
    with Path(path).open("rb") as file:
        cells = [cell.strip() for cell in _text(file.readline(), path).split(",")]
    try:
        [float(cell) for cell in cells]
    except ValueError:
        return tuple(cells)
    return None


def _text(content: bytes, path: Any) -> str:
    try:
        return decoded(content, f"examples: {path}")
    except FormatError as err:
        raise ConfigError(str(err)) from err


def _stated_classes(given: Any) -> Array | None:
    """Return the true classes beside the rows, as they stand there; None where none do."""
    header = _header(given)
    if header is not None and LABEL in header:
        text = io.StringIO(_text(Path(given).read_bytes(), given), newline="")
        lines = [line for line in csv.reader(text) if line][1:]
        return np.array([line[header.index(LABEL)].strip() for line in lines])
    if isinstance(given, str | Path):
        given = read_rows(given)
    return np.asarray(given[LABEL]) if isinstance(given, Mapping) and LABEL in given else None


def _truth(stated: Array, labels: Sequence[str] | None, rows: int) -> Array:
    """Return class ids (N,) for what stands beside the rows."""
    if stated.shape != (rows,):
        raise ConfigError(f"examples: {LABEL} has shape {stated.shape} for {rows} rows; expected one class for each")
    names = {name: number for number, name in enumerate(labels or ())}
    found = [names.get(str(value), _number(value)) for value in stated.tolist()]
    for place, number in enumerate(found):
        if number is None or number < 0 or (labels is not None and number >= len(labels)):
            known = (
                f"one of {', '.join(list(names)[:10])}, or its number" if names else "a number; --labels gives names"
            )
            raise ConfigError(f"examples: {LABEL} of row {place} is {stated[place]!s:.50}, expected {known}")
    return np.array(found, np.int64)


def _number(value: Any) -> int | None:
    try:
        return int(value) if float(value) == int(float(value)) else None
    except (ValueError, OverflowError):
        return None


def _row_arrays(given: Any, names: list[str]) -> dict[str, Array]:
    if isinstance(given, Mapping) and len(names) == 1 and names[0] not in given:
        others = [name for name in given if name != LABEL]
        given = {names[0]: given[others[0]]} if len(others) == 1 else given
    if isinstance(given, Mapping):
        missing = [name for name in names if name not in given]
        if missing:
            raise ConfigError(f"examples: no rows for input {missing[0]!r}; expected {', '.join(names)}")
        return {name: np.asarray(given[name]) for name in names}
    if isinstance(given, tuple) and len(given) == len(names):
        return {name: np.asarray(array) for name, array in zip(names, given, strict=True)}
    if len(names) != 1:
        raise ConfigError(f"examples: one array for {len(names)} inputs; expected one for each of {', '.join(names)}")
    return {names[0]: np.asarray(given)}
