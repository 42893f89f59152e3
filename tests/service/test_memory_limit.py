"""How much memory a container has, by the files that describe it, and limits that fit into it."""

import pytest

from foldserve.service.memory_limit import available_memory, fit_to_memory
from foldserve.service.settings import MEBIBYTE, Settings
from tests.service.test_cores import write

SECOND, FIRST = "sys/fs/cgroup", "sys/fs/cgroup/memory"
MACHINE = {"proc/meminfo": "MemTotal:       8388608 kB\nMemFree:  1 kB"}
GIBIBYTE = 1024 * MEBIBYTE


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/", {f"{SECOND}/memory.max": str(GIBIBYTE)}, GIBIBYTE),
        ("0::/", {f"{SECOND}/memory.max": "max"}, 8 * GIBIBYTE),
        ("0::/", {f"{SECOND}/memory.max": str(99 * GIBIBYTE)}, 8 * GIBIBYTE),
        ("0::/a/b", {f"{SECOND}/a/b/memory.max": "max", f"{SECOND}/a/memory.max": str(3 * GIBIBYTE)}, 3 * GIBIBYTE),
        ("0::/of/the/host", {f"{SECOND}/memory.max": str(2 * GIBIBYTE)}, 2 * GIBIBYTE),
        ("5:memory:/b", {f"{FIRST}/b/memory.limit_in_bytes": str(GIBIBYTE)}, GIBIBYTE),
        ("5:memory:/", {f"{FIRST}/memory.limit_in_bytes": "9223372036854771712"}, 8 * GIBIBYTE),
        ("0::/", {f"{SECOND}/memory.max": "not a number"}, 8 * GIBIBYTE),
        ("0::/", {}, 8 * GIBIBYTE),
    ],
)
def test_the_least_limit_counts(tmp_path, cgroup, files, expected):
    """Of all cgroups around the process, and of the machine."""
    write(tmp_path, cgroup, {**MACHINE, **files})
    assert available_memory(tmp_path) == expected


def test_where_nothing_is_described_nothing_is_known(tmp_path):
    """Then no limit is lowered."""
    assert available_memory(tmp_path) is None
    settings = Settings()
    assert fit_to_memory(settings, None) is settings


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("mebibytes", [128, 512, 1024])
def test_bodies_and_pictures_fit_into_half(workers, mebibytes):
    """Of all workers together, in the proportion that was given; a body that could never fit is too large."""
    fitted = fit_to_memory(Settings(workers=workers), mebibytes * MEBIBYTE)
    together = workers * (fitted.max_buffered_bytes + fitted.max_decode_bytes)
    assert together <= mebibytes * MEBIBYTE / 2 + workers * 8 * MEBIBYTE  # the least of each
    assert fitted.max_body_bytes <= fitted.max_buffered_bytes
    assert fitted.max_decode_bytes <= fitted.max_buffered_bytes


def test_where_there_is_enough_all_stays():
    """And what was set lower stays lower."""
    settings = Settings(max_buffered_bytes=MEBIBYTE, max_decode_bytes=MEBIBYTE)
    assert fit_to_memory(settings, 64 * MEBIBYTE) is settings
    small = Settings(max_buffered_bytes=MEBIBYTE, max_decode_bytes=512 * MEBIBYTE)
    assert fit_to_memory(small, 64 * MEBIBYTE).max_buffered_bytes == MEBIBYTE
