"""A compressed body -> its bytes, never more of them than one body may have.

A kilobyte of gzip can hold a megabyte: the limit is on what comes out, and inflating stops there.
"""

import zlib

from ..errors import BodyTooLarge, InvalidInput, UnsupportedMediaType
from .agreement import clip

_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's way to name the two formats
_BOMB_RATIO = (200, 1033)  # what no tensor reaches, and the most that deflate can: else the end is no size
QUICK_BYTES = 1024  # a compressed body up to here inflates to a megabyte at most, within a millisecond or two


def content_encoding(text: str | None) -> str | None:
    """Return the coding that a Content-Encoding header names; None when the body is as it is.

    Raises:
        UnsupportedMediaType: it is neither gzip nor deflate, or several on top of one another.
    """
    coding = (text or "").strip().lower()
    if coding in ("", "identity"):
        return None
    if coding not in _WINDOW_BITS:
        message = f"Content-Encoding: {clip(coding)!r}, expected gzip, deflate or none"
        raise UnsupportedMediaType(message, ", ".join(_WINDOW_BITS))
    return coding


def inflate(body: bytes, coding: str, max_bytes: int) -> bytes:
    """Return the bytes of a compressed body.

    Args:
        body: the whole body as it came.
        coding: "gzip" or "deflate".
        max_bytes: of the inflated body.

    Raises:
        InvalidInput: it is damaged, ends early or has something behind its end.
        BodyTooLarge: more than `max_bytes` would come out.
    """
    stated = _stated_bytes(body) if coding == "gzip" else 0
    if stated > max_bytes and _BOMB_RATIO[0] < stated / len(body) < _BOMB_RATIO[1]:
        raise BodyTooLarge(f"body: by its own account {stated} bytes when inflated, expected at most {max_bytes}")
    decoder = zlib.decompressobj(_WINDOW_BITS[coding])
    try:
        inflated = decoder.decompress(body, max_bytes + 1)
    except zlib.error as err:
        raise InvalidInput(f"body: not {coding}, though Content-Encoding says so") from err
    if len(inflated) > max_bytes:
        raise BodyTooLarge(f"body: more than {max_bytes} bytes when inflated, expected at most that many")
    if not decoder.eof or decoder.unused_data:
        fault = "has bytes behind its end" if decoder.eof else "ends too early"
        raise InvalidInput(f"body: the {coding} data {fault}, send it whole")
    return inflated


def _stated_bytes(body: bytes) -> int:
    """Return the inflated size that stands at the end of gzip data, modulo 2**32; a lie is found by inflating it."""
    return int.from_bytes(body[-4:], "little")
