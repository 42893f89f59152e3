"""A tensor's name, datatype and shape, in the words of the Open Inference Protocol.

Used wherever the three travel together; knows neither files nor sessions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.format.tensors import DTYPES

Array = npt.NDArray[Any]

BYTES = "BYTES"  # elements of any length: texts, as arrays of `bytes` objects


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, datatype and shape of one input or output; the first axis is the batch, None stands for any size."""

    name: str
    datatype: str
    shape: tuple[int | None, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of one element; objects where they are texts."""
        return np.dtype(object) if self.datatype == BYTES else DTYPES[self.datatype]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row, without the batch axis."""
        return tuple(size for size in self.shape[1:] if size is not None)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; of texts, which have no size of their own, those of their references."""
        return int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize


def content(array: Array) -> bytes:
    """Return bytes that are equal for equal arrays of one shape and type; those of texts begin with their lengths."""
    if array.dtype != object:
        return array.tobytes()
    return b"".join(b"%d:%b" % (len(text), text) for text in map(bytes, array.ravel()))
