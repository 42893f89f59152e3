"""Golden inputs as encoded pictures: what proves decoding, recipe, graph and device together.

The manifest's `golden.files`. Each has the digest of the pixels that it was decoded to when the version was published,
and some have these pixels too, for a machine whose decoder gives others. Decodes nothing itself.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import FormatError
from .tensors import Array

MOST_FILES = 16
MOST_BYTES = 1 << 20  # of the files together, as base64: a manifest is read by people, and sent about
DECODING_BOUND = 2.0  # of 255: mean difference of a picture's pixels between two decoders that both do right


@dataclass(frozen=True, slots=True)
class GoldenFile:
    """One picture as somebody would send it.

    Attributes:
        name: for people; not a path.
        content: the encoded picture, PNG or JPEG.
        sha256_pixels: of the row of the model's input that it becomes.
        pixels: that row as a PNG (grey or RGB, height x width); None where the digest has to do.
    """

    name: str
    content: bytes
    sha256_pixels: str
    pixels: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes that it takes in the manifest."""
        return sum(len(part) + 2 for part in (self.content, self.pixels or b"")) // 3 * 4

    def as_dict(self) -> dict[str, str]:
        """Return the fields as JSON values."""
        pixels = {} if self.pixels is None else {"pixels": _text(self.pixels)}
        return {"name": self.name, "content": _text(self.content), "sha256_pixels": self.sha256_pixels} | pixels


def digest_of_pixels(row: Array) -> str:
    """Return the SHA-256 of a row's bytes, in the order of the model's layout."""
    return hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()


def check_amount(files: Sequence[GoldenFile]) -> None:
    """Raise FormatError for more golden files than a manifest is to hold."""
    size = sum(file.size for file in files)
    if len(files) > MOST_FILES or size > MOST_BYTES:
        raise FormatError(
            f"golden files: {len(files)} of {size} bytes together, expected at most {MOST_FILES} of {MOST_BYTES}"
        )


def read_files(section: Any) -> tuple[GoldenFile, ...]:
    """Return the golden files of a manifest; none where it states none.

    Raises:
        FormatError: an entry lacks a key or does not decode, or there are too many.
    """
    entries = [] if section is None else section
    if not isinstance(entries, list):
        raise FormatError(f"golden files in manifest.json are a {type(entries).__name__}, expected a list")
    files = tuple(_read_file(entry, index) for index, entry in enumerate(entries))
    check_amount(files)
    return files


def _read_file(entry: Any, index: int) -> GoldenFile:
    try:
        name, digest, pixels = entry["name"], entry["sha256_pixels"], entry.get("pixels")
        if not isinstance(name, str) or not isinstance(digest, str):
            raise TypeError(f"name {name!r}, sha256_pixels {digest!r}")
        return GoldenFile(name, _bytes(entry["content"]), digest, None if pixels is None else _bytes(pixels))
    except (KeyError, TypeError, AttributeError, ValueError, binascii.Error) as err:
        raise FormatError(f"golden file {index} in manifest.json cannot be read: {err!r}; it was changed") from err


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: Any) -> bytes:
    return base64.b64decode(text, validate=True)
