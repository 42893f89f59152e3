"""What the first bytes of a PNG or JPEG file say of the work that it makes, read without a decoder.

Cheap enough for the event loop, whatever the bytes are. Nothing here is a check of the file: the decoder makes those.
"""

import re

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers that begin a frame
_ALONE = frozenset({0x01, *range(0xD0, 0xDA)})  # markers without a length behind them
_START_OF_SCAN, _END = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # within a scan FF 00 is a byte, FF D0 to D7 restarts
_MOST_SEGMENTS = 256


def picture_pixels(data: bytes) -> int | None:
    """Return width x height as the file states them; None where it does not begin like a PNG or JPEG."""
    if data.startswith(_PNG) and data[12:16] == b"IHDR":
        return int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big")
    if not data.startswith(_JPEG):
        return None
    position = 2
    for _ in range(_MOST_SEGMENTS):
        marker = data[position + 1] if data[position : position + 1] == b"\xff" and position + 1 < len(data) else None
        if marker is None or marker == _START_OF_SCAN:
            return None
        if marker in _FRAMES:
            height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
            return int.from_bytes(height, "big") * int.from_bytes(width, "big")
        position += 2 + (0 if marker in _ALONE else int.from_bytes(data[position + 2 : position + 4], "big"))
    return None


def has_more_scans(data: bytes, most: int, most_markers: int) -> bool:
    """Return whether a JPEG file has more scans than that: the decoder goes over the whole picture for each of them.

    Args:
        data: the file.
        most: scans.
        most_markers: a file with more of them is not looked through to its end, and said to have more scans too.
    """
    if data.count(b"\xff\xda") <= most:
        return False
    scans, markers, position = 0, 0, 2
    while match := _MARKER.search(data, position):
        marker = match[1][0]
        position = match.end()
        markers += 1
        if marker == _END:
            return False
        if markers > most_markers:
            return True
        if marker not in _ALONE:
            position += int.from_bytes(data[position : position + 2], "big")
        if marker == _START_OF_SCAN:
            scans += 1
            if scans > most:
                return True
    return False
