"""How many cores this process may use: its affinity, and the CPU quota of the cgroups that it is in.

A container that gets two of a machine's 64 cores by a quota sees all 64: threads for each of them would only wait for
one another. Knows no other part of the service.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def available_cores(root: Path = _ROOT) -> int:
    """Return the number of cores, at least 1; a part of one that a quota allows counts as one.

    Args:
        root: of the file system in which the cgroups are described.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # a system other than Linux
        allowed = os.cpu_count() or 1
    quota = min(_quotas(root), default=float(allowed))
    return max(1, min(allowed, math.ceil(quota)))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the cores that each cgroup around this process allows, of both versions of cgroups."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts, read = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], _quota
        elif "cpu" in controllers.split(","):
            mounts, read = [f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu"], _first_version_quota
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            for folder in (inner, *inner.parents):  # where the path is the host's, only its last parent is there
                try:
                    yield read(root / mount / folder)
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
