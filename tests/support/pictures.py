"""Encoded pictures of every kind, drawn at random: sizes, modes, formats, orientation."""

import io

import numpy as np
from PIL import Image

MODES = ("RGB", "RGB", "L", "1", "RGBA", "LA", "P", "CMYK", "I;16")
_ORIENTATION = 0x0112


def drawn(rng: np.random.Generator) -> bytes:
    """Return a PNG or JPEG file: odd sizes, sides of one pixel, transparency, palettes, CMYK, 16 bits, EXIF."""
    height, width = (int(side) for side in rng.integers(1, 90, 2))
    if rng.random() < 0.2:
        height, width = (1, width) if rng.random() < 0.5 else (height, 1)
    mode = str(rng.choice(MODES))
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    options: dict[str, object] = {}
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65_536, (height, width)).astype(np.uint16))
    elif mode == "P":
        image = noise.convert("RGB").quantize(16)
        options["transparency"] = 3 if rng.random() < 0.5 else bytes(range(0, 160, 10))
    else:
        image = noise.convert(mode)
    if rng.random() < 0.3:
        exif = Image.Exif()
        exif[_ORIENTATION] = int(rng.integers(1, 9))
        options["exif"] = exif
    kind = "JPEG" if mode == "CMYK" or (mode in ("RGB", "L") and rng.random() < 0.5) else "PNG"
    return encoded(image, kind, **options)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Return a picture as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
