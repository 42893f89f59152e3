"""Real processes that hang: each ends itself, and its log says where it stood."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.processes import OCTETS, command, environment

# `python -m service` in which one image, all pixels 77, makes the run hang.
HANGING = """
import sys, time
from foldserve.service import command
from foldserve.service.engines import engine
run = engine.Engine.run
def hang(self, inputs):
    if (inputs["image"] == 77).all():
        time.sleep(1000)
    return run(self, inputs)
engine.Engine.run = hang
sys.exit(command.main(sys.argv[1:]))
"""

# An event loop that is blocked once for longer than the limit by being stopped from outside, and is not to blame.
STOPPED = """
import asyncio, os, signal, subprocess
from foldserve.service.processes.watchdog import Watchdog
async def main():
    async with Watchdog(1.0, dict).watch():
        await asyncio.sleep(0.6)
        subprocess.Popen(["sh", "-c", f"kill -STOP {os.getpid()}; sleep 3; kill -CONT {os.getpid()}"])
        await asyncio.sleep(2)
        print("alive")
asyncio.run(main())
"""

# A turn of the loop that needs less than half the limit, on a core that five others want as well.
STARVED = r"""
import asyncio, os, subprocess, sys, time
from foldserve.service.processes.watchdog import Watchdog
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
async def main():
    async with Watchdog(1.0, dict).watch():
        await asyncio.sleep(0.6)
        busy = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
        rivals = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(5)]
        try:
            ends = time.thread_time() + 0.45
            while time.thread_time() < ends:
                pass
        finally:
            for rival in rivals:
                rival.kill()
                rival.wait()
        await asyncio.sleep(0.6)
        print("alive")
asyncio.run(main())
"""

# Which threads open files while a batch runs: those that say how long each thread waited for a core.
LOOKING = """
import asyncio, sys, threading
from foldserve.service.processes.watchdog import Watchdog
opened = set()
sys.addaudithook(lambda event, given: event == "open" and opened.add(threading.current_thread().name))
async def main():
    async with Watchdog(60.0, lambda: {"fashion/1": 1}).watch():
        opened.clear()
        while "watchdog" not in opened:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        print(opened)
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "reason", "function"),
    [("0", "a batch of 'fashion/1' has run for 1 s", "hang"), ("1000", "the event loop has not moved for 1 s", "hang")],
    ids=["batch", "loop"],
)
def test_a_process_that_hangs_ends_and_says_where(fashion, flag, reason, function):
    """A run that never returns, in the engine's thread and on the loop itself: exit code 4 and the stacks."""
    flags = command("--models-dir", str(fashion), "--hang-seconds", "1", "--inline-below-ms", flag)[3:]
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, *flags], stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        address, event = "", {}
        while event.get("event") != "ready":
            event = json.loads(process.stderr.readline())
            address = event.get("address", address)
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{address}/predict", content=bytes([77]) * 784, headers=OCTETS, timeout=60)
        assert process.wait(60) == 4
        last = json.loads(process.stderr.read().splitlines()[-1])
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()
    assert last["level"] == "critical"
    assert reason in last["event"]
    assert any(call.endswith(f" {function}") for stack in last["stacks"].values() for call in stack)


@pytest.mark.slow
def test_a_process_that_was_stopped_goes_on():
    """A suspended container is not a hung loop: three seconds without a beat, and no look that missed one."""
    done = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, timeout=60)
    assert done.stdout == "alive\n", done.stderr
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this system does not count waits for a core")
def test_a_process_that_is_starved_goes_on():
    """A loop that gets a sixth of a core is slow and not hung, though the thread that looks is on time."""
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, timeout=60)
    assert done.stdout == "alive\n", done.stderr
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this system does not count waits for a core")
def test_the_loop_reads_no_files_to_see_whether_batches_hang():
    """A hundred models have as many threads, and a look at each of them held liveness up twice a second."""
    done = subprocess.run([sys.executable, "-c", LOOKING], capture_output=True, text=True, timeout=60)
    assert done.stdout == "{'watchdog'}\n", done.stderr
