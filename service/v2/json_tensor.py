"""The `data` of a JSON tensor -> an array, exactly: what does not fit its datatype is refused, never rounded into it.

The list may be flat, nested as the shape says, or nested with neighbouring axes joined. The quick path runs in C from
end to end; only when it fails are the values looked at one by one, to name the first that will not do.
"""

from array import array as typed_array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any

import numpy as np

from foldserve.format.tensors import DTYPES

from ..bodies.json_body import describe, uint8_bytes
from ..bodies.long_json import LongListReader, LongText, check_room, flatten, index_text
from ..errors import InvalidInput, clip
from ..tensors import Array
from .datatypes import BYTES, bytes_tensor

# C types that check the range of an integer as they take it (lengths in bytes: 1, 2, 4, 8 each way).
_TYPECODES = {
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
}  # fmt: skip
_CHUNK = 4096  # values; a long list is searched at the quick path's speed up to the chunk with the mistake


def tensor_from_json(
    data: Any, datatype: str, shape: Sequence[int], place: str, *, may_hold_booleans: bool = True
) -> Array:
    """Return the array that a JSON value describes.

    Integers are written as integers (3.0 is refused for an integer type, as is 256 for UINT8), BOOL as true and
    false, floats as any number that does not overflow their type, BYTES as strings.

    Args:
        data: what stands under "data", parsed or, where it is long, not yet.
        datatype: one of `foldserve.service.v2.datatypes.DATATYPES`.
        shape: sizes of all axes, none negative.
        place: how a message names the value, for example "inputs[0].data".
        may_hold_booleans: False when the caller knows that no value is true or false, which C would take for 1 and 0;
            looking at the type of each value is the largest part of the work.

    Raises:
        InvalidInput: the nesting or the number of values is not the shape's, or a value does not fit the datatype;
            FP16 does not travel as JSON at all.
    """
    if datatype == "FP16":
        raise InvalidInput(f"{place}: FP16 does not travel as JSON, send it as binary tensor data")
    if isinstance(data, LongText):
        return _from_long_text(data, datatype, shape, place)
    flat, nesting = flatten(data, len(shape), place)
    _check_nesting(nesting, shape, place)
    return _checked(flat, nesting, datatype, place, may_hold_booleans=may_hold_booleans).reshape(shape)


def _from_long_text(text: LongText, datatype: str, shape: Sequence[int], place: str) -> Array:
    """Return the array of a list that is read slice by slice; it takes its own size in memory and no more."""

    def convert(flat: list[Any], nesting: Sequence[int], before: int, place: str) -> Array:
        return _checked(flat, nesting, datatype, place, before=before)

    check_room(text, prod(shape), place)
    values = np.empty(prod(shape), DTYPES[datatype])
    _check_nesting(LongListReader(values, len(shape), convert, place).read(text), shape, place)
    return values.reshape(shape)


def _checked(
    flat: list[Any],
    nesting: Sequence[int],
    datatype: str,
    place: str,
    *,
    before: int = 0,
    may_hold_booleans: bool = True,
) -> Array:
    """Return values as an array, or refuse the first that does not fit; `before` stand before them in their list."""
    try:
        return _convert(flat, datatype, may_hold_booleans)
    except (TypeError, ValueError, OverflowError) as err:
        _refuse_first_misfit(flat, nesting, datatype, place, before)
        raise InvalidInput(f"{place}: not {datatype} values: {clip(err)}") from err


def _check_nesting(nesting: tuple[int, ...], shape: Sequence[int], place: str) -> None:
    """Refuse lists that are not the shape with some neighbouring axes joined (all of them: flat).

    Joining axes leaves out some of the running products of the sizes and changes none.
    """
    if set(accumulate(nesting, mul)) <= set(accumulate(shape, mul)) and prod(nesting) == prod(shape):
        return
    count, expected = prod(nesting), prod(shape)
    got = f"{count} values" if count != expected else f"lists nested as {nesting}"
    raise InvalidInput(f"{place}: {got}, expected {expected} for shape {tuple(shape)}, flat or nested as the shape")


def _convert(flat: list[Any], datatype: str, may_hold_booleans: bool) -> Array:
    """Return the values as an array, or raise one of several errors when any of them will not do."""
    if datatype == "BOOL":
        _expect(flat, bool)
        return np.array(flat, np.bool_)
    if datatype == BYTES:
        _expect(flat, str)
        return bytes_tensor([value.encode() for value in flat], (len(flat),))
    if may_hold_booleans:
        _expect(flat, int, float)
    if datatype == "UINT8":
        return np.frombuffer(uint8_bytes([flat]), np.uint8)
    if datatype in _TYPECODES:
        return _from_c(_TYPECODES[datatype], flat)
    with np.errstate(over="ignore"):
        values = _from_c("d", flat).astype(DTYPES[datatype], copy=False)
    if not np.isfinite(values).all():
        raise OverflowError("a number that overflows")
    return values


def _from_c(typecode: str, flat: Iterable[Any]) -> Array:
    """Return the values as an array of a C type, which refuses what it cannot hold."""
    values = typed_array(typecode, flat)
    return np.frombuffer(values, np.dtype(typecode)) if values else np.empty(0, np.dtype(typecode))


def _expect(flat: Iterable[Any], *kinds: type) -> None:
    if not set(map(type, flat)) <= set(kinds):
        raise TypeError("a value of another type")


def _refuse_first_misfit(flat: list[Any], nesting: Sequence[int], datatype: str, place: str, before: int) -> None:
    """Raise for the first value that does not fit, with its index as the sender nested it."""
    for start in range(0, len(flat), _CHUNK):
        chunk = flat[start : start + _CHUNK]
        if _fits(chunk, datatype):
            continue
        position = next(start + i for i, value in enumerate(chunk) if not _fits([value], datatype))
        where = index_text(before + position, nesting)
        raise InvalidInput(f"{place}{where}: {describe(flat[position])}, expected {_expected(datatype)}")


def _fits(values: list[Any], datatype: str) -> bool:
    try:
        _convert(values, datatype, True)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _expected(datatype: str) -> str:
    if datatype in _TYPECODES:
        limits = np.iinfo(DTYPES[datatype])
        return f"an integer {limits.min} to {limits.max} for {datatype}"
    return {"BOOL": "true or false", BYTES: "a string"}.get(datatype, f"a number that fits {datatype}")
