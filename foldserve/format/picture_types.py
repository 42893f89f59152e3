"""The kinds of picture files that there are decoders for, and how the first bytes tell them apart.

PNG and JPEG are always read; the others only where an operator switches their decoders on.
"""

PICTURE_FORMATS = ("png", "jpeg", "webp", "gif", "bmp", "tiff")
USUAL_FORMATS = PICTURE_FORMATS[:2]

_NAMES = {"png": "PNG", "jpeg": "JPEG", "webp": "WebP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF"}
_BEGINNINGS = {
    b"\x89PNG": "png",
    b"\xff\xd8": "jpeg",
    b"GIF8": "gif",
    b"II*\x00": "tiff",
    b"MM\x00*": "tiff",
}


def picture_type(data: bytes) -> str | None:
    """Return the media type of a picture file, by its first bytes; None where it is none that is known."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    if data.startswith(b"BM") and data[6:10] == bytes(4):  # two letters alone begin many things
        return "image/bmp"
    found = next((name for beginning, name in _BEGINNINGS.items() if data.startswith(beginning)), None)
    return None if found is None else f"image/{found}"


def listed(formats: tuple[str, ...]) -> str:
    """Return formats as a sentence names them: `PNG or JPEG`."""
    names = [_NAMES[name] for name in formats]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
