"""Seconds from starting `python -m service` to the first ready answer, and the idle CPU that the ready service takes.

    python benchmarks/startup.py --runs 10 --json docs/results/startup.json

The first run is left out: it reads the files from disk, later ones from the page cache.
"""

import argparse
import json
import os
import platform
import signal
import socket
import statistics as stats
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


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


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def resident_megabytes(pid: int) -> float:
    """Return the resident memory of a process in MB (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def one_run(models_dir: str, idle_seconds: float) -> dict[str, float]:
    """Start the service once, wait for ready, watch it idle, stop it."""
    port = free_port()
    start = time.perf_counter()
    command = [sys.executable, "-m", "service", "--models-dir", models_dir, "--port", str(port), "--log-level", "error"]
    process = subprocess.Popen(command)
    try:
        while not is_ready(f"http://127.0.0.1:{port}/v2/health/ready"):
            if process.poll() is not None:
                raise SystemExit(f"the service ended with exit code {process.returncode}")
            time.sleep(0.005)
        ready = time.perf_counter() - start
        before = cpu_seconds(process.pid)
        time.sleep(idle_seconds)
        idle = (cpu_seconds(process.pid) - before) / idle_seconds
        return {"ready_seconds": ready, "idle_cpu_share": idle, "resident_mb": resident_megabytes(process.pid)}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=40)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--models-dir", default="models")
    parser.add_argument("--idle-seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path, help="write the result here as well")
    options = parser.parse_args(argv)
    runs = [one_run(options.models_dir, options.idle_seconds) for _ in range(options.runs + 1)][1:]
    result: dict[str, object] = {
        key: {"median": stats.median(values), "min": min(values), "max": max(values)}
        for key in runs[0]
        if (values := [run[key] for run in runs])
    }
    result |= {"runs": options.runs, "cores": os.cpu_count(), "python": platform.python_version()}
    text = json.dumps(result, indent=2, sort_keys=True)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
