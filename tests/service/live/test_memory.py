"""What this process may still take, as a file system describes it."""

import pytest

from foldserve.service.live.memory import available_bytes

MEBIBYTE = 1024 * 1024
SECOND = ("0::/inner\n", "sys/fs/cgroup/inner", ("memory.max", "memory.current", "inactive_file"))
FIRST = (
    "4:memory:/inner\n",
    "sys/fs/cgroup/memory/inner",
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@pytest.mark.parametrize(("cgroup", "place", "files"), [SECOND, FIRST], ids=["version 2", "version 1"])
def test_what_the_cgroup_leaves_counts_and_its_caches_may_go(tmp_path, cgroup, place, files):
    """A limit of 100 MiB with 60 used, 20 of them caches, leaves 60; where nothing is described 0 says so."""
    assert available_bytes(tmp_path) == 0
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup)
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 1048576 kB\n")
    assert available_bytes(tmp_path) == 1024 * MEBIBYTE
    folder = tmp_path / place
    folder.mkdir(parents=True)
    limit, used, cached = files
    (folder / limit).write_text(f"{100 * MEBIBYTE}\n")
    (folder / used).write_text(f"{60 * MEBIBYTE}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{cached} {20 * MEBIBYTE}\n")
    assert available_bytes(tmp_path) == 60 * MEBIBYTE
