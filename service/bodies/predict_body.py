"""The body of `POST /predict` -> one uint8 array (n, C, H, W), for each of the forms it may have.

Pure functions of bytes, with no request and no framework in them, so that whatever receives the bytes can use them.
Every check of what a sender wrote is here; nothing after this point has to doubt the array.
"""

from __future__ import annotations

import base64
import math
import re
from typing import TYPE_CHECKING

import numpy as np
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from foldserve.format.picture_types import USUAL_FORMATS, listed

from ..errors import InvalidInput, UnsupportedMediaType, clip
from .decoder import decode_image, is_loaded
from .free_pictures import stacked
from .instances import Images, images_from_json
from .limits import QUICK_BYTES, Limits, check_rows
from .picture_header import picture_pixels

if TYPE_CHECKING:
    from foldserve.format.image import ImageRecipe

FORM = "multipart/form-data"
_CURL_TYPE = "application/x-www-form-urlencoded"  # what curl says of --data and --data-binary by itself
_CURL_HINT = (
    "; with curl: -F file=@picture.jpg, or -H 'Content-Type: image/jpeg' --data-binary @picture.jpg, "
    "or -H 'Content-Type: application/json' for rows"
)

EMPTY_BODY = "body: 0 bytes, expected at least one instance"

_B = ord("b")
QUICK_IMAGE_BYTES, QUICK_PIXELS = 2_048, 65_536  # deflate packs a thousandfold: only tiny files decode as fast
_PHOTO_PIXELS = 8  # a byte
_FILE_HEADS = re.compile(rb'"b64"[ \t\r\n]*:[ \t\r\n]*"([A-Za-z0-9+/]{32})')  # 24 bytes: up to the height of a PNG


def media_types(formats: tuple[str, ...] = USUAL_FORMATS) -> tuple[str, ...]:
    """Return the media types of bodies, with those of the picture files that are decoded."""
    return ("application/json", "application/octet-stream", *(f"image/{name}" for name in formats), FORM)


def media_type(content_type: str | None, formats: tuple[str, ...] = USUAL_FORMATS) -> str:
    """Return the media type of a Content-Type header, in lower case and without its parameters.

    Args:
        content_type: the header as it was sent; None where there is none.
        formats: of picture files that are decoded.

    Raises:
        UnsupportedMediaType: it is none of `media_types`, or there is no header.
    """
    kind, known = (content_type or "").partition(";")[0].strip().lower(), media_types(formats)
    if kind not in known:
        got = f"{clip(kind)!r}" if kind else "none"
        hint = _CURL_HINT if kind in ("", _CURL_TYPE) else ""
        raise UnsupportedMediaType(f"Content-Type: {got}, expected one of {', '.join(known)}{hint}")
    return kind


def is_quick(body: bytes, kind: str) -> bool:
    """Return whether an event loop can afford to read this body itself rather than hand it to a thread."""
    if kind == "application/octet-stream":
        return True  # one view of the bytes, whatever their number
    if len(body) > QUICK_BYTES:
        return False
    if kind == "application/json" and not holds_files(body):
        return True
    return len(body) <= QUICK_IMAGE_BYTES and is_loaded() and _stated_pixels(body, kind) <= QUICK_PIXELS


def holds_files(body: bytes) -> bool:
    """Return whether JSON may hold files in base64; a key may be written with escapes."""
    return (_B in body and b'"b64"' in body) or b"\\" in body


def expected_pixels(body: bytes, kind: str) -> int:
    """Return about how many pixels the files of a body have: as one states it, else as many as photographs have."""
    stated = picture_pixels(body) if kind.startswith("image/") else None
    return pixels_of(len(body)) if stated is None else stated


def pixels_of(size: int) -> int:
    """Return about how many pixels photographs of so many bytes have."""
    return size * _PHOTO_PIXELS


def _stated_pixels(body: bytes, kind: str) -> float:
    """Return the pixels of all PNG files in a short body, infinity where one of its files is anything else."""
    if kind == "multipart/form-data":
        return math.inf
    files = [body]
    if kind == "application/json":
        files = [base64.b64decode(match[1]) for match in _FILE_HEADS.finditer(body)]
        if len(files) != body.count(b'"b64"') or b"\\" in body:
            return math.inf
    pixels = [picture_pixels(file) for file in files]
    return math.inf if None in pixels or any(file.startswith(b"\xff") for file in files) else sum(filter(None, pixels))


def read_images(body: bytes, content_type: str | None, spec: ImageRecipe, limits: Limits) -> Images:
    """Return the images of a body of any form.

    Args:
        body: the whole body; its size was limited by who received it.
        content_type: the header as it was sent, parameters included.
        spec: the model's picture recipe.
        limits: how many images, and how large, one request may hold.

    Returns:
        uint8 array (n, C, H, W), or (n, H, W, C) where the recipe says so, 1 <= n <= limits.rows, contiguous; it may
        be a read-only view of `body`. Height and width are those of the images where the recipe leaves them free.

    Raises:
        UnsupportedMediaType: the media type is none of `media_types`.
        InvalidInput: the body is not what its media type says, or does not fit the model.
        TooManyRows: more than `limits.rows` images.
        BodyTooLarge: more pixels in all its files than one request may have decoded.
    """
    kind = media_type(content_type, limits.formats)
    if not body:
        raise InvalidInput(EMPTY_BODY)
    if kind == "application/json":
        return images_from_json(body, spec, limits)
    if kind == "application/octet-stream":
        return images_from_bytes(body, spec, limits)
    if kind == "multipart/form-data":
        return images_from_form(body, content_type or "", spec, limits)
    return stacked([decode_image(body, spec, limits.pixel_budget())], spec, limits, lambda _: "image")


def images_from_bytes(body: bytes, spec: ImageRecipe, limits: Limits) -> Images:
    """Return n x C*H*W bytes, in the model's layout, as images, without a copy. Raises as `read_images` does."""
    if spec.is_free:
        raise InvalidInput(
            "body: bare bytes do not say how large a picture is, and this model takes any size: "
            "send a PNG or JPEG file, or nested lists as JSON"
        )
    values = math.prod(spec.shape)
    rows, rest = divmod(len(body), values)
    if rest or not rows:
        raise InvalidInput(f"body: {len(body)} bytes, expected a multiple of {values} (one byte a pixel, row by row)")
    check_rows(rows, limits)
    return np.frombuffer(body, np.uint8).reshape(rows, *spec.shape)


def images_from_form(body: bytes, content_type: str, spec: ImageRecipe, limits: Limits) -> Images:
    """Return one image for each part of a multipart form, in their order. Raises as `read_images` does."""
    parts = _form_parts(body, content_type, limits)
    if not parts:
        raise InvalidInput(f"form: no parts, expected one or several {listed(limits.formats)} files")
    budget = limits.pixel_budget()
    images = [decode_image(bytes(part), spec, budget, f"form file {index}") for index, part in enumerate(parts)]
    return stacked(images, spec, limits, "form file {}".format)


def _form_parts(body: bytes, content_type: str, limits: Limits) -> list[bytearray]:
    """Return the content of each part; every part counts, so that n parts are n predictions."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidInput("Content-Type: multipart/form-data without a boundary, let the client library write it")
    parts: list[bytearray] = []
    ended: list[bool] = []

    def begin() -> None:
        check_rows(len(parts) + 1, limits)
        parts.append(bytearray())

    def data(chunk: bytes, start: int, end: int) -> None:
        parts[-1] += chunk[start:end]

    def end() -> None:
        ended.append(True)

    try:
        parser = MultipartParser(boundary, {"on_part_begin": begin, "on_part_data": data, "on_end": end})
        for at in range(0, len(body), QUICK_BYTES):  # it is slow with some bytes: nobody may wait for it any more
            if limits.beat is not None:
                limits.beat()
            parser.write(body[at : at + QUICK_BYTES])
    except FormParserError as err:
        raise InvalidInput("form: not valid multipart/form-data with the boundary that Content-Type names") from err
    if not ended:
        raise InvalidInput("form: it ends before its closing boundary, send it whole")
    return parts
