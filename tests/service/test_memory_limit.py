"""How much memory a container has, by the files that describe it, and limits that fit into it."""

import subprocess
import sys

import pytest

from foldserve.service.memory_limit import arena_bytes, available_memory, fit_to_memory, queue_rows
from foldserve.service.settings import MEBIBYTE, Settings
from tests.service.test_cores import write
from tests.support import artifacts

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


@pytest.mark.parametrize(
    ("row_bytes", "rows"), [(784, 20_000), (3 * 224 * 224 * 4, 891), (2 * 512 * MEBIBYTE, 1), (0, 20_000)]
)
def test_rows_that_wait_have_no_more_bytes_than_bodies_may_have(row_bytes, rows):
    """Small rows are bounded by their number, large ones by the memory; one may wait always."""
    assert queue_rows(Settings(), row_bytes) == rows


def test_runs_have_a_part_of_the_memory_where_it_is_known():
    """Bodies have their half, and libraries a rest."""
    assert arena_bytes(None) is None
    assert 0.5 * GIBIBYTE < arena_bytes(GIBIBYTE) < 0.9 * GIBIBYTE


def test_a_run_that_needs_more_than_there_is_fails_and_ends_no_process(tmp_path):
    """In a container the system would end it; a version whose batches need too much is refused by its name."""
    artifacts.publish_rows(tmp_path, "wide", ["values"], {}, width=4_000)
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from foldserve.service.engines import providers\n"
        "from foldserve.service.engines.load import load_engine\n"
        "from foldserve.service.artifacts.repository import Repository\n"
        "providers.available_memory = lambda: int(sys.argv[2])\n"
        "artifact = Repository(Path(sys.argv[1])).open('wide', 1)\n"
        "try:\n"
        "    print(load_engine(artifact, provider='cpu', buckets=(1, 4096), threads=1).buckets)\n"
        "except Exception as err:\n"
        "    print(type(err).__name__, err)\n"
    )

    def printed(memory: int) -> str:
        command = [sys.executable, "-c", program, str(tmp_path), str(memory)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert printed(8 * GIBIBYTE) == "(1, 4096)\n"
    refused = printed(8 * MEBIBYTE)
    assert refused.startswith("EngineError")  # which the start refuses the version with
    assert "Available memory" in refused


def test_where_there_is_enough_all_stays():
    """And what was set lower stays lower."""
    settings = Settings(max_buffered_bytes=MEBIBYTE, max_decode_bytes=MEBIBYTE)
    assert fit_to_memory(settings, 64 * MEBIBYTE) is settings
    small = Settings(max_buffered_bytes=MEBIBYTE, max_decode_bytes=512 * MEBIBYTE)
    assert fit_to_memory(small, 64 * MEBIBYTE).max_buffered_bytes == MEBIBYTE
