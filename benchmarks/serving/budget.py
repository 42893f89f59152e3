"""Where the microseconds of a request on the fast lane go, stage by stage, in one process without a network.

    python -m benchmarks.serving.budget --models models

Feeds whole requests into real protocol objects and lets the real batcher, engine and formatting answer them into a
transport that only keeps the bytes. A tenth percentile over many turns is reported, since everything else that the
machine does can only add. Each stage excludes the stages within it; a stage's own clock adds about 0.2 us to it. The
floor is measured apart: the CPU time of a uvloop protocol that answers with fixed bytes, under wrk. Writes
docs/results/serving-budget.md.
"""

import argparse
import asyncio
import base64
import functools
import json
import logging
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
import uvloop
from uvicorn.server import ServerState

from benchmarks import ROOT
from foldserve.service.app import create_app
from foldserve.service.batching.batch import Batch
from foldserve.service.batching.batcher import Batcher
from foldserve.service.engines.runners import PlainRunner
from foldserve.service.lane.connection import lane_connection
from foldserve.service.lane.exchange import Endpoint, Exchange
from foldserve.service.lane.predict import Predict
from foldserve.service.settings import Settings
from foldserve.service.transport.connection import Connection
from foldserve.service.transport.outbox import Outbox

STAGES: tuple[tuple[str, type, str], ...] = (
    ("receive: know the head, make the exchange", Connection, "data_received"),
    ("read the body, where bytes are not rows already", Exchange, "read"),
    ("admit and queue", Batcher, "submit"),
    ("take the batch, remember its time", Batcher, "_turn"),
    ("join the rows", Batch, "assemble"),
    ("run the network", PlainRunner, "run"),
    ("write the numbers of the batch", Predict, "write"),
    ("head and body of the answers", Endpoint, "_answers"),
    ("send, next in line", Outbox, "send"),
    ("count", Endpoint, "_count"),
)
REST = "event loop between them"
BATCHES = (1, 32, 128)
PASSES = 4  # one after the other over all columns; of each column the fastest counts, since a machine's speed moves


class Clock:
    """Time of each stage without the stages within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._within = [0.0]

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time taken."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._within.append(0.0)
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - started
                self.seconds[name] = self.seconds.get(name, 0.0) + elapsed - self._within.pop()
                self._within[-1] += elapsed

        return timed


class Sink:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: bytes) -> None:
        """Keep."""
        self.written += len(data)

    def is_closing(self) -> bool:
        """Never."""
        return False

    def get_extra_info(self, _name: str) -> None:
        """Know nothing."""


async def measure(models: Path, request: bytes, connections: int, turns: int) -> dict[str, float]:
    """Return microseconds a request of each stage, `connections` requests arriving in each turn of the loop."""
    clock = Clock()
    originals = [(owner, name, getattr(owner, name)) for _, owner, name in STAGES]
    app = create_app(Settings(models_dir=models, provider="cpu", threads=1, inline_below_ms=1_000))
    config = uvicorn.Config(app, http=lane_connection, ws="none", log_config=None)
    config.load()
    rows = []
    async with app.router.lifespan_context(app) as state:
        server = ServerState()
        server.default_headers = [(b"date", b"Sun, 22 Nov 2026 12:00:00 GMT")]
        protocols = [lane_connection(config, server, dict(state)) for _ in range(connections)]
        for protocol in protocols:
            protocol.connection_made(Sink())  # type: ignore[arg-type]
        for stage, owner, name in STAGES:
            setattr(owner, name, clock.wrap(stage, getattr(owner, name)))
        try:
            for _ in range(turns):
                clock.seconds.clear()
                started = time.perf_counter()
                for protocol in protocols:
                    protocol.data_received(request)
                while protocols[-1].outbox.due:  # noqa: ASYNC110 - turns of the loop are what is measured
                    await asyncio.sleep(0)
                total = time.perf_counter() - started
                known = [clock.seconds.get(stage, 0.0) for stage, _, _ in STAGES]
                rows.append([*known, total - sum(known), total])
        finally:
            for owner, name, original in originals:
                setattr(owner, name, original)
        for protocol in protocols:
            protocol.connection_lost(None)
    figures = np.percentile(np.array(rows[len(rows) // 5 :]), 10, axis=0) / connections * 1e6
    return dict(zip([*(stage for stage, _, _ in STAGES), REST, "all"], figures.tolist(), strict=True))


ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 244\r\n\r\n" + b"x" * 244


class Fixed(asyncio.Protocol):
    """Answers whatever comes in one piece."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer."""
        self.transport.write(ANSWER)  # type: ignore[attr-defined]


async def serve_fixed(listener: socket.socket) -> None:
    """Serve `Fixed` until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Fixed, sock=listener)
    await server.serve_forever()


def floor(folder: Path, image: bytes, connections: int) -> float:
    """Return microseconds of CPU that kernel and loop take for one request, with nothing done for it."""
    body = folder / "budget-body"
    body.write_bytes(image)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pid = os.fork()
        if not pid:
            uvloop.run(serve_fixed(listener))
        port = listener.getsockname()[1]
    try:
        env = os.environ | {"WRK_BODIES": str(body), "WRK_SIZE": "784", "WRK_TYPE": "application/octet-stream"}
        command = ["wrk", "-t1", f"-c{connections}", "-d3s", "-s", str(ROOT / "benchmarks/serving/wrk.lua")]
        url = f"http://127.0.0.1:{port}/"
        out = subprocess.run([*command, url], env=env, capture_output=True, text=True, check=True).stdout
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    finally:
        os.kill(pid, 15)
        os.waitpid(pid, 0)
        body.unlink()
    result = json.loads(next(line for line in out.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT "))
    return seconds / result["requests"] * 1e6


def requests_of(models: Path) -> dict[str, bytes]:
    """Return one request of each form, made of a golden image."""
    manifest = json.loads(next(models.glob("*/*/manifest.json")).read_text())
    image = base64.b64decode(manifest["golden"]["inputs"]["image"]["data"])[:784]
    document = json.dumps({"instances": [list(image)]}).encode()
    head = "POST /predict HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n"
    return {
        "binary": head.format("application/octet-stream", len(image)).encode() + image,
        "JSON": head.format("application/json", len(document)).encode() + document,
    }


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--requests", type=int, default=40_000)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    logging.disable()
    columns: dict[str, dict[str, float]] = {}
    requests = requests_of(arguments.models)
    for _ in range(PASSES):
        for form, batches in (("binary", BATCHES), ("JSON", (32,))):
            for connections in batches:
                turns = arguments.requests // connections // PASSES
                column = uvloop.run(measure(arguments.models, requests[form], connections, turns))
                best = columns.setdefault(f"{form}, {connections}", column)
                if column["all"] < best["all"]:
                    columns[f"{form}, {connections}"] = column
    arguments.out.mkdir(parents=True, exist_ok=True)
    bare = {connections: floor(arguments.out, requests["binary"][-784:], connections) for connections in BATCHES}
    page = write(columns, bare)
    (arguments.out / "serving-budget.md").write_text(page)
    print(page)


def write(columns: dict[str, dict[str, float]], bare: dict[int, float]) -> str:
    """Return the page."""
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    lines = [
        "# Where the microseconds go",
        "",
        f"`python -m benchmarks.serving.budget` ({time.strftime('%Y-%m-%d')}), one process on"
        f"{model.partition(':')[2]}; load average before: {os.getloadavg()[1]:.1f}.",
        "Microseconds for one request with one image on the fast lane; the number in each column is how many requests",
        "arrive in one turn of the event loop, and so share one batch. Tenth percentile over the turns, fastest of",
        f"{PASSES} passes over all columns.",
        "",
        f"| stage | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for stage in next(iter(columns.values())):
        cells = [f"{column[stage]:.2f}" for column in columns.values()]
        lines.append(f"| {'**' + stage + '**' if stage == 'all' else stage} | {' | '.join(cells)} |")
    lines += [
        "",
        "Kernel, event loop and nothing else, with an answer of fixed bytes (CPU time of that process under wrk): "
        + ", ".join(f"{seconds:.1f} us at {connections} connections" for connections, seconds in bare.items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
