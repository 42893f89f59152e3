"""What was measured of models on this machine, kept in files from one start to the next.

A file is named after all that a measurement depends on; with another processor, quota, onnxruntime or setting there is
none. One that is damaged, or cannot be read or written, means that it is measured again: nothing that is served rests
on it, since every answer is still proved.
"""

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnxruntime

from ..regular_file import read_regular
from .measured import Measured

FOLDER = "measured"
_MOST_BYTES = 65_536
_MOST_FILES = 1_000
_PROCESSOR = ("vendor_id", "model name", "flags", "CPU part", "Features")  # as /proc/cpuinfo names them


class MeasuredCache:
    """The files of one service.

    Args:
        state_dir: which lasts from one start to the next; None keeps nothing.
        options: settings that a measurement depends on.
        processor: of this machine.
    """

    def __init__(self, state_dir: Path | None, options: Mapping[str, Any], processor: str | None = None) -> None:
        self._folder = None if state_dir is None else state_dir / FOLDER
        self._options = dict(options)
        self._processor = processor_of(Path("/proc/cpuinfo")) if processor is None else processor

    def get(self, sha256: str, buckets: Sequence[int]) -> Measured | None:
        """Return what was measured of a model file; None where that is not known.

        Args:
            sha256: of the file.
            buckets: that may be served; what names another one is of no use.
        """
        if self._folder is None:
            return None
        try:
            found = Measured.from_json(read_regular(self._path(sha256), _MOST_BYTES))
        except (OSError, ValueError):
            return None
        return found if found is not None and set(found.seconds) <= set(buckets) else None

    def put(self, sha256: str, measured: Measured) -> None:
        """Keep what was measured of a model file, where that is possible."""
        if self._folder is None:
            return
        with suppress(OSError):
            self._folder.mkdir(exist_ok=True)  # where the state folder is gone, that has to be noticed
            path = self._path(sha256)
            temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
            try:
                temporary.write_text(measured.to_json() + "\n")
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            self._forget_oldest(self._folder)

    def _path(self, sha256: str) -> Path:
        assert self._folder is not None
        facts = [sha256, onnxruntime.__version__, self._processor, self._options]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
        return self._folder / f"{key[:32]}.json"

    def _forget_oldest(self, folder: Path) -> None:
        files = [path for path in folder.iterdir() if path.suffix == ".json"]
        if len(files) > _MOST_FILES:
            for path in sorted(files, key=lambda path: path.stat().st_mtime)[: len(files) - _MOST_FILES]:
                path.unlink(missing_ok=True)


def processor_of(cpuinfo: Path) -> str:
    """Return what a processor says of itself: maker, model and instructions; empty where nothing can be read."""
    try:
        first = cpuinfo.read_text(errors="replace").split("\n\n")[0]
    except OSError:
        return ""
    return "\n".join(line for line in first.splitlines() if line.partition(":")[0].strip() in _PROCESSOR)
