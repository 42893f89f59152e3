"""The body of `POST /predict` -> one uint8 array (n, C, H, W), for each of the forms it may have.

Pure functions of bytes, with no request and no framework in them, so that whatever receives the bytes can use them.
Every check of what a sender wrote is here; nothing after this point has to doubt the array.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import InvalidInput, TooManyRows, UnsupportedMediaType
from service.images import decode_image

if TYPE_CHECKING:
    from service.signature import ImageSpec

Images = NDArray[np.uint8]

MEDIA_TYPES = ("application/json", "application/octet-stream", "image/png", "image/jpeg", "multipart/form-data")

EMPTY_BODY = "body: 0 bytes, expected at least one image"

INLINE_PIXEL_BYTES = 65_536  # plain pixels up to here are parsed in well under a millisecond
INLINE_IMAGE_BYTES = 2_048  # deflate packs a thousandfold: only tiny files are sure to decode as fast


@dataclass(frozen=True)
class Limits:
    """How much one request may hold.

    Args:
        rows: images in one body.
        pixels: width x height of one encoded image, checked before it is decoded.
    """

    rows: int
    pixels: int


def media_type(content_type: str | None) -> str:
    """Return the media type of a Content-Type header, in lower case and without its parameters.

    Raises:
        UnsupportedMediaType: it is none of `MEDIA_TYPES`, or there is no header.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind not in MEDIA_TYPES:
        came = f"{clip(kind)!r}" if kind else "none"
        raise UnsupportedMediaType(f"Content-Type: {came}, expected one of {', '.join(MEDIA_TYPES)}")
    return kind


def is_quick(body: bytes, kind: str) -> bool:
    """Return whether an event loop can afford to read this body itself rather than hand it to a thread."""
    if kind == "application/octet-stream":
        return True  # one view of the bytes, whatever their number
    plain = kind == "application/json" and b'"b64"' not in body
    return len(body) <= (INLINE_PIXEL_BYTES if plain else INLINE_IMAGE_BYTES)


def read_images(body: bytes, content_type: str | None, spec: ImageSpec, limits: Limits) -> Images:
    """Return the images of a body of any form.

    Args:
        body: the whole body; its size was limited by who received it.
        content_type: the header as it came, parameters included.
        spec: size, channels and background of what the model takes.
        limits: how many images, and how large, one request may hold.

    Returns:
        uint8 array (n, C, H, W), 1 <= n <= limits.rows, contiguous; it may be a read-only view of `body`.

    Raises:
        UnsupportedMediaType: the media type is none of `MEDIA_TYPES`.
        InvalidInput: the body is not what its media type says, or does not fit the model.
        TooManyRows: more than `limits.rows` images.
    """
    kind = media_type(content_type)
    if not body:
        raise InvalidInput(EMPTY_BODY)
    if kind == "application/json":
        return images_from_json(body, spec, limits)
    if kind == "application/octet-stream":
        return images_from_octets(body, spec, limits)
    if kind == "multipart/form-data":
        return images_from_form(body, content_type or "", spec, limits)
    return decode_image(body, spec, limits.pixels)[None]


def images_from_octets(body: bytes, spec: ImageSpec, limits: Limits) -> Images:
    """Return n x (C*H*W) bytes as images, without a copy. Raises as `read_images` does."""
    values = spec.channels * spec.height * spec.width
    rows, rest = divmod(len(body), values)
    if rest or not rows:
        raise InvalidInput(f"body: {len(body)} bytes, expected a multiple of {values} (one byte a pixel, row by row)")
    _check_rows(rows, limits)
    return np.frombuffer(body, np.uint8).reshape(rows, spec.channels, spec.height, spec.width)


def images_from_form(body: bytes, content_type: str, spec: ImageSpec, limits: Limits) -> Images:
    """Return one image for each part of a multipart form, in their order. Raises as `read_images` does."""
    parts = _form_parts(body, content_type, limits)
    if not parts:
        raise InvalidInput("form: no parts, expected one or several PNG or JPEG files")
    images = [decode_image(bytes(part), spec, limits.pixels, f"form file {index}") for index, part in enumerate(parts)]
    return np.stack(images)


def _form_parts(body: bytes, content_type: str, limits: Limits) -> list[bytearray]:
    """Return the content of each part; every part counts, so that n parts are n predictions."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidInput("Content-Type: multipart/form-data without a boundary, let the client library write it")
    parts: list[bytearray] = []
    ended: list[bool] = []

    def begin() -> None:
        _check_rows(len(parts) + 1, limits)
        parts.append(bytearray())

    def data(chunk: bytes, start: int, end: int) -> None:
        parts[-1] += chunk[start:end]

    def end() -> None:
        ended.append(True)

    try:
        parser = MultipartParser(boundary, {"on_part_begin": begin, "on_part_data": data, "on_end": end})
        parser.write(body)
    except FormParserError as err:
        raise InvalidInput("form: not valid multipart/form-data with the boundary that Content-Type names") from err
    if not ended:
        raise InvalidInput("form: it ends before its closing boundary, send it whole")
    return parts


def images_from_json(body: bytes, spec: ImageSpec, limits: Limits) -> Images:
    """Return the images of `{"instances": [...]}`.

    An instance is H x W nested (C x H x W for several channels) or C*H*W flat numbers, integers 0-255 (3.0 counts as
    one, true does not), or `{"b64": "<PNG or JPEG>"}`. The forms may be mixed within one request. Raises as
    `read_images` does, and a message names the place: "instances[0][5][7]: 256, expected an integer 0-255".
    """
    instances = _instances(body)
    _check_rows(len(instances), limits)
    out = np.empty((len(instances), spec.channels, spec.height, spec.width), np.uint8)
    may_hold_booleans = b"true" in body or b"false" in body
    for index, instance in enumerate(instances):
        if isinstance(instance, dict):
            out[index] = _from_b64(instance, spec, limits, f"instances[{index}]")
            continue
        octets = None
        if not (may_hold_booleans and _holds_boolean(instance)):  # bytes() and NumPy take true for 1
            octets = _octets(instance, spec) or _whole_floats(instance, spec)
        octets = octets or _careful_octets(instance, spec, f"instances[{index}]")
        out[index] = np.frombuffer(octets, np.uint8).reshape(out.shape[1:])
    return out


def _instances(body: bytes) -> list[Any]:
    """Return the list under "instances", not empty."""
    try:
        document = orjson.loads(body)  # refuses NaN and Infinity, and anything nested deeper than 1024
    except orjson.JSONDecodeError as err:
        raise InvalidInput(f"body: not JSON, {err.msg} at line {err.lineno} column {err.colno}") from err
    shape = '{"instances": [...]}'
    if not isinstance(document, dict):
        raise InvalidInput(f"body: {_name(document)}, expected an object {shape}")
    unknown = [key for key in document if key != "instances"]
    if unknown:
        raise InvalidInput(f"body: unknown key {clip(unknown[0])!r}, expected {shape} and no other key")
    if "instances" not in document:
        raise InvalidInput(f"body: no key 'instances', expected {shape}")
    instances = document["instances"]
    if not isinstance(instances, list):
        raise InvalidInput(f"instances: {_name(instances)}, expected a list of images")
    if not instances:
        raise InvalidInput("instances: an empty list, expected at least one image")
    return instances


def _octets(instance: Any, spec: ImageSpec) -> bytes | None:
    """Return the pixels of a well-formed instance, fast, or None when anything at all is unusual about it.

    `bytes(list)` is the quickest check there is of "all integers 0-255" (booleans apart, which the caller excludes).
    """
    if type(instance) is not list or not instance:
        return None
    try:
        if type(instance[0]) is not list:
            return bytes(instance) if len(instance) == spec.channels * spec.height * spec.width else None
        if spec.channels != 1 or len(instance) != spec.height:
            return None
        if any(type(row) is not list or len(row) != spec.width for row in instance):
            return None
        return b"".join(map(bytes, instance))
    except (TypeError, ValueError):
        return None


def _whole_floats(instance: Any, spec: ImageSpec) -> bytes | None:
    """Return the pixels of an instance in which some are written as 3.0, or None when anything else is unusual."""
    try:
        values = np.array(instance)
    except (TypeError, ValueError):  # ragged, or too large for a double
        return None
    if values.dtype.kind not in "iuf" or values.shape not in _shapes(spec):
        return None
    octets = values.astype(np.uint8) if values.min() >= 0 and values.max() <= 255 else values
    return octets.tobytes() if octets.dtype == np.uint8 and (octets == values).all() else None


def _holds_boolean(instance: Any) -> bool:
    """Return whether a boolean stands in an instance, flat or one level down."""
    if not isinstance(instance, list):
        return False
    rows = [row for row in instance if isinstance(row, list)] or [instance]
    return any(bool in set(map(type, row)) for row in rows)


def _shapes(spec: ImageSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the two shapes that an instance may have: flat, and nested."""
    nested = (spec.height, spec.width) if spec.channels == 1 else (spec.channels, spec.height, spec.width)
    return (spec.channels * spec.height * spec.width,), nested


def _careful_octets(instance: Any, spec: ImageSpec, place: str) -> bytes:
    """Return the pixels of an instance value by value, so that the first one that will not do can be named."""
    flat, nested = _shapes(spec)
    expected = f"expected {nested} or {flat[0]} values"
    if not isinstance(instance, list):
        raise InvalidInput(f'{place}: {_name(instance)}, {expected} or {{"b64": "<PNG or JPEG>"}}')
    shape = _shape(instance)
    if shape not in (flat, nested):
        _refuse_pixels_before_shape(instance, shape, place)
        raise InvalidInput(f"{place}: shape {_shape_text(shape)}, {expected}")
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
            raise InvalidInput(f"{where}: {_name(item)}, expected a row of {shape[1]} values")
        elif len(item) != shape[1]:
            raise InvalidInput(f"{where}: {len(item)} values, expected {shape[1]}")
        else:
            _collect(item, shape[1:], where, out)


def _pixel(value: Any, place: str) -> int:
    """Return a JSON number as an integer 0-255; 3.0 is 3."""
    if type(value) in (int, float) and 0 <= value <= 255 and value == int(value):
        return int(value)
    came = clip(orjson.dumps(value).decode()) if not isinstance(value, (list, dict)) else _name(value)
    raise InvalidInput(f"{place}: {came}, expected an integer 0-255")


def _refuse_pixels_before_shape(instance: list[Any], shape: tuple[int, ...], place: str) -> None:
    """Name a first value that is no number at all: its type explains more than the shape that results from it."""
    if len(shape) == 1 and instance and not isinstance(instance[0], (int, float)):
        _pixel(instance[0], f"{place}[0]")


def _from_b64(instance: dict[str, Any], spec: ImageSpec, limits: Limits, place: str) -> Images:
    """Return the image under "b64", uint8 (C, H, W)."""
    if list(instance) != ["b64"] or not isinstance(instance["b64"], str):
        raise InvalidInput(f'{place}: expected exactly {{"b64": "<PNG or JPEG in base64>"}}')
    try:
        data = base64.b64decode(instance["b64"], validate=True)
    except (binascii.Error, ValueError) as err:
        raise InvalidInput(f"{place}.b64: not base64 (standard alphabet, padded, no line breaks)") from err
    return decode_image(data, spec, limits.pixels, f"{place}.b64")


def _shape(node: Any) -> tuple[int, ...]:
    """Return the shape that a nested list claims, read along its first elements."""
    shape = []
    while isinstance(node, list):
        shape.append(len(node))
        if not node:
            break
        node = node[0]
    return tuple(shape)


def _shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as text, cut where somebody nested a list a thousand times."""
    return str(shape) if len(shape) <= 6 else f"({', '.join(map(str, shape[:6]))}, ...)"


def _check_rows(rows: int, limits: Limits) -> None:
    """Refuse more images than one request may hold."""
    if rows > limits.rows:
        raise TooManyRows(f"{rows} images, expected at most {limits.rows} in one request: send them in several")


def _name(value: Any) -> str:
    """Return what JSON calls the type of a value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def clip(text: str, limit: int = 40) -> str:
    """Return text that a client sent, short enough to stand in a message."""
    return text if len(text) <= limit else f"{text[:limit]}..."
