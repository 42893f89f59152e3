"""How long a request that must be refused takes to be refused: each one of the tests' table, over real connections.

    python -m benchmarks.serving.bad_input --output docs/results/bad-input.md

Starts the service as an operator would, sends every request several times, one after another, and asks for liveness
behind each. The time is the client's, from the first byte that it sends to the last that it gets.
"""

import argparse
import asyncio
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import uvloop

from benchmarks.serving.swaps import first_events
from foldserve.service.v2.rpc.descriptors import INFERENCE
from tests.support import artifacts
from tests.support.bad_requests import ALL, MAX_ROWS, grpc_cases

LIMIT_MS = 100.0


@dataclass(frozen=True)
class Row:
    """One request: what came, with which status it was refused, and how long that took in ms."""

    way: str
    name: str
    sent_bytes: int
    status: str
    times_ms: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of them took no longer."""
        return statistics.median(self.times_ms)


async def over_http(url: str, rounds: int) -> list[Row]:
    """Send what HTTP can say."""
    rows = []
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        for bad in ALL:
            times = []
            for _ in range(rounds):
                started = time.perf_counter()
                answer = await http.post(bad.path, content=bad.body, headers=bad.headers)
                times.append((time.perf_counter() - started) * 1000)
                assert answer.status_code == bad.status, (bad.name, answer.text)
                assert (await http.get("/v2/health/live")).status_code == 200
            rows.append(Row("HTTP", bad.name, len(bad.body), str(bad.status), tuple(times)))
    return rows


async def over_grpc(address: str, rounds: int) -> list[Row]:
    """Send what gRPC can say."""
    methods = {method.name: method for method in INFERENCE.methods}
    async with grpc.aio.insecure_channel(address) as channel:
        infer, live = (
            channel.unary_unary(
                f"/{INFERENCE.service}/{name}", methods[name].request.SerializeToString,
                methods[name].response.FromString,
            )
            for name in ("ModelInfer", "ServerLive")
        )  # fmt: skip
        rows = []
        for name, (message, code, _) in grpc_cases(INFERENCE.messages["ModelInferRequest"]).items():
            times = []
            for _ in range(rounds):
                started = time.perf_counter()
                call = infer(message)
                found = await call.code()
                times.append((time.perf_counter() - started) * 1000)
                assert found.name == code, (name, found)
                assert (await live(INFERENCE.messages["ServerLiveRequest"]())).live
            rows.append(Row("gRPC", name, message.ByteSize(), code, tuple(times)))
    return rows


async def run(rounds: int) -> list[Row]:
    """The whole run."""
    with tempfile.TemporaryDirectory() as folder:
        artifacts.publish_classifier(Path(folder))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "foldserve", "serve", "--port", "0", "--grpc-port", "0", "--provider", "cpu",
            "--models-dir", folder, "--max-rows", str(MAX_ROWS), stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        events = await first_events(process, 1)
        logs = asyncio.create_task(process.stderr.read())
        try:
            address = next(event["address"] for event in events if "address" in event)
            port = next(event["port"] for event in events if "port" in event)
            return [*await over_http(address, rounds), *await over_grpc(f"127.0.0.1:{port}", rounds)]
        finally:
            process.terminate()
            await process.wait()
            await logs


def page(rows: list[Row], rounds: int) -> str:
    """What came of it, in words."""
    late = [row for row in rows if row.median >= LIMIT_MS]
    medians = sorted(row.median for row in rows)
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    lines = [
        "# Bad input: how long a refusal takes",
        "",
        f"`python -m benchmarks.serving.bad_input --rounds {rounds}`, Python {platform.python_version()}, "
        f"{len(os.sched_getaffinity(0))} cores of {model[1] if model else platform.machine()}, load average "
        f"{os.getloadavg()[0]:.1f}. Client and service share the machine; the time is the client's, upload included.",
        "",
        f"{len(rows)} requests, each {rounds} times, all refused with the status that the tests demand, and liveness "
        "was 200 behind each. "
        f"Median of the medians {statistics.median(medians):.1f} ms, the largest {medians[-1]:.1f} ms; "
        f"{len(late)} of {len(rows)} at {LIMIT_MS:g} ms or more"
        + (": " + ", ".join(row.name for row in late) if late else "")
        + ".",
        "",
        "A body that deflate has squeezed does not say how large it was (gzip does): only inflating it, up to 200 "
        "times what was sent, shows that it is too large. That is done in a thread and without the interpreter's lock, "
        "so that others are answered meanwhile.",
        "",
        "| over | request | bytes | status | median, ms | worst, ms |",
        "|---|---|---:|---|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: -row.median):
        figures = f"{row.sent_bytes} | {row.status} | {row.median:.1f} | {max(row.times_ms):.1f}"
        lines.append(f"| {row.way} | {row.name} | {figures} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the flags, run, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="a page; printed where none is named")
    arguments = parser.parse_args()
    text = page(uvloop.run(run(arguments.rounds)), arguments.rounds)
    if arguments.output:
        arguments.output.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
