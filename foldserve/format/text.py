"""The text of a file that people wrote: UTF-8, or one sentence that says which byte is not, and what to do.

A file read in the wrong encoding gives names that look right but for a letter, so that nothing is guessed here.
"""

import codecs

from .errors import FormatError

_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def decoded(content: bytes, name: str) -> str:
    """Return the text of a file in UTF-8, without a byte order mark.

    Args:
        content: of the file.
        name: its path, with the flag that it was given by where there is one; the last word is the path.

    Raises:
        FormatError: it is in another encoding.
    """
    place = content.find(b"\0")
    encoding = next((known for mark, known in _MARKS if content.startswith(mark)), None)
    if encoding is not None:
        place = 0
    elif place >= 0:
        encoding = "UTF-16"
    else:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as err:
            place, encoding = err.start, "WINDOWS-1252"
    line = content.count(b"\n", 0, place) + 1
    raise FormatError(
        f"{name} is no UTF-8 text: byte 0x{content[place]:02x} at {place}, in line {line}, as in {encoding}; expected "
        f"UTF-8: iconv -f {encoding} -t UTF-8 {name.split(' ')[-1]}"
    )
