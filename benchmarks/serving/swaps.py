"""A hundred swaps under load: does any request fail, is every answer its version's own, and what does it cost.

    python -m benchmarks.serving.swaps --swaps 100 --seconds 60 --share 0.7 --workers 1

Starts the service with two versions, finds its capacity with a closed loop, then sends at a share of it (open loop:
latency counts from the planned moment) while `latest` is promoted back and forth. Prints one JSON object.
"""

import argparse
import asyncio
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import uvloop

from benchmarks.ending import ends_with_us
from foldserve.service.keys import new_key
from tests.support import artifacts

CONNECTIONS = 32
WINDOW_SECONDS = 0.1  # after a swap has returned, for workers that follow a moment later
_VERSION = re.compile(rb"x-model-version: (\d+)", re.IGNORECASE)


class Connection:
    """One keep-alive connection."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    async def open(self) -> "Connection":
        """Connect."""
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        return self

    async def ask(self, path: str, body: bytes, headers: str = "") -> tuple[int, bytes, bytes]:
        """POST; returns status, head and body."""
        lines = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n{headers}"
        self.writer.write(f"{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1])
        return int(head[9:12]), head, await self.reader.readexactly(length)


async def start(folder: Path, workers: int, keep_warm: int) -> tuple[asyncio.subprocess.Process, str, int, str]:
    """The service, its host and port, and the operator's key."""
    for version in (1, 2):
        artifacts.publish_classifier(folder / "models", version=version, seed=version)
    key, line = new_key("operator", ["admin"])
    (folder / "keys").write_text(line)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "foldserve", "serve", "--port", "0", "--provider", "cpu", "--workers", str(workers),
        "--models-dir", str(folder / "models"), "--state-dir", str(folder / "state"), "--keys-file",
        str(folder / "keys"), "--closed-scopes", "", "--poll-seconds", "0.1",
        "--keep-warm", str(keep_warm), stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    address = next(event["address"] for event in await first_events(process, workers) if "address" in event)
    host, port = address.removeprefix("http://").split(":")
    return process, host, int(port), key


async def first_events(process: asyncio.subprocess.Process, workers: int) -> list[dict[str, object]]:
    """The lines of a service's log until all of its workers are ready."""
    events: list[dict[str, object]] = []
    while sum(event["event"] == "ready" for event in events) < workers:
        line = await process.stderr.readline()
        assert line, f"the service ended: {events}"
        events.append(json.loads(line))
    return events


async def capacity(host: str, port: int, body: bytes, seconds: float) -> float:
    """Answers a second of a closed loop."""
    until = time.perf_counter() + seconds

    async def loop() -> int:
        connection, count = await Connection(host, port).open(), 0
        while time.perf_counter() < until:
            await connection.ask("/predict", body)
            count += 1
        return count

    return sum(await asyncio.gather(*(loop() for _ in range(CONNECTIONS)))) / seconds


async def load(
    host: str, port: int, body: bytes, rate: float, seconds: float
) -> list[tuple[float, float, int, bytes, bytes]]:
    """Planned moment, latency, status, version and body of each answer."""
    found = []
    begin = time.perf_counter() + 0.1

    async def send(lane: int) -> None:
        connection = await Connection(host, port).open()
        for number in range(lane, int(rate * seconds), CONNECTIONS):
            planned = begin + number / rate
            if (early := planned - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            try:
                status, head, answer = await connection.ask("/predict", body)
                version = _VERSION.search(head)
                found.append((planned, time.perf_counter() - planned, status, version[1] if version else b"", answer))
            except (OSError, asyncio.IncompleteReadError):
                found.append((planned, time.perf_counter() - planned, 0, b"", b""))
                connection = await Connection(host, port).open()

    await asyncio.gather(*map(send, range(CONNECTIONS)))
    return found


async def references(host: str, port: int, key: str, body: bytes) -> dict[bytes, bytes]:
    """Each version's answer, asked while it is the latest everywhere."""
    right = {}
    for number in range(2):
        await swap(host, port, key, 1, 0.0, first=number)
        await asyncio.sleep(1.0)
        status, head, answer = await (await Connection(host, port).open()).ask("/predict", body)
        version = _VERSION.search(head)
        assert status == 200, answer
        assert version, head
        right[version[1]] = answer
    assert len(right) == 2, right
    return right


async def swap(host: str, port: int, key: str, swaps: int, seconds: float, first: int = 0) -> list[tuple[float, float]]:
    """Promote back and forth; returns when each swap began and ended."""
    connection = await Connection(host, port).open()
    spans = []
    begin = time.perf_counter() + 0.1
    for number in range(swaps):
        await asyncio.sleep(max(0.0, begin + number * seconds / swaps - time.perf_counter()))
        started = time.perf_counter()
        body = json.dumps({"version": 1 + (first + number) % 2}).encode()
        path = "/v2/repository/models/fashion/promote"
        status, _, text = await connection.ask(path, body, f"X-API-Key: {key}\r\n")
        assert status == 200, text
        spans.append((started, time.perf_counter()))
    return spans


def resident_mib(root: int) -> float:
    """Memory of a process and its children."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            status = (folder / "status").read_text()
            fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            if int(folder.name) == root or int(fields["PPid"]) == root:
                total += int(fields.get("VmRSS", "0 kB").split()[0])
    return total / 1024


async def run(arguments: argparse.Namespace) -> dict[str, object]:
    """The whole run."""
    body = artifacts.images(1, seed=5).tobytes()
    with tempfile.TemporaryDirectory() as folder:
        process, host, port, key = await start(Path(folder), arguments.workers, arguments.keep_warm)
        logs = asyncio.create_task(process.stderr.read())
        try:
            with ends_with_us(process.pid):
                right = await references(host, port, key, body)
                most = await capacity(host, port, body, 3.0)
                rate = most * arguments.share
                before = resident_mib(process.pid)
                answers, spans = await asyncio.gather(
                    load(host, port, body, rate, arguments.seconds),
                    swap(host, port, key, arguments.swaps, arguments.seconds),
                )
                await asyncio.sleep(2.0)  # the last version that left is drained beside the answers
                after = resident_mib(process.pid)
        finally:
            process.terminate()
            await process.wait()
            await logs
    return summary(arguments, most, rate, answers, spans, right) | {
        "rss_mib": {"before": round(before, 1), "after": round(after, 1)}
    }


def summary(arguments, capacity_rps, rate, answers, spans, right) -> dict[str, object]:
    """What came of it."""
    failed = Counter(status for _, _, status, _, _ in answers if status != 200)
    wrong = sum(status == 200 and answer != right.get(version) for _, _, status, version, answer in answers)
    in_swap = [any(a <= t + d and t <= b + WINDOW_SECONDS for a, b in spans) for t, d, *_ in answers]
    latency = np.array([d for _, d, *_ in answers]) * 1000
    inside, outside = latency[np.array(in_swap)], latency[~np.array(in_swap)]
    return {
        "swaps": len(spans), "workers": arguments.workers, "keep_warm": arguments.keep_warm,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0], "capacity_rps": round(capacity_rps), "rate_rps": round(rate),
        "requests": len(answers), "failed": dict(failed), "wrong": wrong,
        "versions": dict(Counter(version.decode() for *_, version, _ in answers)),
        "swap_ms_p50": round(float(np.median([(b - a) * 1000 for a, b in spans])), 2),
        "p99_ms": {"in_swaps": quantile(inside), "between": quantile(outside)},
    }  # fmt: skip


def quantile(values: np.ndarray) -> float | None:
    """The 99th percentile, where there is one."""
    return round(float(np.quantile(values, 0.99)), 2) if len(values) else None


def main() -> None:
    """Read the flags, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--share", type=float, default=0.7, help="of the capacity that a closed loop finds")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--keep-warm", type=int, default=0, help="0: each swap loads, proves and unloads; 1: it only moves the pointer"
    )
    print(json.dumps(uvloop.run(run(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
