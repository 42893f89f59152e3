"""What the page at `/` costs a service: its start, its memory and its answers, with the page and with `--no-page`.

    python -m benchmarks.serving.page --runs 6

Runs with and without the page take turns, and the first of each is left out. CPU seconds of the service for each answer
tell what an answer costs without the client's share; the load is that of `foldserve bench`.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks.ending import started
from foldserve.bench import load, loopback, question

from .startup import cpu_seconds, family, free_port, memory_megabytes, wait_until_ready

KINDS = {"with the page": (), "--no-page": ("--no-page",)}


def one_run(flags: tuple[str, ...], seconds: float, connections: int) -> dict[str, float]:
    """Start the service once with the shipped model, ask it for some seconds, stop it."""
    url = f"http://127.0.0.1:{free_port()}"
    words = ["serve", "--demo", "--provider", "cpu", "--port", url.rpartition(":")[2], *flags]
    command = [sys.executable, "-m", "foldserve", *words]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    with started(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_until_ready(process, 1, f"{url}/v2/health/ready")
        ready, pids = time.perf_counter() - began, family(process.pid)
        found = {"ready seconds": ready, "CPU seconds until ready": cpu_seconds(pids)}
        place = loopback(url)
        request = question(place, None)
        asyncio.run(load(place, request, connections, 1.0))
        before = cpu_seconds(pids)
        outcome = asyncio.run(load(place, request, connections, seconds))
        spent = cpu_seconds(pids) - before
        answers = len(outcome.latencies)
        rate = {"answers a second": answers / outcome.seconds, "CPU microseconds an answer": spent / answers * 1e6}
        return found | rate | {"memory MB": memory_megabytes(pids)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=6, help="of each kind, one more that is left out")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load in each run")
    parser.add_argument("--connections", type=int, default=8)
    options = parser.parse_args(argv)
    taken: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(options.runs + 1):
        for kind, flags in KINDS.items():
            taken[kind].append(one_run(flags, options.seconds, options.connections))
    print("figure", *KINDS, sep="\t")
    for figure in taken["--no-page"][0]:
        cells = []
        for runs in taken.values():
            values = [run[figure] for run in runs[1:]]
            cells.append(f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})")
        print(figure, *cells, sep="\t")
    print(json.dumps(taken))
    return 0


if __name__ == "__main__":
    sys.exit(main())
