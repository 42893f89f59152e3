"""Services that a benchmark has started do not stay behind it."""

import ast
import os
import select
import signal
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

BESIDE = """
import multiprocessing, sys
from benchmarks.endurance.load import beside
with beside():
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    sys.stdin.read()
"""
ROW = """
import sys
from benchmarks.trust.row import Bench
with Bench(workers=2).serve() as service:
    print(*service.workers(), flush=True)
    sys.stdin.read()
"""
# They start what ends by itself: loads for so many seconds, and what watches its parent or reads from it.
_START = {"Popen", "create_subprocess_exec", "ProcessPoolExecutor"}
_END = {"ends_with_us", "started", "end_with_parent"}
_END_BY_THEMSELVES = {"endurance/crowded.py", "endurance/memory.py", "ending.py", "folding/runs.py"}


def names(tree: ast.AST) -> set[str]:
    return {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(tree)}


def test_every_benchmark_that_starts_a_process_ends_it_however_it_ends_itself():
    """Each names what does that; five that did not had left services behind, which other figures then suffered from."""
    folder = Path(benchmarks.__file__).parent
    trees = {str(path.relative_to(folder)): ast.parse(path.read_text()) for path in folder.rglob("*.py")}
    start = {name for name, tree in trees.items() if names(tree) & _START}
    ends = {name for name, tree in trees.items() if names(tree) & _END}
    assert {"serving/servers.py", "endurance/load.py"} <= start & ends
    assert start - ends - _END_BY_THEMSELVES == set()


@pytest.mark.parametrize("code", [STARTS, STARTED, BESIDE, ROW], ids=["service", "its worker", "load", "row"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_benchmark_takes_what_it_started_along(code, number):
    """`timeout` had ended the runner of a row, and two workers of its weakened service stayed for hours."""
    runner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    started = [os.pidfd_open(int(pid)) for pid in runner.stdout.readline().split()]
    try:
        assert started
        runner.send_signal(number)
        for process in started:
            assert select.select([process], [], [], 30)[0]
    finally:
        runner.communicate()
        for process in started:
            os.close(process)


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
