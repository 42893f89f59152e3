"""Small things that workers tell one another in files, where there may be no room for them.

Whatever is not written is known to this process alone; it says so once, and goes on.
"""

import logging
from pathlib import Path

_log = logging.getLogger(__name__)

_said: list[Path] = []


def say_once(path: Path, err: OSError) -> None:
    """Log, once in this process, that there is no room for a file."""
    if not _said:
        _said.append(path)
        reason = err.strerror or err
        _log.error("no room for %s (%s): what workers share in such files is known to this one alone", path, reason)
