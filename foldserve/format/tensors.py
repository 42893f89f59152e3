"""Tensors in the words of the Open Inference Protocol, and as the manifest writes them."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import FormatError

Array = npt.NDArray[Any]

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


def encode_tensor(array: Array) -> dict[str, Any]:
    """Return datatype, shape, and little-endian bytes in base64, as JSON values."""
    datatype = DATATYPE_OF[array.dtype]
    content = array.astype(LITTLE_ENDIAN[datatype], copy=False).tobytes()
    return {"datatype": datatype, "shape": list(array.shape), "data": base64.b64encode(content).decode("ascii")}


def decode_tensor(tensor: Any, place: str = "tensor") -> Array:
    """Return the array that `encode_tensor` wrote; `place` is how a message names it.

    Raises:
        FormatError: the datatype is unknown, or shape and bytes do not fit together.
    """
    try:
        dtype = DTYPES[tensor["datatype"]]
        flat = np.frombuffer(base64.b64decode(tensor["data"], validate=True), LITTLE_ENDIAN[tensor["datatype"]])
        return flat.reshape([int(size) for size in tensor["shape"]]).astype(dtype)
    except (KeyError, TypeError, ValueError, binascii.Error) as err:
        raise FormatError(f"{place} cannot be decoded: {err!r}; the manifest was changed or cut off") from err
