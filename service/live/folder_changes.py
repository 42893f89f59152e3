"""What becomes of the folders of versions in memory: noticed by their files, read again only where those differ.

Used by the reconciler, which looks at each poll. A version goes on answering whatever becomes of its folder.
"""

import logging
from pathlib import Path

from ..artifacts.repository import Repository
from ..metrics import Metrics
from .model import Model

_log = logging.getLogger(__name__)

Fingerprint = tuple[tuple[str | int, ...], ...]


def fingerprint(folder: Path) -> Fingerprint:
    """Return names, identities, sizes and times of a version's files, by which a change is noticed."""
    try:
        files = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    except OSError:
        return ()
    return tuple((file, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns) for file, st in files)


class FolderChanges:
    """The folders of versions in memory, as they were proved and as they are.

    Args:
        repository: the models on disk.
        metrics: counts the versions of each model that changed.

    Attributes:
        reasons: what became of the folder of a version in memory, by name and version.
    """

    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self.reasons: dict[tuple[str, int], str] = {}
        self._repository = repository
        self._metrics = metrics
        self._files: dict[Model, Fingerprint] = {}

    def keep(self, model: Model, files: Fingerprint) -> None:
        """Follow the folder of a version that has been loaded from these files."""
        self._files[model] = files

    def forget(self, model: Model) -> None:
        """Follow the folder of a version no longer."""
        self._files.pop(model, None)
        self.note(model, None)

    def look(self) -> dict[Model, str | None]:
        """Look at the folders, in a thread; returns what became of those that changed, to be noted."""
        changes: dict[Model, str | None] = {}
        for model, files in list(self._files.items()):
            now = fingerprint(self._repository.folder(model.name, model.version))
            if now != files:
                changes[model] = self._repository.change_of(model.artifact)
                if changes[model] is None:
                    self._files[model] = now
        return changes

    def note(self, model: Model, change: str | None) -> None:
        """Keep and report, once, what became of the folder of a version; None: it is as it was."""
        key = model.name, model.version
        if change == self.reasons.get(key):
            return
        if change is None:
            del self.reasons[key]
        else:
            self.reasons[key] = change
            fields = {"model": model.name, "version": model.version, "reason": change}
            _log.error("a version that serves changed on disk", extra=fields)
        count = sum(name == model.name for name, _ in self.reasons)
        self._metrics.changed_versions.labels(model.name).set(count)
