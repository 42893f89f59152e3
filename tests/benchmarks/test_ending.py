"""Services that a benchmark has started do not stay behind it."""

import ast
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks.ending import started

STARTS = """
import subprocess, sys
from benchmarks.ending import ends_with_us
process = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
with ends_with_us(process.pid):
    print(process.pid, flush=True)
    sys.stdin.read()
"""

STARTED = """
import subprocess, sys
from benchmarks.ending import started
with started(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as process:
    print(process.stdout.readline(), flush=True)
    sys.stdin.read()
"""
# They start what ends by itself: loads for so many seconds, and what watches its parent or reads from it.
_END_BY_THEMSELVES = {"endurance/crowded.py", "endurance/memory.py", "ending.py", "folding/runs.py"}


def names(tree: ast.AST) -> set[str]:
    return {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(tree)}


def test_every_benchmark_that_starts_a_process_ends_it_however_it_ends_itself():
    """Each names what does that; five that did not had left services behind, which other figures then suffered from."""
    folder = Path(benchmarks.__file__).parent
    trees = {str(path.relative_to(folder)): ast.parse(path.read_text()) for path in folder.rglob("*.py")}
    start = {name for name, tree in trees.items() if names(tree) & {"Popen", "create_subprocess_exec"}}
    ends = {name for name, tree in trees.items() if names(tree) & {"ends_with_us", "started"}}
    assert "serving/servers.py" in start & ends
    assert start - ends - _END_BY_THEMSELVES == set()


@pytest.mark.parametrize("code", [STARTS, STARTED], ids=["service", "its worker"])
def test_a_killed_benchmark_takes_its_service_along(code):
    """`timeout` had ended the runner of a row, and two workers of its weakened service stayed for hours."""
    runner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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


def test_a_block_that_ends_takes_its_service_along():
    """With all of its processes, before the benchmark goes on."""
    with started(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE) as process:
        worker = os.pidfd_open(int(process.stdout.readline()))
    assert process.returncode is not None
    assert select.select([worker], [], [], 30)[0]
    os.close(worker)
