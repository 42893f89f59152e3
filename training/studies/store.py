"""Finished measurements of a study in one file, so that an interrupted study continues where it stopped.

The file holds one JSON object a line and is replaced whole under a lock at every addition: it can be read at any
moment, and several processes may add to it. It knows keys and values, not what was measured.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..disk import FolderLock, write_whole
from ..errors import ArtifactError


class Store:
    """The measurements at `path` by key.

    Args:
        path: of the .jsonl file; it and its folder are made with the first addition.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, dict[str, Any]]:
        """Return key -> measurement, in the order of addition.

        Raises:
            ArtifactError: the file cannot be read, or holds something else.
        """
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
            entries = [json.loads(line) for line in lines]
            return {entry["key"]: entry for entry in entries}
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise ArtifactError(f"{self.path}: expected one measurement a line ({err}); move the file away") from err

    def add(self, key: str, measurement: Mapping[str, Any]) -> None:
        """Keep `measurement` under `key`, in place of an earlier one.

        Raises:
            ArtifactError: the disk refuses; what was there before is still there.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FolderLock(self.path.parent):
                entries = {**self.read(), key: {"key": key, **measurement}}
                lines = [json.dumps(entry, allow_nan=False) + "\n" for entry in entries.values()]
                write_whole(self.path, "".join(lines).encode())
        except OSError as err:
            raise ArtifactError(f"{self.path} cannot be written ({err.strerror or err}); free the disk") from err
