"""Memory of this process: what is free for it, and what it has freed, given back to the system.

The C library keeps what was freed for itself otherwise. The memory of an unloaded version, and of a model file that was
read, lies in pieces between others; after a few swaps the process would hold several times what it uses. Knows neither
models nor sessions.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

from ..cgroups import SYSTEM, folders

_KIB = 1024
# Version of a cgroup -> its files with the limit and the use, and the entry of caches in memory.stat.
_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def give_back() -> None:
    """Return what is free to the system, where the C library can; takes milliseconds, others may run meanwhile."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)


def available_bytes(root: Path = SYSTEM) -> int:
    """Return how much memory this process may still take, by the system and the cgroups that it is in; 0: unknown.

    Args:
        root: of the file system in which both are described.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * _KIB for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0
    return max(0, min([free, *_left_in_cgroups(root)]))


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Yield what each cgroup around this process leaves, of both versions of cgroups; caches may be dropped."""
    for folder, version in folders("memory", root):
        with contextlib.suppress(OSError, ValueError):  # it has no limit, or is not there
            yield _left(folder, *_FILES[version])


def _left(folder: Path, limit: str, used: str, cached: str) -> int:
    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    taken = int((folder / used).read_text()) - int(statistics.get(cached, 0))
    return int((folder / limit).read_text()) - taken
