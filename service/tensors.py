"""A tensor's name, datatype and shape, in the words of the Open Inference Protocol.

Used wherever the three travel together; knows neither files nor sessions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.format.tensors import DTYPES

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, datatype and shape of one input or output; the first axis is the batch, None stands for any size."""

    name: str
    datatype: str
    shape: tuple[int | None, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of one element."""
        return DTYPES[self.datatype]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row, without the batch axis."""
        return tuple(size for size in self.shape[1:] if size is not None)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize
