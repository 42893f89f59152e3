"""Reads a pickle of plain values and byte arrays, such as CIFAR's, without running anything that it asks for.

A pickle is a program; `pickle.load` of a stranger's file runs the stranger's code. Here every name that it may look up
is a stand-in of ours: an array is rebuilt from its shape and its bytes, and any other name is refused.
"""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError


class _Type:
    """Stands in for `numpy.dtype`: remembers what it was called with, and takes what else the pickle says of it."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name.decode("ascii", "replace") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands in for `numpy.ndarray`: keeps the shape and the bytes of an array of uint8."""

    def __init__(self) -> None:
        self.values: NDArray[np.uint8] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, content = state
        if not isinstance(kind, _Type) or kind.name not in ("u1", "|u1", "uint8") or is_fortran:
            raise pickle.UnpicklingError("an array that is not of uint8 in C order")
        if isinstance(content, str):
            content = content.encode("latin-1")
        if not isinstance(content, bytes) or math.prod(shape) != len(content):
            raise pickle.UnpicklingError(f"an array of shape {shape} with content of another length")
        self.values = np.frombuffer(content, np.uint8).reshape(shape)


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any, *_: Any) -> _Array:
    """Stand in for what newer pickles make an array with, from the same four things."""
    array = _Array()
    array.__setstate__((1, shape, kind, order != "C", bytes(content)))
    return array


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Stand in for `codecs.encode`, which pickles of protocol 2 use for bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes in an encoding other than latin1")
    return text.encode("latin-1")


_STAND_INS = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return our stand-in for what the pickle names."""
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of arrays needs")
        return _STAND_INS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse what lies outside of the pickle."""
        raise pickle.UnpicklingError("it refers to something outside of the file")


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the dictionary in a pickle, by text; its arrays are uint8, all else are plain values.

    Raises:
        DatasetError: the file is no pickle of a dictionary, or asks for anything but arrays of uint8.
    """
    try:
        with path.open("rb") as file:
            content = _Reader(file, encoding="bytes").load()
    except Exception as err:  # a pickle can be broken in any way
        raise DatasetError(f"{path} is not read: {err or type(err).__name__}") from err
    if not isinstance(content, dict):
        raise DatasetError(f"{path} holds a {type(content).__name__}, expected a dictionary of arrays and labels")
    return {_text(key): value.values if isinstance(value, _Array) else value for key, value in content.items()}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
