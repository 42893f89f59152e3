"""`{"instances": [...]}` -> one uint8 array, as the model takes it: the JSON form of the body of `POST /predict`.

A well-formed image is converted by C code in one go; only when that fails is it read value by value, to name the
first one that will not do. Pure functions of bytes, as all of `predict_body`.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from foldserve.format.image import ANY_SIZE

from ..errors import InvalidInput, clip
from .decoder import decode_image
from .free_pictures import stacked, with_size
from .json_body import FREE_SIDE, SizeGuard, describe, nesting_of, parse_json, shape_text, uint8_bytes
from .limits import QUICK_BYTES, WHOLE_JSON_BYTES, Limits, PixelBudget, check_rows
from .long_json import LongListReader, LongText, Pauses, check_room, element_slices, flatten, index_text, long_nesting

if TYPE_CHECKING:
    from foldserve.format.image import ImageRecipe

Images = NDArray[np.uint8]

_U, _F = b"uf"

# What stands around the instances of a long body, and around the text of a long file.
_LONGEST_END = 1_024
_BEFORE = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"instances"[ \t\r\n]*:[ \t\r\n]*(?=\[)')
_BEHIND = re.compile(rb"\][ \t\r\n]*\}[ \t\r\n]*\Z")
_FILE_BEGIN = re.compile(rb'\{[ \t\r\n]*"b64"[ \t\r\n]*:[ \t\r\n]*"')
_FILE_END = re.compile(rb'"[ \t\r\n]*\}\Z')
_FILE = '{"b64": "<PNG or JPEG in base64>"}'
_BASE64_SLICE = 262_144


def images_from_json(body: bytes, spec: ImageRecipe, limits: Limits) -> Images:
    """Return the images of `{"instances": [...]}`; what `pixels_from_json` says holds here too."""
    if spec.is_free:
        return _free_images(body, spec, limits)
    pixels = pixels_from_json(body, spec, limits)
    return np.frombuffer(pixels, np.uint8).reshape(-1, *spec.shape)


def pixels_from_json(body: bytes, spec: ImageRecipe, limits: Limits) -> bytes:
    """Return the pixels of `{"instances": [...]}`, image after image.

    An instance is H x W nested (C x H x W or H x W x C for several channels, as the recipe says) or as many flat
    numbers, integers 0-255 (3.0 counts as one, true does not), or `{"b64": "<PNG or JPEG>"}`. The forms may be mixed
    within one request. Raises as `read_images` does, and a message names the place: "instances[0][5][7]: 256, expected
    an integer 0-255".
    """
    if len(body) > QUICK_BYTES:
        SizeGuard([spec.shape], limits.rows, spare=2 * limits.rows).check(body)
    parts: list[bytes] = []
    budget = limits.pixel_budget()
    # Searching a single letter is thirty times as fast as searching a word; plain pixels hold neither.
    may_hold_booleans = (
        len(body) > WHOLE_JSON_BYTES or (_U in body and b"true" in body) or (_F in body and b"false" in body)
    )
    for instances in instance_lists(body):
        check_rows(len(parts) + len(instances), limits)
        for instance in instances:
            place = f"instances[{len(parts)}]"
            if isinstance(instance, LongText):
                parts.append(_long_instance(instance, spec, budget, place))
                continue
            if isinstance(instance, dict):
                parts.append(_from_b64(instance, spec, budget, place).tobytes())
                continue
            pixels = None
            if not (may_hold_booleans and _holds_boolean(instance)):  # bytes and NumPy take true for 1
                pixels = _quick_pixels(instance, spec) or _whole_floats(instance, spec)
            parts.append(pixels or _checked_pixels(instance, spec, place))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _free_images(body: bytes, spec: ImageRecipe, limits: Limits) -> Images:
    """Return the images for a recipe that leaves sides free: nested lists, whose sizes say how large they are."""
    shape = tuple(FREE_SIDE if side == ANY_SIZE else side for side in spec.shape)
    SizeGuard([shape], limits.rows * FREE_SIDE**2, spare=2 * limits.rows).check(body)
    images: list[Images] = []
    budget = limits.pixel_budget()
    for instances in instance_lists(body):
        check_rows(len(images) + len(instances), limits)
        for instance in instances:
            images.append(_free_image(instance, spec, budget, f"instances[{len(images)}]", limits))
    return stacked(images, spec, limits, "instances[{}]".format)


def _free_image(instance: Any, spec: ImageRecipe, budget: PixelBudget, place: str, limits: Limits) -> Images:
    if isinstance(instance, LongText) and instance.is_list:
        known = _of_nesting(long_nesting(instance), spec, place, limits)
        return np.frombuffer(_long_instance(instance, known, budget, place), np.uint8).reshape(known.shape)
    if isinstance(instance, LongText):
        return _long_file(instance, spec, budget, place)
    if isinstance(instance, dict):
        return _from_b64(instance, spec, budget, place)
    if not isinstance(instance, list):
        raise InvalidInput(f'{place}: {describe(instance)}, expected nested lists or {{"b64": "<PNG or JPEG>"}}')
    known = _of_nesting(nesting_of(instance), spec, place, limits)
    pixels = None if _holds_boolean(instance) else _quick_pixels(instance, known) or _whole_floats(instance, known)
    return np.frombuffer(pixels or _checked_pixels(instance, known, place), np.uint8).reshape(known.shape)


def _of_nesting(nested: tuple[int, ...], spec: ImageRecipe, place: str, limits: Limits) -> ImageRecipe:
    """Return the recipe for pixels nested like this, which the model may take."""
    expected = _shapes(spec)[1]
    sizes = tuple(f"1 to {limits.side}" if side == ANY_SIZE else str(side) for side in expected)
    if len(nested) != len(expected) or not all(
        1 <= size <= limits.side if side == ANY_SIZE else size == side
        for size, side in zip(nested, expected, strict=True)
    ):
        raise InvalidInput(f"{place}: shape {shape_text(nested)}, expected nested lists ({', '.join(sizes)})")
    return with_size(spec, nested)


def instance_lists(body: bytes) -> Iterator[list[Any]]:
    """Yield the instances, in lists that follow one another; of a long body they are parsed a slice at a time.

    An instance that is long itself is a `LongText`, alone in its list.

    Raises:
        InvalidInput: the body is not `{"instances": [...]}` with at least one instance.
    """
    if len(body) <= WHOLE_JSON_BYTES:
        yield _parsed_instances(body)
        return
    start, stop = _BEFORE.match(body), _BEHIND.search(body, len(body) - _LONGEST_END)
    if start is None or stop is None:
        raise InvalidInput('body: expected an object {"instances": [...]} and no other key')
    for elements in element_slices(LongText(body, start.end(), stop.start() + 1)):
        yield [elements] if isinstance(elements, LongText) else elements


def _parsed_instances(body: bytes) -> list[Any]:
    """Return the list under "instances", not empty."""
    document = parse_json(body)
    shape = '{"instances": [...]}'
    if not isinstance(document, dict):
        raise InvalidInput(f"body: {describe(document)}, expected an object {shape}")
    if len(document) != 1 or "instances" not in document:
        unknown = [key for key in document if key != "instances"]
        if unknown:
            raise InvalidInput(f"body: unknown key {clip(unknown[0])!r}, expected {shape} and no other key")
        raise InvalidInput(f"body: no key 'instances', expected {shape}")
    instances = document["instances"]
    if not isinstance(instances, list):
        raise InvalidInput(f"instances: {describe(instances)}, expected a list")
    if not instances:
        raise InvalidInput("instances: an empty list, expected at least one instance")
    return instances


def _long_instance(text: LongText, spec: ImageRecipe, budget: PixelBudget, place: str) -> bytes:
    """Return the pixels of an instance that is long by itself: numbers, or a file, both read in slices."""
    if not text.is_list:
        return _long_file(text, spec, budget, place).tobytes()
    flat, nested = _shapes(spec)
    check_room(text, flat[0], place)
    values = np.empty(flat, np.uint8)
    shape = LongListReader(values, len(nested), _slice_pixels, place).read(text)
    if shape not in (flat, nested):
        raise InvalidInput(f"{place}: shape {shape_text(shape)}, expected {nested} or {flat[0]} values")
    return values.tobytes()


def _long_file(text: LongText, spec: ImageRecipe, budget: PixelBudget, place: str) -> Images:
    """Return the image in an instance that is a long file."""
    body, start, stop = text.body, text.start, text.stop
    begin, end = _FILE_BEGIN.match(body, start, stop), _FILE_END.search(body, stop - _LONGEST_END, stop)
    if begin is None or end is None:
        raise InvalidInput(f"{place}: expected {_FILE}")
    return decode_base64(body[begin.end() : end.start()].replace(b"\\/", b"/"), spec, budget, f"{place}.b64")


def _slice_pixels(items: list[Any], nesting: Sequence[int], before: int, place: str) -> Images:
    """Return the pixels of a slice of a long instance; those `before` it are in the same list."""
    kinds = set(map(type, items))
    try:
        if kinds == {int}:
            return np.frombuffer(uint8_bytes([items]), np.uint8)
        pixels = _whole_pixels(np.array(items)) if kinds <= {int, float} else None
    except (TypeError, ValueError):
        pixels = None
    if pixels is None:
        for index, item in enumerate(items):
            _pixel(item, place + index_text(before + index, nesting))
        raise InvalidInput(f"{place}: expected integers 0-255")
    return pixels


def _quick_pixels(instance: Any, spec: ImageRecipe) -> bytes | None:
    """Return the pixels of a well-formed instance, fast, or None when anything at all is unusual about it.

    The caller excludes booleans.
    """
    if type(instance) is not list or not instance:
        return None
    try:
        if type(instance[0]) is not list:
            is_whole = len(instance) == spec.channels * spec.height * spec.width
            return uint8_bytes([instance]) if is_whole else None
        if spec.channels != 1 or len(instance) != spec.height:
            return None
        if any(type(row) is not list or len(row) != spec.width for row in instance):
            return None
        return uint8_bytes(instance)
    except (TypeError, ValueError):
        return None


def _whole_floats(instance: Any, spec: ImageRecipe) -> bytes | None:
    """Return the pixels of an instance in which some are written as 3.0, or None when anything else is unusual.

    NumPy would make room for the longest string as often as there are values: it gets numbers alone.
    """
    flat, nested = _shapes(spec)
    if not isinstance(instance, list) or len(instance) not in (flat[0], nested[0]):
        return None
    try:
        values, shape = flatten(instance, len(nested), "")
        if shape not in (flat, nested) or not set(map(type, values)) <= {int, float}:
            return None
        pixels = _whole_pixels(np.array(values))
    except (InvalidInput, TypeError, ValueError):  # ragged, or too large for a double
        return None
    return None if pixels is None else pixels.tobytes()


def _whole_pixels(values: NDArray[Any]) -> Images | None:
    """Return numbers as pixels; None when one of them is no integer 0-255."""
    if values.dtype.kind not in "iuf" or values.min() < 0 or values.max() > 255:
        return None
    pixels = values.astype(np.uint8)
    return pixels if (pixels == values).all() else None


def _holds_boolean(instance: Any) -> bool:
    """Return whether a boolean stands in an instance, flat or one level down."""
    if not isinstance(instance, list):
        return False
    kinds = set(map(type, instance))
    if list in kinds:
        kinds.update(*(map(type, row) for row in instance if type(row) is list))
    return bool in kinds


def _shapes(spec: ImageRecipe) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the two shapes that an instance may have: flat, and nested."""
    nested = (spec.height, spec.width) if spec.channels == 1 else spec.shape
    return (math.prod(nested),), nested


def _checked_pixels(instance: Any, spec: ImageRecipe, place: str) -> bytes:
    """Return the pixels of an instance value by value, so that the first one that will not do can be named."""
    flat, nested = _shapes(spec)
    expected = f"expected {nested} or {flat[0]} values"
    if not isinstance(instance, list):
        raise InvalidInput(f'{place}: {describe(instance)}, {expected} or {{"b64": "<PNG or JPEG>"}}')
    shape = nesting_of(instance)
    if shape not in (flat, nested):
        _refuse_pixels_before_shape(instance, shape, place)
        raise InvalidInput(f"{place}: shape {shape_text(shape)}, {expected}")
    out = bytearray()
    _collect(instance, shape, place, out)
    return bytes(out)


def _collect(node: list[Any], shape: tuple[int, ...], place: str, out: bytearray) -> None:
    """Append the pixels below `node`, whose shape ought to be `shape`, to `out`."""
    for index, item in enumerate(node):
        where = f"{place}[{index}]"
        if len(shape) == 1:
            out.append(_pixel(item, where))
        elif not isinstance(item, list):
            raise InvalidInput(f"{where}: {describe(item)}, expected a row of {shape[1]} values")
        elif len(item) != shape[1]:
            raise InvalidInput(f"{where}: {len(item)} values, expected {shape[1]}")
        else:
            _collect(item, shape[1:], where, out)


def _pixel(value: Any, place: str) -> int:
    """Return a JSON number as an integer 0-255; 3.0 is 3."""
    if type(value) in (int, float) and 0 <= value <= 255 and value == int(value):
        return int(value)
    raise InvalidInput(f"{place}: {describe(value)}, expected an integer 0-255")


def _refuse_pixels_before_shape(instance: list[Any], shape: tuple[int, ...], place: str) -> None:
    """Name a first value that is no number at all: its type explains more than the shape that results from it."""
    if len(shape) == 1 and instance and not isinstance(instance[0], (int, float)):
        _pixel(instance[0], f"{place}[0]")


def _from_b64(instance: dict[str, Any], spec: ImageRecipe, budget: PixelBudget, place: str) -> Images:
    """Return the image under "b64", uint8 (C, H, W)."""
    if list(instance) != ["b64"] or not isinstance(instance["b64"], str):
        raise InvalidInput(f"{place}: expected exactly {_FILE}")
    return decode_base64(instance["b64"].encode(), spec, budget, f"{place}.b64")


def decode_base64(text: bytes, spec: ImageRecipe, budget: PixelBudget, place: str) -> Images:
    """Return the image in base64 text, uint8 of the form `spec.shape`; long text is decoded in slices.

    The interpreter is held meanwhile. Raises what `decode_image` raises, and InvalidInput where it is no base64.
    """
    last = max(0, len(text) - 1) // _BASE64_SLICE * _BASE64_SLICE
    pieces, pauses = [], Pauses()
    try:
        if text.find(b"=", 0, last) >= 0:
            raise ValueError("padding in the middle")
        for start in range(0, last + 1, _BASE64_SLICE):
            pieces.append(base64.b64decode(text[start : start + _BASE64_SLICE], validate=True))
            if last:
                pauses.pause()
    except ValueError as err:
        raise InvalidInput(f"{place}: not base64 (standard alphabet, padded, no line breaks)") from err
    return decode_image(b"".join(pieces), spec, budget, place)
