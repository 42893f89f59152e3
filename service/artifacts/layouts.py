"""Where the versions of each model lie below the models folder.

A folder of models, `<model>/<version>/`, is the usual. What a cluster mounts is often one model by itself: its version
folders (`1/model.onnx`), or the files of one version (`model.onnx`). Knows names and places, and opens no model.
"""

import os
from pathlib import Path

from foldserve.format.errors import FormatError
from foldserve.format.manifest import MANIFEST_FILE, MODEL_FILE, read_manifest
from foldserve.format.names import is_model_name, is_version

_FIRST = 1
_DEFAULT_NAME = "model"

Known = tuple[tuple[int, ...], str | None, int]  # a manifest's identity, and the name and version that it states


class MountedModel:
    """The one model that the models folder itself holds, if it does.

    Args:
        root: the models folder.
        links: folder within which links may lead.
        name: of the model; None takes that of its manifest, else that of the folder.
    """

    def __init__(self, root: Path, links: Path, name: str | None = None) -> None:
        self._root = root
        self._links = links
        self._name = name
        self._known: dict[Path, Known] = {}

    def versions(self) -> dict[int, Path]:
        """Return the folder of each version; none where the folder holds models, or nothing."""
        if _holds_a_version(self._root):
            return {self._stated(self._root)[1] or _FIRST: self._root}
        try:
            with os.scandir(self._root) as entries:
                numbers = [entry.name for entry in entries if is_version(entry.name) and is_folder(entry)]
        except OSError:
            return {}
        return {int(number): self._root / number for number in numbers if _holds_a_version(self._root / number)}

    def name(self, versions: dict[int, Path]) -> str:
        """Return the name under which it is served, which stays the same from the first time on."""
        if self._name is None:
            stated = self._stated(versions[max(versions)])[0]
            folder = self._root.resolve().name
            self._name = stated or (folder if is_model_name(folder) else _DEFAULT_NAME)
        return self._name

    def _stated(self, folder: Path) -> tuple[str | None, int]:
        """Return name and version of a manifest, read when it is new or changed; None and 0 where it has none."""
        try:
            stat = (folder / MANIFEST_FILE).stat()
        except OSError:
            return None, 0
        identity = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        known = self._known.get(folder)
        if known is None or known[0] != identity:
            known = self._known[folder] = (identity, *_read(folder, self._links))
        return known[1:]


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one; what cannot be looked at, as a link to itself, is none."""
    try:
        return entry.is_dir()  # which asks the disk about links alone
    except OSError:
        return False


def link_boundary(root: Path) -> Path:
    """Return the folder within which links below the models folder may lead.

    That is the models folder itself; for a snapshot in a cache of the Hugging Face hub, whose files are links to
    `../../blobs`, the folder of that repository.

    Source: huggingface.co, "Understand caching": models--<owner>--<name>/{blobs,refs,snapshots}.
    """
    resolved = root.resolve()
    for snapshot in (resolved, *resolved.parents):
        if snapshot.parent.name == "snapshots" and snapshot.parent.parent.name.startswith("models--"):
            return snapshot.parent.parent
    return root


def _holds_a_version(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in (MODEL_FILE, MANIFEST_FILE))


def _read(folder: Path, links: Path) -> tuple[str | None, int]:
    try:
        manifest = read_manifest(folder, links)
    except FormatError:  # the version is refused with the reason when it is opened
        return None, 0
    name, version = manifest.get("name"), manifest.get("version")
    stated = name if isinstance(name, str) and is_model_name(name) else None
    return stated, version if type(version) is int and is_version(str(version)) else 0
