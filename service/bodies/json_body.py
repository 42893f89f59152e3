"""JSON that clients send: what it holds is counted before it is parsed, and its lists of small integers become bytes.

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

_DESCRIBED_CHARACTERS = 200  # more than a message quotes, and no more of a long string is looked at
_COUNTED_BYTES = 262_144
_MARKS = {b",": "commas", b"[": "lists", b"{": "objects", b'"': "quotes"}
_QUOTES = 4  # of a key and its value
FREE_SIDE = 16  # values of the shortest free axis that is expected in a long body


def parse_json(text: bytes, offset: int | None = None) -> Any:
    """Return the document in a body.

    Args:
        text: the document.
        offset: where it begins in the body, if it is a slice of one.

    Raises:
        InvalidInput: it is not JSON, or holds NaN, Infinity, 1e999 or anything nested deeper than 1024.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as err:
        place = f"line {err.lineno} column {err.colno}" if offset is None else f"byte {offset + err.pos}"
        raise InvalidInput(f"body: not JSON, {err.msg} at {place}") from err


def describe(value: Any) -> str:
    """Return a JSON value in the words of a message: scalars as they were written, the rest by its kind."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        value = value[:_DESCRIBED_CHARACTERS]
    return clip(orjson.dumps(value).decode())


def nesting_of(value: Any) -> tuple[int, ...]:
    """Return the sizes of nested lists, read along their first elements; empty for what is no list."""
    sizes = []
    while isinstance(value, list):
        sizes.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(sizes)


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as text, cut where a list is nested a thousand times."""
    return str(shape) if len(shape) <= 6 else f"({', '.join(map(str, shape[:6]))}, ...)"


def uint8_bytes(lists: Iterable[list[Any]]) -> bytes:
    """Return the values of some lists of integers 0-255, one byte each, list after list.

    There is no faster check that all of them are such integers. It takes true for 1 and false for 0: the caller
    excludes booleans.

    Raises:
        TypeError, ValueError: a value is something else.
    """
    return b"".join(map(bytearray, lists))


class SizeGuard:
    """Refuses JSON with more of anything than a request for a model has, before it is parsed.

    Parsed, `[],` takes twenty times its size: 64 MiB of them were 2.3 GB and held the interpreter for 16 s. Everything
    that becomes an object is counted by its marks: values by their commas, lists, objects, and strings with the keys
    among them. Marks inside strings count too; no right request has many.

    Args:
        row_shapes: of each input, without the batch axis.
        max_rows: rows in one request.
        spare: values, lists, objects and strings besides those of the rows: names, parameters.
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
            InvalidInput: the same, of what does not come with rows.
        """
        if len(body) <= QUICK_BYTES:
            return
        counts = dict.fromkeys(_MARKS, 0)
        for start in range(0, len(body), _COUNTED_BYTES):  # a longer count would hold the interpreter for long
            piece = body[start : start + _COUNTED_BYTES]
            for mark in counts:
                counts[mark] += piece.count(mark)
            self._check(**{name: counts[mark] for mark, name in _MARKS.items()})

    def _check(self, commas: int, lists: int, objects: int, quotes: int) -> None:
        most_lists = self._lists_per_value * (commas + 1) + self._spare
        siblings = min(commas, lists + objects + quotes // 2)  # the rest is nested
        if commas > self._most_values or siblings > most_lists:
            raise TooManyRows(
                f"body: more values or lists than {self._max_rows} rows have, expected at most that many rows in one "
                "request: send them in several"
            )
        if lists > most_lists or objects > self._spare or quotes > _QUOTES * self._spare:
            raise InvalidInput("body: not JSON, more lists or objects within one another than a request has")


def _lists(row_shape: Sequence[int]) -> int:
    """Return the lists in one row whose values are nested as deep as its shape: one around each run of values."""
    return sum(accumulate(row_shape[:-1], mul, initial=1)) if row_shape else 0
