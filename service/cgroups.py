"""The cgroups around this process, of both versions: where a container's limits are described.

A container sees the processors and the memory of the whole machine; what it may have of them stands here. Knows
no other part of the service.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

SYSTEM = Path("/")


def folders(controller: str, root: Path = SYSTEM) -> Iterator[tuple[Path, int]]:
    """Yield every folder that may describe a limit, from the inside out, and the version of its cgroup, 2 or 1.

    Args:
        controller: whose limit: "cpu" or "memory".
        root: of the file system in which the cgroups are described.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts, version = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], 2
        elif controller in controllers.split(","):
            mounts, version = [f"sys/fs/cgroup/{controllers}", f"sys/fs/cgroup/{controller}"], 1
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            for folder in (inner, *inner.parents):  # where the path is the host's, only its last parent is there
                yield root / mount / folder, version
