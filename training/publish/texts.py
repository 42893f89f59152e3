"""What travels with a version for people: its model card and the text of its licence."""

from pathlib import Path

from foldserve.format.errors import FormatError
from foldserve.format.manifest import CARD_FILE, LICENSE_FILE
from foldserve.format.text import decoded

from ..errors import ConfigError

_MOST_BYTES = 2**20


def read_texts(card: str | Path | None, license: str | Path | None) -> dict[str, bytes]:
    """Return the content of each file that is given, by the name that it gets in the version's folder.

    Raises:
        ConfigError: it cannot be read, is empty or no UTF-8, or has more than 1 MB.
    """
    given = {CARD_FILE: ("--card", card), LICENSE_FILE: ("--license", license)}
    return {name: _read(flag, Path(path)) for name, (flag, path) in given.items() if path is not None}


def _read(flag: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as err:
        raise ConfigError(f"{flag} {path} cannot be read: {err.strerror}; expected a text file") from err
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{flag} {path} has more than {_MOST_BYTES} bytes; expected a text for people")
    try:
        text = decoded(content, f"{flag} {path}")
    except FormatError as err:
        raise ConfigError(str(err)) from err
    if not text.strip():
        raise ConfigError(f"{flag} {path} is empty; leave it out, or write what the model is for")
    return content
