"""Seconds from starting `foldserve serve` until it is ready, and what the ready service takes while nobody asks.

    python -m benchmarks.serving.startup --runs 10 --workers 1,2 --json docs/results/startup.json

Ready is when every worker has said so and a request for the ready route is answered 200. The first run of each kind is
left out: it compiles modules and reads files from disk, which later ones find in the cache. The CPU seconds of all
processes until then, beside those by the clock, tell a busy machine from a slow start. Linux only.
"""

import argparse
import json
import os
import platform
import socket
import statistics as stats
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.ending import started

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
SETTLE_SECONDS = 1.5  # the service imports a library a second after it is ready


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_ready(url: str) -> bool:
    """Return whether the service says that it is ready."""
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in family(int(child)))]


def cpu_seconds(pids: list[int]) -> float:
    """Return user and system time of processes so far."""
    stats_of = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats_of) / CLOCK_TICKS


def memory_megabytes(pids: list[int]) -> float:
    """Return the memory of processes in MB; a page that several share counts once (PSS)."""
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(rollup.split("\nPss:")[1].split()[0]) * 1024 for rollup in rollups) / 1e6


def wait_until_ready(process: subprocess.Popen[str], workers: int, url: str) -> None:
    """Return when every worker has logged that it is ready and one of them has answered so.

    Raises:
        SystemExit: the service ended.
    """
    left = workers
    while left:
        line = process.stderr.readline() if process.stderr else ""
        if not line:
            raise SystemExit(f"the service ended with exit code {process.wait()}")
        left -= json.loads(line)["event"] == "ready"
    while not is_ready(url):
        if process.poll() is not None:
            raise SystemExit(f"the service ended with exit code {process.returncode}")


def one_run(models_dir: str, workers: int, idle_seconds: float) -> dict[str, float]:
    """Start the service once, wait for ready, watch it idle, stop it."""
    port = free_port()
    command = [sys.executable, "-m", "foldserve", "serve", "--models-dir", models_dir, "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    words = [*command, "--workers", str(workers)]
    with started(words, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_until_ready(process, workers, f"http://127.0.0.1:{port}/v2/health/ready")
        ready = time.perf_counter() - start
        pids = family(process.pid)
        found = {"ready_seconds": ready, "ready_cpu_seconds": cpu_seconds(pids)}
        time.sleep(SETTLE_SECONDS)
        before = cpu_seconds(pids)
        time.sleep(idle_seconds)
        idle = (cpu_seconds(pids) - before) / idle_seconds / workers
        return found | {"idle_cpu_share": idle, "memory_mb": memory_megabytes(pids)}


def summary(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return median, least and most of each figure."""
    return {
        key: {"median": stats.median(values), "min": min(values), "max": max(values)}
        for key in runs[0]
        if (values := [run[key] for run in runs])
    }


def numbers(text: str) -> list[int]:
    """Return the numbers of workers in "1,2"; argparse words the error."""
    found = [int(number) for number in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--workers", type=numbers, default=[1, 2], help="numbers of workers to start with, interleaved")
    parser.add_argument("--models-dir", default="models")
    parser.add_argument("--idle-seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path, help="write the result here as well")
    options = parser.parse_args(argv)
    kinds = options.workers
    taken: dict[int, list[dict[str, float]]] = {workers: [] for workers in kinds}
    for _ in range(options.runs + 1):
        for workers in kinds:
            taken[workers].append(one_run(options.models_dir, workers, options.idle_seconds))
    result: dict[str, object] = {
        "runs": options.runs,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "workers": {str(workers): summary(runs[1:]) for workers, runs in taken.items()},
    }
    text = json.dumps(result, indent=2, sort_keys=True)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
