"""How many cores this process may use: its affinity, and the CPU quota of the cgroups that it is in.

A container that gets two of a machine's 64 cores by a quota sees all 64: threads for each of them would only wait for
one another.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from .cgroups import SYSTEM, folders


def available_cores(root: Path = SYSTEM) -> int:
    """Return the number of cores, at least 1; a part of one that a quota allows counts as one.

    Args:
        root: of the file system in which the cgroups are described.
    """
    visible = visible_cores()
    quota = min(_quotas(root), default=float(visible))
    return max(1, min(visible, math.ceil(quota)))


def visible_cores() -> int:
    """Return the number of cores that the affinity of this process allows, whatever a quota says."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # a system other than Linux
        return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """Yield the cores that each cgroup around this process allows."""
    for folder, version in folders("cpu", root):
        try:
            yield _quota(folder) if version == 2 else _first_version_quota(folder)
        except (OSError, ValueError):  # it has no limit, or is not there
            continue


def _quota(folder: Path) -> float:
    quota, period = (folder / "cpu.max").read_text().split()
    return int(quota) / int(period)


def _first_version_quota(folder: Path) -> float:
    quota = int((folder / "cpu.cfs_quota_us").read_text())
    if quota <= 0:
        raise ValueError("no limit")
    return quota / int((folder / "cpu.cfs_period_us").read_text())
