"""Compressed bodies, both ways: gzip and deflate as clients send them, and answers in a form that clients take.

A kilobyte of gzip can hold a megabyte: the limits are on what comes out, by itself and for what was sent, and inflating
stops there. Compressing is worth its time for long answers alone: short ones leave as they are, unless the client
refuses that, and so does whatever the fast lane answers, which is one batch at most.
"""

import re
import zlib

from ..errors import BodyTooLarge, InvalidInput, UnsupportedMediaType, clip

_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's way to name the two formats
_MOST_RATIO = 200  # that a long body may inflate to: what no tensor of measurements reaches
_ANY_RATIO_BYTES = 8 * 1024 * 1024  # inflated within some 20 ms, whatever the ratio: a batch of black pictures
_DEFLATE_RATIO = 1033  # the most that deflate can: beyond it the last bytes are no size
QUICK_COMPRESSED_BYTES = (
    1024  # a compressed body up to here inflates to a megabyte at most, within a millisecond or two
)

_LEAST_BYTES = 65_536  # of an answer that is worth compressing
_CODING = re.compile(r"\s*([A-Za-z*-]+)\s*(?:;\s*[qQ]\s*=\s*([01](?:\.\d{0,3})?)\s*)?")
_LEVEL = 1  # the fastest


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
        body: the whole body as it was received.
        coding: "gzip" or "deflate".
        max_bytes: of the inflated body.

    Raises:
        InvalidInput: it is damaged, ends early or has something behind its end.
        BodyTooLarge: more than `max_bytes` would come out, or more than is worth believing for what was sent.
    """
    most = min(max_bytes, max(_ANY_RATIO_BYTES, _MOST_RATIO * len(body)))
    expected = f"expected at most {most}" + (f" for {len(body)} compressed ones: send it as it is" * (most < max_bytes))
    stated = _stated_bytes(body) if coding == "gzip" else 0
    if most < stated < _DEFLATE_RATIO * len(body):
        raise BodyTooLarge(f"body: by its own account {stated} bytes when inflated, {expected}")
    decoder = zlib.decompressobj(_WINDOW_BITS[coding])
    try:
        inflated = decoder.decompress(body, most + 1)
    except zlib.error as err:
        raise InvalidInput(f"body: not {coding}, though Content-Encoding says so") from err
    if len(inflated) > most:
        raise BodyTooLarge(f"body: more than {most} bytes when inflated, {expected}")
    if not decoder.eof or decoder.unused_data:
        fault = "has bytes behind its end" if decoder.eof else "ends too early"
        raise InvalidInput(f"body: the {coding} data {fault}, send it whole")
    return inflated


def wanted_coding(accepted: str | None, size: int) -> str | None:
    """Return the coding in which an answer of `size` bytes leaves; None for as it is.

    Args:
        accepted: the header Accept-Encoding; what cannot be read in it is passed over.
        size: in bytes.
    """
    if accepted is None:
        return None
    matches = filter(None, map(_CODING.fullmatch, accepted.split(",")[:16]))
    weights = {match[1].lower(): float(match[2] or 1) for match in matches}
    others = weights.get("*", 0.0)
    best = max(_WINDOW_BITS, key=lambda coding: weights.get(coding, others))
    if not weights.get(best, others):
        return None
    is_refused_plain = not weights.get("identity", weights.get("*", 1.0))
    is_rather_plain = weights.get("identity", 0.0) > weights.get(best, others)
    return best if is_refused_plain or (size >= _LEAST_BYTES and not is_rather_plain) else None


def compress(body: bytes, coding: str) -> bytes:
    """Return a body in a coding, "gzip" or "deflate"."""
    encoder = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[coding])
    return encoder.compress(body) + encoder.flush()


def _stated_bytes(body: bytes) -> int:
    """Return the inflated size that stands at the end of gzip data, modulo 2**32; a lie shows when it is inflated."""
    return int.from_bytes(body[-4:], "little")
