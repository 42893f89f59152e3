"""What becomes of requests when more come than can be answered: an open loop over HTTP against a slowed engine.

    python benchmarks/overload.py --models-dir models --seconds 60 --out docs/results/overload.md

The service runs with an engine that sleeps until a batch has taken rows / 2,000 s, so that its capacity is known and a
generator on the same machine keeps up. Requests are planned at fixed times and sent then, whether or not earlier ones
have been answered; latency counts from the planned time. Every answer is compared with the one that the model gave
when nothing else ran. A run in which the generator itself was late by more than 5 ms at its p99 is void.
"""

import argparse
import asyncio
import base64
import collections
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvloop

ROOT = Path(__file__).parent.parent
CAPACITY = 2_000  # rows a second of the slowed engine
BUCKETS = "1,2,4,8,16,32,64"
LATE_MS = 5.0

# `python -m service` with an engine that is slow by the clock and computes what it always does.
SLOWED = f"""
import sys, time
from service import __main__, engine
run = engine.Engine._run_exactly
def slowed(self, inputs):
    until = time.perf_counter() + len(next(iter(inputs.values()))) / {CAPACITY}
    outputs = run(self, inputs)
    time.sleep(max(0.0, until - time.perf_counter()))
    return outputs
engine.Engine._run_exactly = slowed
sys.exit(__main__.main(sys.argv[1:]))
"""


@dataclass
class Run:
    """What came of one run; times in seconds from the planned moment, except `lags`: how late requests were sent."""

    rate: float
    seconds: float
    planned: int = 0
    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    statuses: collections.Counter = field(default_factory=collections.Counter)
    lags: list[float] = field(default_factory=list)
    wrong: int = 0
    resets: int = 0
    bad_refusals: int = 0


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    def __init__(self, load: "Load") -> None:
        self.load = load
        self.transport: asyncio.Transport | None = None
        self.buffer = b""
        self.planned = 0.0
        self.question = 0
        self.is_busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def ask(self, planned: float, question: int) -> None:
        """Send a request."""
        self.planned, self.question, self.is_busy = planned, question, True
        self.transport.write(self.load.requests[question])

    def data_received(self, data: bytes) -> None:
        """Hand over an answer that is complete."""
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        start = head.index(b"content-length:") + 15
        length = int(head[start : (head.find(b"\r\n", start) + 1 or end + 1) - 1])
        if len(self.buffer) < end + 4 + length:
            return
        body = self.buffer[end + 4 : end + 4 + length]
        self.buffer = b""
        self.is_busy = False
        self.load.answered(self, int(head[9:12]), head, body)

    def connection_lost(self, error: Exception | None) -> None:
        """Count a request that was cut off."""
        if self.is_busy:
            self.load.run.resets += 1
            self.load.left -= 1
        self.transport = None


class Load:
    """An open loop over as many connections as it takes.

    Args:
        address: host and port.
        bodies: images.
        expected: the answer to each.
        budget_ms: sent with each request as its deadline.
    """

    def __init__(self, address: tuple[str, int], bodies: list[bytes], expected: list[bytes], budget_ms: int) -> None:
        self.address = address
        head = (
            "POST /predict HTTP/1.1\r\nHost: load\r\nContent-Type: application/octet-stream\r\n"
            f"X-Deadline-Ms: {budget_ms}\r\nContent-Length: 784\r\n\r\n"
        ).encode()
        self.requests = [head + body for body in bodies]
        self.expected = expected
        self.idle: list[Connection] = []
        self.left = 0
        self.run = Run(0, 0)

    async def play(self, rate: float, seconds: float, connections: int) -> Run:
        """Send `rate` requests a second for so long, and wait for every answer."""
        loop = asyncio.get_running_loop()
        while len(self.idle) < connections:
            _, connection = await loop.create_connection(lambda: Connection(self), *self.address)
            self.idle.append(connection)
        self.run = run = Run(rate, seconds, planned=int(rate * seconds))
        self.left, sent, start = run.planned, 0, time.perf_counter() + 0.1
        while sent < run.planned:
            now = time.perf_counter()
            while sent < run.planned and start + sent / rate <= now:
                connection = await self._connection(loop)
                planned = start + sent / rate
                run.lags.append(time.perf_counter() - planned)
                connection.ask(planned, sent % len(self.requests))
                sent += 1
            await asyncio.sleep(max(0.0, min(0.001, start + sent / rate - time.perf_counter())))
        for _ in range(3_000):
            if self.left > 0:
                await asyncio.sleep(0.01)
        return run

    async def _connection(self, loop: asyncio.AbstractEventLoop) -> Connection:
        while self.idle:
            connection = self.idle.pop()
            if connection.transport is not None:
                return connection
        _, connection = await loop.create_connection(lambda: Connection(self), *self.address)
        return connection

    def answered(self, connection: Connection, status: int, head: bytes, body: bytes) -> None:
        """Note one answer and take the connection back."""
        run, seconds = self.run, time.perf_counter() - connection.planned
        self.left -= 1
        run.statuses[status] += 1
        if status == 200:
            run.accepted.append(seconds)
            run.wrong += body != self.expected[connection.question]
        else:
            run.refused.append(seconds)
            run.bad_refusals += status not in (503, 504) or (status == 503 and b"\r\nretry-after: " not in head)
        if connection.transport is not None:
            self.idle.append(connection)


def start_service(models_dir: Path, slowed: bool) -> tuple[subprocess.Popen, tuple[str, int]]:
    """Start the service and return it with its address once it is ready."""
    flags = ["--models-dir", str(models_dir), "--port", "0", "--provider", "cpu", "--threads", "1"]
    flags += ["--buckets", BUCKETS, "--log-level", "info", "--no-specialise"]
    program = ["-c", SLOWED] if slowed else ["-m", "service"]
    process = subprocess.Popen([sys.executable, *program, *flags], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    host, port = "", 0
    for line in process.stderr:
        event = json.loads(line)
        if "address" in event:
            host, _, port = event["address"].removeprefix("http://").rpartition(":")
        if event["event"] == "ready":
            # Who does not read the log stops the service when the pipe is full.
            threading.Thread(target=lambda: collections.deque(process.stderr, 0), daemon=True).start()
            return process, (host, int(port))
    raise SystemExit("the service did not start")


def golden_images(models_dir: Path, model: str) -> list[bytes]:
    """Return the golden images of the newest version, 784 bytes each."""
    version = max((models_dir / model).glob("[0-9]*"), key=lambda path: int(path.name))
    golden = json.loads((version / "manifest.json").read_text())["golden"]["inputs"]["image"]
    data = base64.b64decode(golden["data"])
    return [data[at : at + 784] for at in range(0, len(data), 784)]


async def ask_alone(address: tuple[str, int], bodies: list[bytes]) -> list[bytes]:
    """Return the answer to each image when nothing else runs."""
    load, answers = Load(address, bodies, [b""] * len(bodies), 60_000), asyncio.Queue()
    load.answered = lambda connection, status, head, body: answers.put_nowait(body)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(load), *address)
    alone = []
    for number in range(len(bodies)):
        connection.ask(time.perf_counter(), number)
        alone.append(await answers.get())
    connection.transport.close()
    return alone


def percentile(values: list[float], share: float) -> float:
    """Return a percentile in milliseconds; 0 where there is nothing."""
    return float(np.percentile(values, share)) * 1e3 if values else 0.0


def row(run: Run, budget_ms: int) -> str:
    """Return one line of the table."""
    in_time = sum(seconds <= budget_ms / 1e3 for seconds in run.accepted)
    goodput = in_time / run.seconds
    unanswered = run.planned - sum(run.statuses.values()) - run.resets
    lag = percentile(run.lags, 99)
    cells = [
        f"{100 * run.rate / CAPACITY:.0f} %",
        f"{goodput:,.0f} ({goodput / min(CAPACITY, run.rate):.2f})",
        *(f"{percentile(run.accepted, share):.1f}" for share in (50, 99, 99.9)),
        f"{len(run.refused):,}",
        f"{percentile(run.refused, 50):.1f} / {percentile(run.refused, 99):.1f}",
        ", ".join(f"{status}: {count:,}" for status, count in sorted(run.statuses.items())),
        f"{run.wrong} / {run.resets} / {unanswered} / {run.bad_refusals}",
        f"{lag:.1f}{' (void)' if lag > LATE_MS else ''}",
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| load of capacity | goodput, rows/s (of what could be had) | p50 ms | p99 | p99.9 | refused "
    "| refusal p50 / p99 ms | statuses | wrong / resets / unanswered / refused badly | generator late p99 ms |\n"
    + "|---" * 10
    + "|"
)


def report(curve: list[str], overload: list[str], options: argparse.Namespace, command: str) -> str:
    """Return the page."""
    processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return "\n".join(
        [
            "# Overload",
            "",
            f"`{command}`",
            "",
            f"{processor.split(':', 1)[1].strip()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; "
            f"Python {platform.python_version()}; one worker, engine slowed to {CAPACITY:,} rows/s, buckets {BUCKETS}; "
            f"one image a request, raw bytes, deadline {options.budget_ms} ms; {options.connections} connections to "
            "begin with, more as they are needed; generator on the same machine.",
            "",
            "Open loop: requests are sent when planned, and latency counts from then. Goodput counts answers within "
            "the deadline; its share is of the smaller of capacity and offered load. A row is void where the generator "
            f"was late by more than {LATE_MS:.0f} ms at its p99. Refused badly: not 503 or 504, or 503 without "
            "Retry-After.",
            "",
            f"## 4 x capacity for {options.seconds:g} s",
            "",
            HEAD,
            *overload,
            "",
            f"## From 10 % to 120 %, {options.curve_seconds:g} s each",
            "",
            HEAD,
            *curve,
            "",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models-dir", type=Path, default=Path("models"))
    parser.add_argument("--model", default="lenet-bn")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the run at 4 x capacity")
    parser.add_argument("--curve-seconds", type=float, default=10.0, help="of each run of the curve; 0 leaves it out")
    parser.add_argument("--budget-ms", type=int, default=200, help="deadline of each request")
    parser.add_argument("--connections", type=int, default=512)
    parser.add_argument("--out", type=Path, help="write the page here as well")
    options = parser.parse_args(argv)
    bodies = golden_images(options.models_dir, options.model)
    process, address = start_service(options.models_dir, slowed=True)
    curve: list[str] = []
    overload: list[str] = []

    async def measure() -> None:
        expected = await ask_alone(address, bodies)
        load = Load(address, bodies, expected, options.budget_ms)
        for percent in (10, 25, 50, 75, 90, 100, 110, 120) if options.curve_seconds else ():
            run = await load.play(CAPACITY * percent / 100, options.curve_seconds, options.connections)
            curve.append(row(run, options.budget_ms))
            print(curve[-1], flush=True)
            await asyncio.sleep(1)
        run = await load.play(CAPACITY * 4, options.seconds, options.connections)
        overload.append(row(run, options.budget_ms))
        print(overload[-1], flush=True)

    try:
        uvloop.run(measure())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    words = ["--seconds", f"{options.seconds:g}", "--curve-seconds", f"{options.curve_seconds:g}"]
    command = " ".join(["python benchmarks/overload.py", *words, "--budget-ms", str(options.budget_ms)])
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(report(curve, overload, options, command))
    return 0


if __name__ == "__main__":
    sys.exit(main())
