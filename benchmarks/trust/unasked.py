"""A service that has said that it is ready, and was asked nothing yet."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Self

from benchmarks import ROOT
from benchmarks.ending import ends_with_us
from benchmarks.trust.row import Bench
from tests.support import processes


class Unasked:
    """A service on a free port.

    Args:
        bench: how many workers, and what is weakened.
        models: the folder that it serves.
        flags: of `foldserve serve`.
        shell: run before it.
        prefix: words before its command, such as those that run it elsewhere.

    Attributes:
        process: the first of its processes.
        port: of 127.0.0.1.
        events: what it wrote until it was ready.
        seconds: until all workers said that they are.
    """

    def __init__(
        self, bench: Bench, models: str, flags: str = "", shell: str = ":", prefix: Sequence[str] = ()
    ) -> None:
        words = [sys.executable, "-m", "benchmarks.trust.weakened", "--port", "0", "--provider", "cpu"]
        words += ["--models-dir", models, "--workers", str(bench.workers), *flags.split(), *bench.flags.split()]
        self._argv = [*prefix, "/bin/sh", "-c", f'{shell}; exec "$@"', "sh", *words]
        self._env = processes.environment() | {"BENCH_CHANGE": bench.change, "PYTHONPATH": str(ROOT)}
        self._workers = bench.workers
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        began = time.perf_counter()
        self.process = subprocess.Popen(
            self._argv, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=self._env, start_new_session=True
        )
        self._ending = ends_with_us(self.process.pid)
        self._ending.__enter__()
        assert self.process.stderr is not None
        while self.count("ready") < self._workers:
            line = self.process.stderr.readline()
            if not line:
                raise RuntimeError("the service ended before it was ready")
            self.events.append(json.loads(line))
        self.seconds = time.perf_counter() - began
        address = next(event["address"] for event in self.events if "address" in event)
        self.port = int(address.rsplit(":", 1)[1])
        self._drain = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._ending.__exit__(None, None, None)
        self._drain.kill()
        self._drain.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def count(self, name: str) -> int:
        """How many events had a name."""
        return sum(event["event"] == name for event in self.events)

    def rss_mib(self) -> float:
        """Resident memory of the processes that answer."""
        pids = processes.children(self.process.pid) or [self.process.pid]
        return sum(processes.rss_kib(pid) for pid in pids) / 1024
