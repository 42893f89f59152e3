"""How much memory this process may use, and limits of the service that fit into it.

What waits in queues and buffers is bounded by settings, each for a worker by itself; in a small container their
defaults would be more than there is, and the system would end the process where a refusal would have done.
"""

from pathlib import Path

from .cgroups import SYSTEM, folders
from .settings import MEBIBYTE, Settings

_PART_FOR_REQUESTS = 0.5  # of the memory; models, libraries and onnxruntime's arena have the rest
_PART_FOR_RUNS = 0.8  # of the memory, at most, since runs seldom need theirs while bodies fill the other half
_LEAST_BYTES = 8 * MEBIBYTE
_FIRST_VERSION_UNLIMITED = 1 << 60


def available_memory(root: Path = SYSTEM) -> int | None:
    """Return the bytes that the cgroups around this process and the machine allow; None where nothing is known.

    Args:
        root: of the file system in which both are described.
    """
    limits = [limit for limit in _limits(root) if limit < _FIRST_VERSION_UNLIMITED]
    try:
        words = (root / "proc/meminfo").read_text().split()
        limits.append(int(words[words.index("MemTotal:") + 1]) * 1024)
    except (OSError, ValueError, IndexError):
        pass
    return min(limits, default=None)


def fit_to_memory(settings: Settings, memory: int | None) -> Settings:
    """Return settings whose bodies and pictures take no more than half of the memory, in all workers together.

    Args:
        settings: as they were given.
        memory: that there is, in bytes; None where that is not known.
    """
    if memory is None:
        return settings
    allowed = int(memory * _PART_FOR_REQUESTS) // settings.workers
    wanted = settings.max_buffered_bytes + settings.max_decode_bytes
    if wanted <= allowed:
        return settings
    lowered = {
        name: max(_LEAST_BYTES, getattr(settings, name) * allowed // wanted)
        for name in ("max_buffered_bytes", "max_decode_bytes")
    }
    lowered["max_body_bytes"] = lowered["max_buffered_bytes"]  # one that never fits is 413 rather than 503
    lowered = {name: min(value, getattr(settings, name)) for name, value in lowered.items()}
    return settings.model_copy(update=lowered)


def arena_bytes(memory: int | None) -> int | None:
    """Return the most bytes that the runs of one process may take; None sets no limit.

    A run that needs more fails with a reason, where the system would end the process.

    Args:
        memory: that there is, in bytes; None where that is not known.
    """
    return None if memory is None else int(memory * _PART_FOR_RUNS)


def queue_rows(settings: Settings, row_bytes: int) -> int:
    """Return how many rows of a model may wait: as many as the settings say, and no more bytes than bodies may have.

    Args:
        settings: fitted to the memory.
        row_bytes: of all inputs together.
    """
    return min(settings.max_queue_rows, max(1, settings.max_buffered_bytes // max(1, row_bytes)))


def _limits(root: Path) -> list[int]:
    """The bytes that each cgroup around this process allows."""
    found = []
    for folder, version in folders("memory", root):
        try:
            found.append(int((folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).read_text()))
        except (OSError, ValueError):  # it has no limit, or is not there
            continue
    return found
