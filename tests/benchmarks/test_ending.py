"""Services that a benchmark has started do not stay behind it."""

import os
import select
import subprocess
import sys

STARTS = """
import subprocess, sys
from benchmarks.ending import ends_with_us
process = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
with ends_with_us(process.pid):
    print(process.pid, flush=True)
    sys.stdin.read()
"""


def test_a_killed_benchmark_takes_its_service_along():
    """`timeout` had ended the runner of a row, and two workers of its weakened service stayed for hours."""
    runner = subprocess.Popen([sys.executable, "-c", STARTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    service = os.pidfd_open(int(runner.stdout.readline()))
    try:
        runner.kill()
        assert select.select([service], [], [], 30)[0]
    finally:
        runner.communicate()
        os.close(service)


def test_a_benchmark_that_goes_on_ends_nothing():
    """Behind the block a process is nobody's business any more."""
    runner = subprocess.Popen([sys.executable, "-c", STARTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pid = int(runner.stdout.readline())
    service = os.pidfd_open(pid)
    try:
        runner.communicate()
        assert not select.select([service], [], [], 0.5)[0]
    finally:
        os.kill(pid, 9)
        os.close(service)
