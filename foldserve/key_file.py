"""The key that a command or a client sends: read from a file or the environment, checked, and never printed.

What cannot stand in a header would come back in the error of a library, key included.
"""

import os
from pathlib import Path

KEY_VARIABLE = "API_KEY"


def read_key(path: Path | None) -> str | None:
    """Return the key in a file, that of $API_KEY where none is named, or None where there is none.

    Raises:
        ValueError: the file cannot be read, is empty, or holds more than one key.
    """
    if path is None:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        return checked_key(key, f"${KEY_VARIABLE}") if key else None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as err:
        reason = getattr(err, "strerror", None) or "it is no text"
        raise ValueError(f"key file {path} cannot be read: {reason}") from err
    return checked_key(key, f"key file {path}")


def checked_key(key: str, where: str) -> str:
    """Return `key`.

    Args:
        key: as it was given.
        where: what gave it, for the message.

    Raises:
        ValueError: it is empty, or has a character that no header may have; the message does not hold it.
    """
    if key and all("!" <= letter <= "~" for letter in key):
        return key
    got = f"{len(key.splitlines())} lines" if "\n" in key else f"{len(key)} characters, not all of them of a key"
    raise ValueError(
        f"{where} holds {got if key else 'nothing'}; expected one key and nothing else: letters, digits and signs of "
        "ASCII without a space, what `foldserve keys new` prints behind 'the key, shown this once:'"
    )
