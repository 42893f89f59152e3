"""The oldest versions of packages that the service runs with, asserted before any of them is imported.

pip keeps to pyproject.toml when it installs; what was installed or downgraded otherwise, or lies in front of it in
PYTHONPATH, is seen here. Knows names of distributions and of their folders, and imports none of them.
"""

import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress

# Those of pyproject.toml, which a test compares; the last two come with others and had holes before.
FLOORS = {
    "fastapi": "0.160",
    "uvicorn": "0.51",
    "uvloop": "0.21",
    "httptools": "0.6.4",
    "pydantic": "2.10",
    "numpy": "1.26",
    "orjson": "3.10",
    "pillow": "12.3",
    "prometheus-client": "0.21",
    "python-multipart": "0.0.34",
    "onnxruntime": "1.28",
    "onnxruntime-gpu": "1.28",
    "grpcio": "1.70",
    "protobuf": "5.29",
    "starlette": "1.0.1",
    "h11": "0.16",
}

_FOLDER = re.compile(r"([^-]+)-([^-]+)\.dist-info")


def below_floors(path: Iterable[str] | None = None) -> str | None:
    """Return a sentence about the packages that are too old; None when there is none. Absent ones are no matter here.

    Args:
        path: folders in the order in which Python imports from them; `sys.path` by default.
    """
    found = _installed(sys.path if path is None else path)
    old = [name for name, floor in FLOORS.items() if name in found and _numbers(found[name]) < _numbers(floor)]
    if not old:
        return None
    told = ", ".join(f"{name} {found[name]} (expected {FLOORS[name]} or newer)" for name in old)
    needed = " ".join(f"'{name}>={FLOORS[name]}'" for name in old)
    return f"installed packages are too old: {told}; pip install {needed}"


def _installed(path: Iterable[str]) -> dict[str, str]:
    """Return name -> version of what is installed, read from the names of folders: reading metadata takes long."""
    found: dict[str, str] = {}
    for folder in path:
        with suppress(OSError):  # an archive, or nothing
            for match in filter(None, map(_FOLDER.fullmatch, os.listdir(folder or "."))):
                found.setdefault(re.sub(r"[-_.]+", "-", match[1]).lower(), match[2])
    return found


def _numbers(version: str) -> tuple[int, ...]:
    """Return the release of a version, such as (1, 31, 1): what follows it makes no difference here."""
    release = re.match(r"(?:\d+!)?(\d+(?:\.\d+)*)", version)
    return tuple(map(int, release[1].split("."))) if release else ()
