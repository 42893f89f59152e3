"""How cost grows: p99 with the load, throughput with the CPU quota, memory with models, CPU time with pictures.

    python -m benchmarks.serving.growth load --models models --seconds 8
    python -m benchmarks.serving.growth quota --models models --rounds 3
    python -m benchmarks.serving.growth models --models models --counts 1,10,50,100
    python -m benchmarks.serving.growth pictures --models /tmp/large --model resnet18

`load` finds the capacity with a closed loop and then sends at random times, at shares of it; `quota` puts the service
into a control group and loads it from outside, and fits what is lost by sharing; `models` serves so many copies of the
one model of a folder; `pictures` sends one JPEG at a time, of rising sizes, and takes the CPU time of the service.
One worker, one row a request. Linux only; `quota` needs to be root.
"""

import argparse
import http.client
import io
import json
import os
import shutil
import statistics as stats
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT
from benchmarks.endurance.starved import starved
from benchmarks.serving.closed_loop import closed_loop
from benchmarks.serving.large import ALL_PROVED, started
from benchmarks.serving.servers import BINARY, OCTETS, Running

SHARES = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95)
QUOTAS = (0.5, 1.0, 1.5, 2.0)
MEGAPIXELS = (0.3, 1, 3, 6, 12)
PATIENCE_SECONDS = 60.0


@contextmanager
def served(models: Path, name: str, folder: Path) -> Iterator[tuple[Running, Path, int]]:
    """Serve one model of a folder alone, all its batch sizes proved; yields it with a file of bodies and their size."""
    alone = folder / "models"
    if not alone.exists():
        shutil.copytree(models / name, alone / name)
    with started(alone, folder / "state", 1, ROOT) as server:
        wait_until_proved(server, folder / "log")
        (spec,) = ask(server.port, "GET", f"/v2/models/{name}")["inputs"]
        size = int(np.prod(spec["shape"][1:])) * (1 if spec["datatype"] == "UINT8" else 4)
        bodies, random = folder / "bodies", np.random.default_rng(1)
        made = [random.integers(0, 256, size, np.uint8).tobytes() for _ in range(8)]
        if spec["datatype"] != "UINT8":
            made = [random.random(size // 4, np.float32).tobytes() for _ in range(8)]
        bodies.write_bytes(b"".join(made))
        yield server, bodies, size


def wait_until_proved(server: Running, log: Path) -> None:
    """Return when the service has proved its batch sizes, and the process that measured them has ended."""
    until = time.monotonic() + PATIENCE_SECONDS
    while (ALL_PROVED not in log.read_text() or len(server.processes()) > 1) and time.monotonic() < until:
        time.sleep(0.1)


def ask(port: int, method: str, path: str, body: bytes | None = None, media_type: str = OCTETS) -> Any:
    """Return the JSON of an answer.

    Raises:
        SystemExit: it is not 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, {"Content-Type": media_type} if body is not None else {})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status} {text[:300]!r}")
    return json.loads(text)


def load(options: argparse.Namespace) -> None:
    """Print p50 and p99 at shares of the capacity."""
    with tempfile.TemporaryDirectory() as name:  # noqa: SIM117 - the second needs the first
        with served(options.models, options.model, Path(name)) as (server, bodies, size):
            closed_loop(server, BINARY, bodies, size, 16, 2)  # warm
            capacity = closed_loop(server, BINARY, bodies, size, 16, 4).per_second
            print(f"{options.model}: capacity {capacity:,.0f} requests/s, load average {os.getloadavg()[0]:.1f}\n")
            print("| of capacity | requests/s | p50 ms | p99 ms | refused | generator's lag p99 |")
            print("|---|---|---|---|---|---|")
            for share in SHARES:
                command = [sys.executable, "-m", "benchmarks.serving.open_loop", "--port", str(server.port)]
                command += ["--rate", str(share * capacity), "--seconds", str(options.seconds), "--size", str(size)]
                command += ["--bodies", str(bodies), "--connections", "256"]
                run = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
                took = run["accepted_ms"]
                void = " **void**" if run["void"] else ""
                refused = sum(count for status, count in run["statuses"].items() if status != "200")
                print(
                    f"| {share:.0%} | {share * capacity:,.0f} | {took['p50']:.2f} | {took['p99']:.2f} | {refused:,} "
                    f"| {run['lag_p99_ms']:.1f} ms{void} |",
                    flush=True,
                )


def quota(options: argparse.Namespace) -> None:
    """Print throughput for CPU quotas, and a fitted model of it."""
    found: dict[float, list[tuple[float, float]]] = {cores: [] for cores in QUOTAS}
    way = ""
    with tempfile.TemporaryDirectory() as name:  # noqa: SIM117 - the second needs the first
        with served(options.models, options.model, Path(name)) as (server, bodies, size):
            for turn in range(options.rounds):
                for cores in QUOTAS[:: 1 if turn % 2 == 0 else -1]:
                    with starved(server.processes(), cores) as way:
                        closed_loop(server, BINARY, bodies, size, 32, 1)
                        ran = closed_loop(server, BINARY, bodies, size, 32, options.seconds)
                        found[cores].append((ran.per_second, ran.cpu_us))
    print(f"{options.model}, by {way}, load average {os.getloadavg()[0]:.1f}\n")
    print("| cores | requests/s: median (least to most) | us of CPU a request |\n|---|---|---|")
    for cores, runs in found.items():
        rates = [rate for rate, _ in runs]
        spread = f"{stats.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        print(f"| {cores:g} | {spread} | {stats.median(cost for _, cost in runs):.0f} |")
    first, serial, worst = fitted({cores: stats.median(rate for rate, _ in runs) for cores, runs in found.items()})
    print(
        f"\nFitted: {first:,.0f} n / (1 + {serial:.3f} (n - 1)) requests/s with n cores, off by {worst:.0%} at most."
        f" Beyond two cores, an extrapolation: {first * 4 / (1 + serial * 3):,.0f} with four."
    )


def fitted(rates: dict[float, float]) -> tuple[float, float, float]:
    """Return rate and serial share of Amdahl's law that fit best, and the largest relative error.

    Linear in its reciprocal: n / rate = (1 - s + s n) / first.
    """
    cores = np.array(list(rates))
    slope, start = np.polyfit(cores, cores / np.array(list(rates.values())), 1)
    first, serial = 1 / (slope + start), slope / (slope + start)
    model = first * cores / (1 + serial * (cores - 1))
    return float(first), float(serial), float(np.abs(model / np.array(list(rates.values())) - 1).max())


def models(options: argparse.Namespace) -> None:
    """Print seconds until ready, memory and CPU a request with so many copies of a model."""
    print("| models | ready, first start, s | second, s | MiB | us of CPU a request, one of them asked |")
    print("|---|---|---|---|---|")
    for count in options.counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for number in range(count):
                copied(options.models / options.model, folder / "models" / f"model-{number}")
            with started(folder / "models", folder / "state", 1, ROOT) as server:
                first = server.ready_seconds
            with started(folder / "models", folder / "state", 1, ROOT) as server:
                second, memory = server.ready_seconds, server.memory_mib()
                (spec,) = ask(server.port, "GET", "/v2/models/model-0")["inputs"]
                body = bytes(int(np.prod(spec["shape"][1:])) * (1 if spec["datatype"] == "UINT8" else 4))
                cost = cpu_of(server, "/predict?model=model-0", body, OCTETS, 300)
            print(f"| {count} | {first:.2f} | {second:.2f} | {memory:,.0f} | {cost:,.0f} |", flush=True)


def copied(model: Path, target: Path) -> None:
    """Copy a published model under another name."""
    shutil.copytree(model, target)
    for manifest in target.glob("*/manifest.json"):
        stated = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(stated | {"name": target.name}))
    config = target / "config.pbtxt"
    if config.exists():
        config.write_text(config.read_text().replace(f'"{model.name}"', f'"{target.name}"'))


def cpu_of(server: Running, path: str, body: bytes, media_type: str, times: int) -> float:
    """Return microseconds of the server's CPU for one request, each on a connection of its own."""
    for _ in range(3):
        ask(server.port, "POST", path, body, media_type)
    before = server.cpu_seconds()
    for _ in range(times):
        ask(server.port, "POST", path, body, media_type)
    return (server.cpu_seconds() - before) / times * 1e6


def pictures(options: argparse.Namespace) -> None:
    """Print the CPU time of one JPEG of rising sizes."""
    from PIL import Image

    random = np.random.default_rng(1)
    print("| megapixels | JPEG, MB | ms of CPU a request |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name, served(options.models, options.model, Path(name)) as (server, _, _):
        for megapixels in MEGAPIXELS:
            width, height = (round(side * (megapixels * 1e6 / 12) ** 0.5) for side in (4, 3))
            coarse = Image.fromarray(random.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
            file = io.BytesIO()
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            body = file.getvalue()
            cost = cpu_of(server, "/predict", body, "image/jpeg", 20)
            print(f"| {megapixels:g} | {len(body) / 1e6:.2f} | {cost / 1e3:,.1f} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("load", "quota", "models", "pictures"))
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--model", default="lenet-bn")
    parser.add_argument("--seconds", type=int, default=3, help="of each load (3)")
    parser.add_argument("--rounds", type=int, default=3, help="of quotas (3)")
    parser.add_argument("--counts", type=lambda text: [*map(int, text.split(","))], default=[1, 10, 50, 100])
    options = parser.parse_args()
    {"load": load, "quota": quota, "models": models, "pictures": pictures}[options.what](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
