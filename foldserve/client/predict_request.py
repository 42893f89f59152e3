"""Pictures, arrays and rows -> the body of `POST /predict`, for both clients. Pure functions; only files are read."""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np

from foldserve.format.picture_types import picture_type
from foldserve.format.tensors import DTYPES, LITTLE_ENDIAN, Array

# A picture is a path or its bytes; several pictures, rows, or arrays of pixels or rows are a list or an array.
Picture = str | os.PathLike[str] | bytes
Source = Picture | Array | Mapping[str, Any] | Sequence[Any]


@dataclass(frozen=True)
class PredictBody:
    """What is sent.

    Attributes:
        content: of the body.
        content_type: of it.
        is_one: whether it asks about a single picture or row, whose prediction then comes back alone.
    """

    content: bytes
    content_type: str
    is_one: bool = False


def predict_path(model: str | None, version: int | str | None, label: str | None, top: int | None) -> str:
    """Return the path and query of a call; what is None is left to the server."""
    given = {"model": model, "version": version, "label": label, "top": top}
    query = urlencode({name: value for name, value in given.items() if value is not None})
    return f"/predict?{query}" if query else "/predict"


def body_of(source: Source) -> PredictBody:
    """Return the body for anything but an array.

    Args:
        source: a picture (a path or the bytes of a PNG or JPEG file), a JSON file with `{"instances": [...]}`, a row
            (columns or inputs by name), or a list of pictures or of rows.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is neither a picture nor JSON, or the list is empty.
    """
    if isinstance(source, str | os.PathLike | bytes):
        content, content_type = _file(source)
        return PredictBody(content, content_type, is_one=content_type != "application/json")
    if isinstance(source, Mapping):
        return PredictBody(_instances([source]), "application/json", is_one=True)
    items = list(source)
    if not items:
        raise ValueError("got an empty list, expected at least one picture or row")
    if all(isinstance(item, str | os.PathLike | bytes) for item in items):
        return _form([_file(item) for item in items])
    return PredictBody(_instances(items), "application/json")


def body_of_array(array: Array, inputs: Sequence[Mapping[str, Any]]) -> PredictBody:
    """Return the body for an array of pixels or rows, alone or with the batch as its first axis.

    Args:
        array: of the model's own type; nothing is cast.
        inputs: what the model's metadata says of them.

    Raises:
        TypeError: the array has another type.
        ValueError: it has another shape, or the model has several inputs.
    """
    if len(inputs) != 1:
        names = [entry["name"] for entry in inputs]
        raise ValueError(f"the model takes {names}, expected one input for an array: give rows by name, or call infer")
    row_shape, datatype = tuple(inputs[0]["shape"][1:]), inputs[0]["datatype"]
    is_one = len(array.shape) == len(row_shape)
    if array.dtype.newbyteorder("=") != DTYPES.get(datatype):
        raise TypeError(f"got an array of {array.dtype}, the model takes {datatype}: .astype(np.{DTYPES[datatype]})")
    given = array.shape if is_one else array.shape[1:]
    if len(given) != len(row_shape) or any(size not in (-1, got) for size, got in zip(row_shape, given, strict=True)):
        raise ValueError(f"got an array of shape {array.shape}, the model takes {row_shape}, with or without a batch")
    if -1 in row_shape:  # bare bytes do not say how large a row is
        return PredictBody(_instances([array] if is_one else list(array)), "application/json", is_one)
    content = np.ascontiguousarray(array, LITTLE_ENDIAN[datatype]).tobytes()
    return PredictBody(content, "application/octet-stream", is_one)


def _file(source: Picture) -> tuple[bytes, str]:
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    content_type = picture_type(content)
    if content_type is not None:
        return content, content_type
    if content.lstrip()[:1] == b"{":
        return content, "application/json"
    named = f"{len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
    raise ValueError(
        f'{named}: neither PNG, JPEG nor a JSON object, by its first bytes; rows are given as {{"instances": [[...]]}}'
    )


def _instances(rows: list[Any]) -> bytes:
    return json.dumps({"instances": rows}, default=_plain, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """Return NumPy's values as JSON knows them."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"got a {type(value).__name__} in a row, expected numbers, strings, lists or arrays")


def _form(files: list[tuple[bytes, str]]) -> PredictBody:
    boundary = secrets.token_hex(16)
    parts = []
    for number, (content, content_type) in enumerate(files):
        if content_type == "application/json":
            raise ValueError(f"file {number} of a list is JSON, expected pictures: ask about it by itself")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{number}"\r\n'
        parts += [f"{head}Content-Type: {content_type}\r\n\r\n".encode(), content, b"\r\n"]
    body = b"".join([*parts, f"--{boundary}--\r\n".encode()])
    return PredictBody(body, f"multipart/form-data; boundary={boundary}")
