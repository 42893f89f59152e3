"""Long JSON lists -> arrays, a slice at a time, so that neither the interpreter nor the memory is held by one of them.

Parsed in one go, a byte of JSON takes 8 to 24 bytes of objects, and nothing else runs meanwhile: 60 to 420 ms for
8 MB. Here a list is cut at commas between whole elements; each slice is parsed, converted and dropped before the next.
Where to cut is guessed from the brackets. A wrong guess, as inside a string, leaves a slice that is no JSON: the
parser, which reads all of them, refuses it.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ..errors import InvalidInput
from ..tensors import Array
from .json_body import describe, parse_json
from .limits import WHOLE_JSON_BYTES

_SLICE_BYTES = 65_536
_DEEPEST = 64  # lists within one another that are counted
_PAUSE_SECONDS = 1e-5  # enough for a thread that waits for the interpreter to get it

_COMMA, _OPEN_LIST, _CLOSE_LIST = b",[]"
_STEPS = bytes({b"[": 1, b"{": 1, b"]": 255, b"}": 255}.get(bytes([byte]), 0) for byte in range(256))  # 255 is -1

_DATA = b'"data"'
_AFTER_KEY = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*(?=\[)")
_BLANK = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class LongText:
    """A part of a body that was not parsed: one JSON value, at `body[start:stop]`."""

    body: bytes
    start: int
    stop: int

    @property
    def is_list(self) -> bool:
        """Whether it can be nothing but a list."""
        return self.body[self.start] == _OPEN_LIST and self.body[self.stop - 1] == _CLOSE_LIST


def element_slices(text: LongText) -> Iterator[list[Any] | LongText]:
    """Yield the elements of a list in order: several together, parsed, or one that is long itself, unparsed.

    Args:
        text: the list, with its brackets.

    Raises:
        InvalidInput: it is not JSON.
    """
    pauses = Pauses()
    for start, stop in _cuts(text.body, text.start + 1, text.stop - 1):
        element = _stripped(text.body, start, stop)
        if element.stop - element.start > WHOLE_JSON_BYTES:
            yield element
        else:
            if element.start == element.stop:
                raise InvalidInput(f"body: not JSON, an element is missing before byte {stop}")
            yield parse_json(b"[%b]" % text.body[element.start : element.stop], element.start - 1)
            pauses.pause()


class Pauses:
    """Lets other threads have the interpreter, between two pieces of work that keep it.

    A thread that wants it asks for it after 5 ms only, and the event loop wants it several times for one request. On a
    busy machine a pause takes long: then there are fewer, and never more of them than of work.
    """

    def __init__(self) -> None:
        self._next = 0.0

    def pause(self) -> None:
        """Pause, unless that has just been done for as long as has been worked since."""
        started = time.perf_counter()
        if started >= self._next:
            time.sleep(_PAUSE_SECONDS)
            ended = time.perf_counter()
            self._next = ended + (ended - started)


def cut_out_data(body: bytes, key: bytes = _DATA) -> tuple[bytes, dict[str, LongText]]:
    """Return a document with a word in the place of each long list under a key, and the lists by their words.

    Whoever reads the document has to meet each word once, where data may stand: then it is right exactly if the lists
    are. No sender knows the words.
    """
    pieces, lists = [], {}
    copied, position = 0, body.find(key)
    while position >= 0:
        match = _AFTER_KEY.match(body, position + len(key))
        if match is not None and (text := _plain_list(body, match.end())) is not None:
            word = secrets.token_hex(16)
            pieces.append(b'%b"%b"' % (body[copied : text.start], word.encode()))
            lists[word] = text
            copied = text.stop
        position = body.find(key, max(copied, position + 1))
    return b"".join([*pieces, body[copied:]]), lists


def flatten(data: Any, axes: int, place: str) -> tuple[list[Any], tuple[int, ...]]:
    """Return the innermost values in order, and the sizes of the lists around them, of which there are at most `axes`.

    Without that limit a body of a few megabytes, nested a thousand times, would be copied a thousand times.
    """
    if not isinstance(data, list):
        raise InvalidInput(f"{place}: {describe(data)}, expected a list of values")
    nesting = [len(data)]
    while data and isinstance(data[0], list):
        sizes = {len(row) if isinstance(row, list) else -1 for row in data}
        if len(sizes) != 1:
            raise InvalidInput(f"{place}: lists of different lengths at depth {len(nesting)}, expected a full tensor")
        if len(nesting) == axes:
            raise InvalidInput(f"{place}: lists nested deeper than the {axes} axes of the shape")
        nesting.append(sizes.pop())
        data = list(chain.from_iterable(data))
    return data, tuple(nesting)


def index_text(position: int, nesting: Sequence[int]) -> str:
    """Return where a value stands in a list: its index on each axis behind the name of the list.

    Args:
        position: of the value, counted through all lists.
        nesting: sizes of the lists; the first says nothing.
    """
    indices = np.unravel_index(position, (position + 1, *nesting[1:]))
    return "".join(f"[{index}]" for index in indices)


def long_nesting(text: LongText) -> tuple[int, ...]:
    """Return the sizes of nested lists, read along their first elements as `nesting_of` does; () for what is no list.

    What stands behind the first element of a list is only counted: whoever reads it all finds what does not fit.
    """
    commas: list[int] = []
    ended, depth = 0, 0  # so many of the innermost lists have ended
    for start in range(text.start, text.stop, _SLICE_BYTES):
        piece = text.body[start : min(start + _SLICE_BYTES, text.stop)]
        steps = np.frombuffer(piece.translate(_STEPS), np.int8)
        depths = depth + np.cumsum(steps, dtype=np.int32)
        is_comma = np.frombuffer(piece, np.uint8) == _COMMA
        if not ended:
            commas += [0] * (min(int(depths.max()), _DEEPEST) - len(commas))
        for level in range(len(commas) - ended, 0, -1):
            ends = np.flatnonzero((depths == level - 1) & (steps < 0))
            stop = int(ends[0]) if len(ends) else len(piece)
            commas[level - 1] += int(np.count_nonzero(is_comma[:stop] & (depths[:stop] == level)))
            ended += len(ends) > 0
        depth = int(depths[-1])
    return tuple(count + 1 for count in commas)


def check_room(text: LongText, expected: int, place: str) -> None:
    """Refuse a list that is too short for so many values, before there is room made for them.

    Raises:
        InvalidInput: it is.
    """
    most = (text.stop - text.start) // 2  # of one digit, with a comma behind it
    if most < expected:
        raise InvalidInput(f"{place}: {most} values or fewer, expected {expected}")


class LongListReader:
    """Reads one long list, flat or nested, into an array that has room for it.

    Args:
        values: takes the values in order, one axis.
        axes: lists may be nested so deep.
        convert: makes an array of some values; gets them with how they are nested, how many values of their list
            stand before them, and the place of that list.
        place: how a message names the list.
    """

    def __init__(
        self,
        values: Array,
        axes: int,
        convert: Callable[[list[Any], Sequence[int], int, str], Array],
        place: str,
    ) -> None:
        self._values = values
        self._axes = axes
        self._convert = convert
        self._place = place
        self._filled = 0

    def read(self, text: LongText) -> tuple[int, ...]:
        """Return how the list is nested, as sizes; its values are in the array then.

        Raises:
            InvalidInput: it is no full tensor of values, or has more than there is room for.
        """
        nesting = self._read(text, self._axes, self._place)
        if self._filled < len(self._values):
            self._refuse_count(str(self._filled))
        return nesting

    def _read(self, text: LongText, axes: int, place: str) -> tuple[int, ...]:
        if not text.is_list:
            raise InvalidInput(f"{place}: a value of {text.stop - text.start} bytes, expected lists of numbers")
        if not axes:
            raise InvalidInput(f"{self._place}: lists nested deeper than the {self._axes} axes of the shape")
        before, count, inner = self._filled, 0, None
        for part in element_slices(text):
            if isinstance(part, LongText):
                sizes = (1, *self._read(part, axes - 1, f"{place}[{count}]"))
            else:
                flat, sizes = flatten(part, axes, self._place)
                self._take(self._convert(flat, sizes, self._filled - before, place))
            if inner is not None and sizes[1:] != inner:
                depth = self._axes - axes + 1
                raise InvalidInput(
                    f"{self._place}: lists of different lengths at depth {depth}, expected a full tensor"
                )
            count, inner = count + sizes[0], sizes[1:]
        return (count, *(inner or ()))

    def _take(self, values: Array) -> None:
        filled = self._filled + len(values)
        if filled > len(self._values):
            self._refuse_count(f"more than {len(self._values)}")
        self._values[self._filled : filled] = values
        self._filled = filled

    def _refuse_count(self, count: str) -> None:
        raise InvalidInput(f"{self._place}: {count} values, expected {len(self._values)}")


def _cuts(body: bytes, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield where slices of whole elements of `body[start:stop]` begin and end; a long element is one by itself."""
    begin, depth = start, 0
    for at in range(start, stop, _SLICE_BYTES):
        piece = body[at : min(at + _SLICE_BYTES, stop)]
        commas, depth = _outer_commas(piece, depth)
        if commas is None:
            continue
        first, last = at + commas[0], at + commas[1]
        if first - begin > WHOLE_JSON_BYTES:
            yield begin, first
            begin = first + 1
        if last >= begin:
            yield begin, last
            begin = last + 1
    yield begin, stop


def _outer_commas(piece: bytes, depth: int) -> tuple[tuple[int, int] | None, int]:
    """Return the first and the last comma outside all brackets, None where there is none, and the depth behind."""
    if not depth and not any(bracket in piece for bracket in (b"[", b"]", b"{", b"}")):
        first = piece.find(b",")
        return (None if first < 0 else (first, piece.rfind(b","))), 0
    depths = np.cumsum(np.frombuffer(piece.translate(_STEPS), np.int8), dtype=np.int32)
    commas = np.flatnonzero((np.frombuffer(piece, np.uint8) == _COMMA) & (depths == -depth))
    return ((int(commas[0]), int(commas[-1])) if len(commas) else None), depth + int(depths[-1])


def _plain_list(body: bytes, start: int) -> LongText | None:
    """Return the list that starts here if it is long: it ends before the next string or object."""
    end = body.find(b'"', start)
    end = len(body) if end < 0 else end
    for brace in (b"{", b"}"):
        place = body.find(brace, start, end)
        end = end if place < 0 else place
    stop = body.rfind(b"]", start, end) + 1
    return LongText(body, start, stop) if stop - start > _SLICE_BYTES else None


def _stripped(body: bytes, start: int, stop: int) -> LongText:
    while start < stop and body[start] in _BLANK:
        start += 1
    while start < stop and body[stop - 1] in _BLANK:
        stop -= 1
    return LongText(body, start, stop)
