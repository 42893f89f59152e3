"""R31 once more: a service that shares its core with ten busy processes is slow, and is not taken to hang.

Its threads get turns at different moments: the one that looks whether the event loop moves is on time, long before the
loop is. The time that a loop may stand still is set to a tenth of what it is by default, so that seconds are enough.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.endurance.load import beside
from benchmarks.endurance.setup import Found, serving
from benchmarks.serving.open_loop import CONNECTIONS, Load, requests_for

RIVALS = 10
HANG_SECONDS = 1  # 10 by default
RATE = 12_000.0  # a busy loop: turns are long
MOST_SECONDS = 8.0

# Ends with its parent, and by itself.
BUSY = (
    "import os, sys, time\nends = time.time() + {seconds}\nwhile os.getppid() == {parent} and time.time() < ends: pass"
)


def measure(models: Path, seconds: float) -> Found:
    """Load, with rivals from the first second on.

    Args:
        models: folder of models.
        seconds: of the load; at most eight, since other work on the machine suffers too.
    """
    seconds = min(seconds, MOST_SECONDS)
    with serving(models, f"--hang-seconds {HANG_SECONDS}") as service, beside() as begin:
        core = max(os.sched_getaffinity(0))
        pid = service.running.process.pid
        for task in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(task), {core})
        load = (service.port, requests_for("/predict", service.bodies, 250), service.alone, 0.25, CONNECTIONS)
        future = begin(Load, load, RATE, seconds)
        time.sleep(1.0)
        with rivals(core, seconds - 1.0):
            run = future.result()
        code = service.running.process.poll()
        said = [event["event"] for event in service.events() if event["level"] == "critical"]
    recipe = (
        f"one core for the service and {RIVALS} busy processes, {RATE:,.0f} requests/s for {seconds:g} s, "
        f"--hang-seconds {HANG_SECONDS} (10 by default)"
    )
    found = Found("R31", recipe, details={"run": run, "exit_code": code, "said": said})
    measured = "no" if code is None else f"exit code {code}: {'; '.join(said)}"
    found.add("ended by a watchdog", "no", measured, code is None)
    found.add("wrong answers, resets", "0 / 0", f"{run['wrong']} / {run['resets']}", not run["wrong"] + run["resets"])
    return found


@contextmanager
def rivals(core: int, seconds: float) -> Iterator[None]:
    """Keep a core busy for some seconds, and no longer than the block."""
    code = BUSY.format(seconds=seconds, parent=os.getpid())
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(RIVALS)]
    try:
        for rival in started:
            os.sched_setaffinity(rival.pid, {core})
        yield
    finally:
        for rival in started:
            rival.kill()
            rival.wait()
