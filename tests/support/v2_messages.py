"""Requests and answers of the protocol written and read the plain way, as the reference of the V2 tests.

Follows the published text of the protocol and nothing of ours: `json` and NumPy, one tensor after the other.
"""

import json
from typing import Any

import numpy as np

DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "object": "BYTES",
}  # fmt: skip


def tensor_bytes(array: np.ndarray) -> bytes:
    """The bytes of a tensor behind the JSON."""
    if array.dtype == object:
        return b"".join(len(item).to_bytes(4, "little") + item for item in array.ravel())
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()


def tensor_entry(name: str, array: np.ndarray, form: str) -> dict[str, Any]:
    """An element of `inputs`; `form` is "flat", "nested" or "binary"."""
    entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": DATATYPES[str(array.dtype)]}
    if form == "binary":
        entry["parameters"] = {"binary_data_size": len(tensor_bytes(array))}
        return entry
    values = np.vectorize(bytes.decode, otypes=[object])(array) if array.dtype == object else array
    entry["data"] = (values.ravel() if form == "flat" else values).tolist()
    return entry


def request(inputs: dict[str, np.ndarray], form: str = "flat", **members: Any) -> tuple[bytes, int | None]:
    """A body and its header length."""
    head = {"inputs": [tensor_entry(name, array, form) for name, array in inputs.items()], **members}
    text = json.dumps(head).encode()
    if form != "binary":
        return text, None
    return text + b"".join(map(tensor_bytes, inputs.values())), len(text)


def answer(body: bytes, header_length: int | None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON of an answer, and its outputs as arrays."""
    head = json.loads(body if header_length is None else body[:header_length])
    rest = b"" if header_length is None else body[header_length:]
    outputs = {}
    for entry in head["outputs"]:
        size = entry.get("parameters", {}).get("binary_data_size")
        if size is None:
            outputs[entry["name"]] = _from_json(entry)
        else:
            outputs[entry["name"]] = _from_bytes(entry, rest[:size])
            rest = rest[size:]
    assert not rest
    return head, outputs


def _from_json(entry: dict[str, Any]) -> np.ndarray:
    dtype = _dtype(entry["datatype"])
    data = [item.encode() for item in entry["data"]] if dtype.kind == "O" else entry["data"]
    return np.array(data, dtype).reshape(entry["shape"])


def _from_bytes(entry: dict[str, Any], data: bytes) -> np.ndarray:
    dtype = _dtype(entry["datatype"])
    if dtype.kind != "O":
        return np.frombuffer(data, dtype.newbyteorder("<")).reshape(entry["shape"])
    items = []
    while data:
        length = int.from_bytes(data[:4], "little")
        items.append(data[4 : 4 + length])
        data = data[4 + length :]
    return np.array(items, object).reshape(entry["shape"])


def _dtype(datatype: str) -> np.dtype:
    return np.dtype(next(name for name, known in DATATYPES.items() if known == datatype))
