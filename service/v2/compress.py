"""What a client will take of compressed answers, and answers in that form.

The counterpart of `inflate`. Compression is worth its time for long answers alone: short ones leave as they are, unless
the client refuses that, and so does whatever the fast lane answers, which is one batch at most.
"""

import re
import zlib

LEAST_BYTES = 65_536
_CODING = re.compile(r"\s*([A-Za-z*-]+)\s*(?:;\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*)?")
_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's way to name the two formats
_LEVEL = 1  # the fastest


def wanted_coding(accepted: str | None, size: int) -> str | None:
    """Return the coding in which an answer of `size` bytes leaves; None for as it is.

    Args:
        accepted: the header Accept-Encoding; what cannot be read in it is passed over.
        size: in bytes.
    """
    if accepted is None:
        return None
    found = filter(None, map(_CODING.fullmatch, accepted.split(",")[:16]))
    weights = {match[1].lower(): float(match[2] or 1) for match in found}
    others = weights.get("*", 0.0)
    best = max(_WINDOW_BITS, key=lambda coding: weights.get(coding, others))
    if not weights.get(best, others):
        return None
    is_refused_plain = not weights.get("identity", weights.get("*", 1.0))
    is_rather_plain = weights.get("identity", 0.0) > weights.get(best, others)
    return best if is_refused_plain or (size >= LEAST_BYTES and not is_rather_plain) else None


def compress(body: bytes, coding: str) -> bytes:
    """Return a body in a coding, "gzip" or "deflate"."""
    encoder = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[coding])
    return encoder.compress(body) + encoder.flush()
