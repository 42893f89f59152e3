"""Which content each version had when it was first served, told by all workers of one service to one another.

A version number stands for one content: whoever finds another one under it later does not serve it. A digest is written
once, by the worker that proved the version first, and holds until the service ends.
"""

import contextlib
import os
from pathlib import Path

from foldserve.format.names import is_version

from ..processes.room import say_once

_LATEST = "latest"


class ServedVersions:
    """The digests.

    Args:
        folder: shared by the workers; None where there is only this process.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._own: dict[tuple[str, int], str] = {}

    def digest(self, name: str, version: int) -> str | None:
        """Return the SHA-256 of what was first served as a version; None where nothing was."""
        known = self._own.get((name, version))
        if known is None and self._folder is not None:
            with contextlib.suppress(FileNotFoundError):
                known = self._own[name, version] = (self._folder / name / str(version)).read_text()
        return known

    def claim(self, name: str, version: int, sha256: str) -> str:
        """Note what is served as a version from now on, unless something was before; returns what holds."""
        if self._folder is None:
            return self._own.setdefault((name, version), sha256)
        place = self._folder / name / str(version)
        whole = place.with_name(f".{version}-{os.getpid()}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            whole.write_text(sha256)
            with contextlib.suppress(FileExistsError):
                os.link(whole, place)  # unlike a rename, it never replaces what another worker has written
        except OSError as err:
            say_once(place.parent, err)
        finally:
            with contextlib.suppress(OSError):
                whole.unlink()
        return self.digest(name, version) or self._own.setdefault((name, version), sha256)

    def models(self) -> list[str]:
        """Return the models that other workers serve, in alphabetical order."""
        return sorted(path.parent.name for path in self._folder.glob(f"*/{_LATEST}")) if self._folder else []

    def latest(self, name: str) -> int | None:
        """Return the version that `latest` of a model pointed at last, in any worker; None where none is known."""
        if self._folder is None:
            return None  # this process knows it by itself
        try:
            text = (self._folder / name / _LATEST).read_text()
        except FileNotFoundError:
            return None
        return int(text) if is_version(text) else None

    def set_latest(self, name: str, version: int | None) -> None:
        """Note where `latest` of a model points now; None: nowhere, since the model is unloaded."""
        if self._folder is None:
            return
        place = self._folder / name / _LATEST
        if version is None:
            place.unlink(missing_ok=True)
            return
        whole = place.with_name(f".{_LATEST}-{os.getpid()}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            whole.write_text(str(version))
            whole.replace(place)
        except OSError as err:
            whole.unlink(missing_ok=True)
            say_once(place.parent, err)
