"""Tensors in the words of the Open Inference Protocol, and as the manifest writes them."""

import base64
import binascii
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import FormatError

Array = npt.NDArray[Any]

BYTES = "BYTES"  # elements of any length: texts, as arrays of `bytes` objects
LENGTH = struct.Struct("<I")  # of an element, before it

# V2 name -> numpy type. BYTES and BF16 exist in the protocol and have no numpy type of fixed size.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
LITTLE_ENDIAN: Mapping[str, np.dtype[Any]] = {name: dtype.newbyteorder("<") for name, dtype in DTYPES.items()}
DATATYPE_OF: Mapping[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPES.items()}


def tensor_bytes(array: Array) -> bytes:
    """Return the bytes of a tensor, little-endian; of an array of objects its texts, each after its length."""
    if array.dtype == object:
        elements = [element.encode() if isinstance(element, str) else bytes(element) for element in array.ravel()]
        return b"".join(part for element in elements for part in (LENGTH.pack(len(element)), element))
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def encode_tensor(array: Array) -> dict[str, Any]:
    """Return datatype, shape, and the bytes of the tensor in base64, as JSON values."""
    datatype = BYTES if array.dtype == object else DATATYPE_OF[array.dtype]
    content = base64.b64encode(tensor_bytes(array)).decode("ascii")
    return {"datatype": datatype, "shape": list(array.shape), "data": content}


def decode_tensor(tensor: Any, place: str = "tensor") -> Array:
    """Return the array that `encode_tensor` wrote, of `bytes` objects where it was of texts.

    Args:
        tensor: JSON values.
        place: how a message names it.

    Raises:
        FormatError: the datatype is unknown, or shape and bytes do not fit together.
    """
    try:
        content, shape = base64.b64decode(tensor["data"], validate=True), [int(size) for size in tensor["shape"]]
        if tensor["datatype"] == BYTES:
            return _texts(content).reshape(shape)
        dtype = DTYPES[tensor["datatype"]]
        return np.frombuffer(content, LITTLE_ENDIAN[tensor["datatype"]]).reshape(shape).astype(dtype)
    except (KeyError, TypeError, ValueError, struct.error, binascii.Error) as err:
        raise FormatError(f"{place} cannot be decoded: {err!r}; the manifest was changed or cut off") from err


def _texts(content: bytes) -> Array:
    elements: list[bytes] = []
    start = 0
    while start < len(content):
        stop = start + LENGTH.size + LENGTH.unpack_from(content, start)[0]
        if stop > len(content):
            raise ValueError("a text is cut off")
        elements.append(content[start + LENGTH.size : stop])
        start = stop
    array = np.empty(len(elements), object)
    array[:] = elements
    return array
