"""Requests that differ from an earlier one in nothing but their numbers: read without checking again what is the same.

In front of `RequestReader`, for the fast lane. A client writes the same text around its numbers each time. What stands
around them is remembered once the reader has accepted it; the numbers are checked every time. Whatever is unusual goes
to the reader, which also words every error.
"""

import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from ..batching.request import RawRows
from ..bodies.json_body import uint8_bytes
from ..bodies.limits import WHOLE_JSON_BYTES
from ..bounded_dict import BoundedDict
from ..errors import ServiceError
from ..tensors import TensorSpec
from .request import InferRequest, RequestReader

_DATA = b'"data":'
_LONGEST_AROUND = 1_024  # bytes around the numbers
_MOST_REMEMBERED = 64

Around = int | tuple[bytes, bytes]  # the length of a bare body, or the JSON before and behind the numbers


class RepeatedReader:
    """Reads the requests for one model; remembers those that repeat.

    Only a model with one input has any: a bare body of any numeric type, or a flat list of bytes (UINT8) in JSON.

    Args:
        reader: reads all the others.
        inputs: what the model takes.
    """

    def __init__(self, reader: RequestReader, inputs: tuple[TensorSpec, ...]) -> None:
        self._reader = reader
        self._spec = inputs[0] if len(inputs) == 1 else None
        self._is_plain = self._spec is not None and self._spec.dtype.kind in "iuf"
        self._known: BoundedDict[Around, InferRequest] = BoundedDict(_MOST_REMEMBERED)

    def plain(self, length: int) -> InferRequest | None:
        """Return what any bare body of this length requests, without its numbers; None where it has to be read."""
        if not self._is_plain:
            return None
        try:
            self.read(bytes(length), 0)
        except ServiceError:
            return None
        return self._known[length]

    def holds_pictures(self, body: bytes, header_length: int | None) -> bool:
        """Return whether a body may hold pictures that have to be decoded."""
        return self._reader.holds_pictures(body, header_length)

    def read(
        self, body: bytes, header_length: int | None, beat: Callable[[], None] | None = None
    ) -> tuple[RawRows | None, InferRequest]:
        """Return the request that a body holds, and its numbers as bytes if they are not in it.

        Raises:
            ServiceError: what `RequestReader.read` raises.
        """
        if self._reader.holds_pictures(body, header_length):
            return None, self._reader.read(body, header_length, beat)
        around, start, stop = self._around(body, header_length)
        known = self._known.get(around) if around is not None else None
        if known is not None:
            raw_rows = body if header_length == 0 else _flat_bytes(body[start:stop], known)
            if raw_rows is not None:
                return raw_rows, known
        request = self._reader.read(body, header_length)
        if around is not None and known is None and self._is_repeatable(request, around):
            self._known[around] = _without_numbers(request)
        return None, request

    def _around(self, body: bytes, header_length: int | None) -> tuple[Around | None, int, int]:
        """Return what surrounds the numbers of a body, None where nothing can repeat, and where they start and stop."""
        if header_length == 0:
            return (len(body) if self._is_plain else None), 0, len(body)
        if header_length is not None or self._spec is None or self._spec.datatype != "UINT8":
            return None, 0, 0
        if len(body) > WHOLE_JSON_BYTES:  # read in slices
            return None, 0, 0
        start = body.find(_DATA, 0, _LONGEST_AROUND) + len(_DATA)
        stop = body.find(b"]", start) + 1
        if start < len(_DATA) or not stop or len(body) - stop > _LONGEST_AROUND:
            return None, 0, 0
        return (body[:start], body[stop:]), start, stop

    @staticmethod
    def _is_repeatable(request: InferRequest, around: Around) -> bool:
        if request.id:  # the next one has another
            return False
        return isinstance(around, int) or _is_data_between(*around)


def _without_numbers(request: InferRequest) -> InferRequest:
    """Return the same request with inputs of no memory, which only say shape and type."""
    inputs = {name: np.broadcast_to(np.zeros((), array.dtype), array.shape) for name, array in request.inputs.items()}
    return InferRequest(inputs, request.outputs, "", request.timeout_seconds, request.parameters)


def _flat_bytes(text: bytes, known: InferRequest) -> bytes | None:
    """Return a flat JSON list of integers 0-255, as many as the only input had; None when it is anything else."""
    if b"t" in text or b"f" in text:  # true and false, which C takes for 1 and 0
        return None
    try:
        values = uint8_bytes([orjson.loads(text)])
    except (ValueError, TypeError):
        return None
    return values if len(values) == next(iter(known.inputs.values())).size else None


def _is_data_between(before: bytes, behind: bytes) -> bool:
    """Return whether what stands between is the data of the input, and not something that only looks like it.

    Any JSON value may stand where one stands: if a random word in this place is read as the data, so is every other
    value.
    """
    word = secrets.token_hex(16)
    try:
        document: Any = orjson.loads(b'%b["%b"]%b' % (before, word.encode(), behind))
        return bool(document["inputs"][0]["data"] == [word])
    except (ValueError, TypeError, LookupError):
        return False
