"""A tensor's name, datatype and shape, in the words of the Open Inference Protocol.

Used wherever the three travel together; knows neither files nor sessions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.format.tensors import BYTES, DTYPES

__all__ = ["BYTES", "Array", "TensorSpec", "content"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, datatype and shape of one input or output; the first axis is the batch, None stands for any size.

    `largest` is how large an axis behind the batch may be where the graph leaves it free.
    """

    name: str
    datatype: str
    shape: tuple[int | None, ...]
    largest: int = 1

    @property
    def is_free(self) -> bool:
        """Whether rows of different requests may differ in their shape."""
        return None in self.shape[1:]

    @property
    def declared_row_shape(self) -> tuple[int, ...]:
        """The shape of one row as the protocol writes it: -1 for a free axis."""
        return tuple(-1 if size is None else size for size in self.shape[1:])

    def takes(self, row_shape: tuple[int, ...]) -> bool:
        """Return whether a row may have this shape."""
        return len(row_shape) == len(self.shape) - 1 and all(
            1 <= size <= self.largest if stated is None else size == stated
            for size, stated in zip(row_shape, self.shape[1:], strict=True)
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of one element; objects where they are texts."""
        return np.dtype(object) if self.datatype == BYTES else DTYPES[self.datatype]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row, without the batch axis; of the largest one where axes are free."""
        return tuple(self.largest if size is None else size for size in self.shape[1:])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; of texts, which have no size of their own, those of their references."""
        return int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize


def content(array: Array) -> bytes:
    """Return bytes that are equal for equal arrays of one shape and type; those of texts begin with their lengths."""
    if array.dtype != object:
        return array.tobytes()
    return b"".join(b"%d:%b" % (len(text), text) for text in map(bytes, array.ravel()))
