"""Arrays -> the bytes of an inference request, and the bytes of an answer -> arrays.

Pure functions, shared by both clients: JSON in front, little-endian row-major tensors behind it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from foldserve.format.tensors import DATATYPE_OF, LITTLE_ENDIAN, Array

from .errors import ClientError, DeadlineExceeded, Refused, Unavailable

HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Result:
    """One answer.

    Attributes:
        model: that answered.
        version: of it, as the server writes it.
        outputs: each output by name, with the batch as its first axis.
        id: that the caller gave, or empty.
    """

    model: str
    version: str
    outputs: Mapping[str, Array]
    id: str = ""


def infer_path(model: str, version: int | str | None, label: str | None) -> str:
    """Return the path of an inference call.

    Raises:
        ValueError: both a version and a label are given.
    """
    if version is not None and label is not None:
        raise ValueError(f"version {version!r} and label {label!r} were given, expected at most one of them")
    path = f"/v2/models/{quote(model, safe='')}"
    if version is not None:
        path += f"/versions/{quote(str(version), safe='')}"
    if label is not None:
        path += f"/labels/{quote(label, safe='')}"
    return f"{path}/infer"


def write_request(inputs: Mapping[str, Array], outputs: Sequence[str] | None, request_id: str) -> tuple[bytes, str]:
    """Return a body, and the length of the JSON at its beginning.

    Args:
        inputs: each input by name, with the batch as its first axis.
        outputs: the names that are wanted; None means all.
        request_id: comes back with the answer; empty for none.

    Raises:
        TypeError: an array has a type that the protocol does not have.
    """
    tails = []
    entries = []
    for name, values in inputs.items():
        array = np.asarray(values)
        datatype = DATATYPE_OF.get(array.dtype.newbyteorder("="))
        if datatype is None:
            expected = ", ".join(str(dtype) for dtype in DATATYPE_OF)
            raise TypeError(f"input {name!r} is of {array.dtype}, expected one of {expected}")
        tails.append(np.ascontiguousarray(array, LITTLE_ENDIAN[datatype]).tobytes())
        sized = {"binary_data_size": len(tails[-1])}
        entries.append({"name": name, "shape": list(array.shape), "datatype": datatype, "parameters": sized})
    head: dict[str, Any] = {"inputs": entries, "parameters": {"binary_data_output": True}}
    if outputs is not None:
        head["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    if request_id:
        head["id"] = request_id
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join((text, *tails)), str(len(text))


def read_answer(body: bytes, header_length: str | None) -> Result:
    """Return the outputs in an answer of status 200.

    Raises:
        ClientError: the body is not what the protocol promises.
    """
    try:
        size = len(body) if header_length is None else int(header_length)
        head = json.loads(body[:size])
        outputs = {}
        start = size
        for entry in head["outputs"]:
            length = (entry.get("parameters") or {}).get("binary_data_size")
            data = None if length is None else body[start : start + length]
            outputs[entry["name"]] = _read_tensor(entry, data)
            start += length or 0
        return Result(head["model_name"], str(head.get("model_version", "")), outputs, head.get("id", ""))
    except (ValueError, KeyError, TypeError) as err:
        raise ClientError(f"the answer is not one of the Open Inference Protocol: {err!r}") from err


def read_predictions(body: bytes) -> list[dict[str, Any]]:
    """Return the predictions in an answer of `/predict`.

    Raises:
        ClientError: the body is not such an answer.
    """
    try:
        predictions: list[dict[str, Any]] = json.loads(body)["predictions"]
    except (ValueError, KeyError, TypeError) as err:
        raise ClientError(f"the answer is not one of /predict: {err!r}") from err
    return predictions


def read_refusal(status: int, body: bytes) -> ClientError:
    """Return the error that an answer of another status stands for."""
    try:
        message = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        message = body[:200].decode("utf-8", "replace")
    if status == 504:
        return DeadlineExceeded(message)
    return Unavailable(status, message) if status in (429, 503) else Refused(status, message)


def _read_tensor(entry: Mapping[str, Any], data: bytes | None) -> Array:
    shape, datatype = entry["shape"], entry["datatype"]
    if datatype == "BYTES":
        return np.array(entry["data"] if data is None else _elements(data), object).reshape(shape)
    if data is None:
        return np.array(entry["data"], LITTLE_ENDIAN[datatype]).reshape(shape)
    return np.frombuffer(data, LITTLE_ENDIAN[datatype]).reshape(shape)


def _elements(data: bytes) -> list[str]:
    elements = []
    while data:
        stop = 4 + int.from_bytes(data[:4], "little")
        elements.append(data[4:stop].decode())
        data = data[stop:]
    return elements
