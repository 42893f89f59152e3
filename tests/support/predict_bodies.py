"""Bodies of `POST /predict` as clients write them: image files, in base64, in forms, and one that is a trap."""

import base64
import io
import struct
import zlib

import numpy as np
from PIL import Image


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of these pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def b64(pixels: np.ndarray) -> dict[str, str]:
    """An instance that holds such a file."""
    return {"b64": base64.b64encode(png(pixels)).decode()}


def form(*parts: bytes, boundary: str = "edge", end: str = "--edge--\r\n") -> tuple[bytes, str]:
    """A multipart form of these files, and its content type."""
    head = b'Content-Disposition: form-data; name="any"; filename="x.png"\r\n\r\n'
    body = b"".join(b"--edge\r\n" + head + part + b"\r\n" for part in parts)
    return body + end.encode(), f"multipart/form-data; boundary={boundary}"


def bomb(side: int) -> bytes:
    """A black PNG of side x side pixels, one bit each, as small as deflate makes it."""
    rows = zlib.compress(bytes((1 + (side + 7) // 8) * side), 9)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
