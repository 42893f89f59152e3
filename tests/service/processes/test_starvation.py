"""What is read of the system: a process that shares its core with another waits for it, one that sleeps does not."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from foldserve.service.processes.starvation import CpuStarvation

pytestmark = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this system does not count waits")

BUSY = "import os\nos.sched_setaffinity(0, {%d})\nwhile True: pass"


@contextmanager
def running(code: str, times: int = 1):
    found = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(times)]
    try:
        yield found
    finally:
        for process in found:
            process.kill()
            process.wait(10)


def test_two_that_want_one_core_wait_for_it():
    """Each of them, and whether one thread is asked after or all of them."""
    core = max(os.sched_getaffinity(0))
    with running(BUSY % core, 2) as (one, other):
        waits = [CpuStarvation(one.pid, one.pid), CpuStarvation(other.pid)]
        waited, until = [0.0, 0.0], time.monotonic() + 60
        while min(waited) < 0.05:
            assert time.monotonic() < until, waited
            time.sleep(0.02)
            waited = [before + wait.seconds() for before, wait in zip(waited, waits, strict=True)]


def test_one_that_sleeps_does_not_wait():
    """Blocked is not starved: nothing is counted for a process that wants no core."""
    with running("import sys; sys.stdout.close(); import time; time.sleep(60)") as (process,):
        wait = CpuStarvation(process.pid)
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0] != "S":
            time.sleep(0.02)
        wait.seconds()
        assert wait.seconds() < 0.01


def test_a_process_that_has_gone_waits_for_nothing():
    """Nor does one on a system that does not count."""
    with running("pass") as (process,):
        process.wait(60)
        assert CpuStarvation(process.pid).seconds() == 0.0
        assert CpuStarvation(process.pid, process.pid).seconds() == 0.0
