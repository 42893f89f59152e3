"""How many cores a container has, by the files that describe its cgroups."""

import os
from pathlib import Path

import pytest

from foldserve.service.cores import available_cores

SECOND, FIRST = "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct"


def write(root: Path, cgroup: str, files: dict[str, str]) -> None:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/", {f"{SECOND}/cpu.max": "200000 100000"}, 2),
        ("0::/", {f"{SECOND}/cpu.max": "150000 100000"}, 2),
        ("0::/", {f"{SECOND}/cpu.max": "10000 100000"}, 1),
        ("0::/", {f"{SECOND}/cpu.max": "max 100000"}, 64),
        ("0::/pod/box", {f"{SECOND}/pod/box/cpu.max": "max 100000", f"{SECOND}/pod/cpu.max": "300000 100000"}, 3),
        ("0::/pod/box", {f"{SECOND}/pod/box/cpu.max": "100000 50000", f"{SECOND}/pod/cpu.max": "900000 100000"}, 2),
        ("0::/of/the/host", {f"{SECOND}/cpu.max": "200000 100000"}, 2),
        ("0::/", {f"{SECOND}/cpu.max": "9900000 100000"}, 64),
        ("4:cpu,cpuacct:/b", {f"{FIRST}/b/cpu.cfs_quota_us": "250000", f"{FIRST}/b/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu,cpuacct:/box", {f"{FIRST}/cpu.cfs_quota_us": "200000", f"{FIRST}/cpu.cfs_period_us": "100000"}, 2),
        ("4:cpu:/", {f"{SECOND}/cpu/cpu.cfs_quota_us": "-1", f"{SECOND}/cpu/cpu.cfs_period_us": "100000"}, 64),
        ("4:memory:/", {f"{SECOND}/cpu/cpu.cfs_quota_us": "100000", f"{SECOND}/cpu/cpu.cfs_period_us": "100000"}, 64),
        ("0::/", {f"{SECOND}/cpu.max": "not a number"}, 64),
        ("0::/", {}, 64),
    ],
)  # fmt: skip
def test_a_quota_takes_cores_away(tmp_path, monkeypatch, cgroup, files, expected):
    """The least of all limits around the process; a part of a core counts as one, and no limit is all 64."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    write(tmp_path, cgroup, files)
    assert available_cores(tmp_path) == expected


def test_affinity_counts_too(tmp_path, monkeypatch):
    """A process that may run on three cores has three, whatever its quota allows."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6})
    write(tmp_path, "0::/", {f"{SECOND}/cpu.max": "800000 100000"})
    assert available_cores(tmp_path) == 3
    assert available_cores(tmp_path / "nothing is described here") == 3
