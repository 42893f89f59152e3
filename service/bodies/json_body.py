"""JSON that clients send: its size is checked before it is parsed, and its lists of small integers become bytes.

Pure functions of bytes, used by `/predict` and by the Open Inference Protocol.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any

import orjson

from ..errors import InvalidInput, TooManyRows, clip
from .limits import QUICK_BYTES


def parse_json(body: bytes) -> Any:
    """Return the document in a body.

    Raises:
        InvalidInput: it is not JSON, or holds NaN, Infinity, 1e999 or anything nested deeper than 1024.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as err:
        raise InvalidInput(f"body: not JSON, {err.msg} at line {err.lineno} column {err.colno}") from err


def describe(value: Any) -> str:
    """Return a JSON value in the words of a message: scalars as they were written, the rest by its kind."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    return clip(orjson.dumps(value).decode())


def uint8_bytes(lists: Iterable[list[Any]]) -> bytes:
    """Return the values of some lists of integers 0-255, one byte each, list after list.

    There is no faster check that all of them are such integers. It takes true for 1 and false for 0: the caller
    excludes booleans.

    Raises:
        TypeError, ValueError: a value is something else.
    """
    return b"".join(map(bytearray, lists))


class SizeGuard:
    """Refuses JSON with more values or lists than any request for a model has, before it is parsed.

    Parsed, `[],` takes twenty times its size: 64 MiB of them were 2.3 GB and held the interpreter for 16 s. Only what
    stands side by side is counted, by its commas; what is nested too deep the parser refuses itself, at once.

    Args:
        row_shapes: of each input, without the batch axis.
        max_rows: rows in one request.
        spare: values and lists besides those of the rows: names, parameters, objects.
    """

    def __init__(self, row_shapes: Sequence[Sequence[int]], max_rows: int, spare: int) -> None:
        self._max_rows = max_rows
        self._spare = spare
        self._most_values = max_rows * sum(map(prod, row_shapes)) + spare
        self._lists_per_value = max(_lists(shape) / max(1, prod(shape)) for shape in row_shapes)

    def check(self, body: bytes) -> None:
        """Let a body pass that is short, or holds no more than a request may.

        Raises:
            TooManyRows: it holds more.
        """
        if len(body) <= QUICK_BYTES:
            return
        commas = body.count(b",")
        siblings = min(commas, body.count(b"[") + body.count(b"{"))
        if commas > self._most_values or siblings > self._lists_per_value * (commas + 1) + self._spare:
            raise TooManyRows(
                f"body: more values or lists than {self._max_rows} rows have, expected at most that many rows in one "
                "request: send them in several"
            )


def _lists(row_shape: Sequence[int]) -> int:
    """Return the lists in one row whose values are nested as deep as its shape: one around each run of values."""
    return sum(accumulate(row_shape[:-1], mul, initial=1)) if row_shape else 0
