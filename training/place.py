"""Whether a version lies in the folder of its number and of its model, as its manifest states them.

A part of what `reverify` checks; it reads no file but the manifest that it is given.
"""

import os
from pathlib import Path
from typing import Any

from foldserve.format.errors import FormatError
from foldserve.format.manifest import MANIFEST_FILE, check_key
from foldserve.format.names import is_version


def is_no_place(path: Path, manifest: dict[str, Any]) -> str | None:
    """Return why a folder says nothing of a version, None when its name is the number of one."""
    name = os.path.basename(os.path.abspath(path))
    if is_version(name):
        return None
    return f"the folder {name!r} is no version number; it holds {_place(manifest)}"


def check_place(path: Path, manifest: dict[str, Any]) -> str:
    """Return that the folder is the one of the manifest's version; a model may lie under another name.

    Raises:
        FormatError: the manifest is that of another version.
    """
    place = Path(os.path.abspath(path))  # a link keeps its name
    check_key(path, manifest, "version", int(place.name))
    if not isinstance(manifest.get("name"), str):
        raise FormatError(f"{path / MANIFEST_FILE}: name is {manifest.get('name')!r}, expected a text")
    if manifest["name"] == place.parent.name:
        return f"{_place(manifest)}, as its folders say"
    return f"{_place(manifest)}, though the folder of the model is named {place.parent.name!r}"


def _place(manifest: dict[str, Any]) -> str:
    return f"version {manifest.get('version')!r} of {manifest.get('name')!r}"
