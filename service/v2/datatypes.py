"""Datatypes of the protocol and their bytes: little-endian, row-major, without padding.

Used by JSON, binary HTTP and gRPC alike. Every size is a Python integer and is compared with the bytes at hand before
anything is allocated, so a shape like 2^60 costs nothing.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np

from foldserve.format.tensors import DATATYPE_OF, DTYPES, LENGTH, LITTLE_ENDIAN, tensor_bytes

from ..errors import InvalidInput
from ..tensors import BYTES, Array

__all__ = ["BYTES", "DATATYPES", "bytes_tensor", "datatype_of", "tensor_from_bytes", "tensor_to_bytes"]

DATATYPES = (*DTYPES, BYTES)


def tensor_from_bytes(data: memoryview, datatype: str, shape: Sequence[int], place: str) -> Array:
    """Return an array over (not a copy of, where alignment allows) the bytes of one tensor.

    Args:
        data: exactly the bytes of this tensor.
        datatype: one of `DATATYPES`.
        shape: sizes of all axes, none negative.
        place: how a message names this tensor, for example "input 'image'".

    Returns:
        Array of `shape`, possibly read-only; of `bytes` objects where the datatype is BYTES.

    Raises:
        InvalidInput: there are more or fewer bytes than the shape needs, or a BOOL is neither 0 nor 1.
    """
    if datatype == BYTES:
        return _elements(data, shape, place)
    dtype = LITTLE_ENDIAN[datatype]
    expected = prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise InvalidInput(f"{place}: {len(data)} bytes, expected {expected} for {datatype} {tuple(shape)}")
    if datatype == "BOOL" and (np.frombuffer(data, np.uint8) > 1).any():
        raise InvalidInput(f"{place}: a BOOL byte is neither 0 nor 1")
    array = np.frombuffer(data, dtype).reshape(shape)
    # A tensor may start anywhere in a body; kernels that load 16 bytes at a time want their own alignment.
    return array if array.flags.aligned else array.copy()


def tensor_to_bytes(array: Array) -> bytes:
    """Return the bytes of one tensor; an array of objects is taken as BYTES."""
    return tensor_bytes(array)


def bytes_tensor(elements: Iterable[bytes], shape: Sequence[int]) -> Array:
    """Return an array of `bytes` objects of this shape."""
    listed = list(elements)
    array: np.ndarray[Any, Any] = np.empty(len(listed), object)
    array[:] = listed
    return array.reshape(shape)


def datatype_of(array: Array) -> str:
    """Return the protocol's name for the type of an array."""
    return BYTES if array.dtype == object else DATATYPE_OF[array.dtype]


def _elements(data: memoryview, shape: Sequence[int], place: str) -> Array:
    """Split the bytes of a BYTES tensor at the lengths that stand in them."""
    expected = prod(shape)
    if expected * LENGTH.size > len(data):
        raise InvalidInput(f"{place}: {len(data)} bytes, too few for {expected} elements with their lengths")
    elements: list[bytes] = []
    start = 0
    while start < len(data):
        body = start + LENGTH.size
        stop = body + LENGTH.unpack_from(data, start)[0] if body <= len(data) else len(data) + 1
        if stop > len(data) or len(elements) == expected:
            raise InvalidInput(f"{place}: the lengths in its {len(data)} bytes do not make {expected} elements")
        elements.append(bytes(data[body:stop]))
        start = stop
    if len(elements) != expected:
        raise InvalidInput(f"{place}: {len(elements)} elements, expected {expected} for BYTES {tuple(shape)}")
    return bytes_tensor(elements, shape)
