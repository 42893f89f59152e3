"""Large networks: seconds until ready, first and second start, memory, and when each batch size answers.

    python -m benchmarks.serving.large --make /tmp/large resnet18 mobilenet_v3_small
    python -m benchmarks.serving.large --models /tmp/large --workers 1 --rounds 3
    python -m benchmarks.serving.large --models /tmp/large --rounds 1 --requests 1000 --cold

`--make` publishes torchvision's definitions with made weights and golden pictures (it needs the training environment).
Each round starts a service twice with one state folder: the first measures, the second has what it found. Beside them
stands what onnxruntime alone takes to open the same files and run one row of each. Memory is the proportional set size
of all processes, when ready, once all batch sizes are proved, and after so many requests to all models in turns, from
16 connections. `--cold` empties the page cache before each start (it needs to be root).
"""

import argparse
import http.client
import json
import os
import statistics as stats
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import ROOT, ending
from benchmarks.serving.servers import Running, free_port

PATIENCE_SECONDS = 120.0
CONNECTIONS = 16
ALL_PROVED = "all batch sizes proved"
PLAIN = """
import sys, numpy, onnxruntime
for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    dtype = numpy.uint8 if given.type == "tensor(uint8)" else numpy.float32
    session.run(None, {given.name: numpy.zeros((1, *given.shape[1:]), dtype)})
"""


def make(folder: Path, names: list[str]) -> None:
    """Publish networks of torchvision under their names, proved on made pictures."""
    for name in names:
        make_one(folder, name, name.replace("_", "-"), "imagenet")


def make_one(folder: Path, architecture: str, name: str, image: str) -> None:
    """Publish a network of torchvision with made weights, which are the same each time, for pictures of a recipe."""
    import torch

    from benchmarks.publish.__main__ import made_pictures
    from foldserve import publish
    from tests.support.vision import library

    torch.manual_seed(0)
    network = getattr(library("torchvision").models, architecture)().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    with tempfile.TemporaryDirectory() as pictures:
        options: dict[str, Any] = {"labels": [f"class {number}" for number in range(1000)], "models_dir": folder}
        publish(network, name=name, examples=made_pictures(Path(pictures))[:8], image=image, **options)


@contextmanager
def started(models: Path, state: Path, workers: int, checkout: Path) -> Iterator[Running]:
    """Start a service and wait until it is ready.

    Raises:
        SystemExit: it ended, with the end of its log.
    """
    port, log = free_port(), state.parent / "log"
    # Users have compiled modules; without this each start would compile all of them again where it is switched off.
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env = usual | {"FOLDSERVE_STATE_DIR": str(state), "FOLDSERVE_PROVIDER": "cpu", "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "service", "--port", str(port), "--models-dir", str(models)]
    began = time.perf_counter()
    words = [*command, "--workers", str(workers)]
    with (
        log.open("wb") as output,
        ending.started(words, cwd=checkout, env=env, stdout=output, stderr=output) as process,
    ):
        while not _is_ready(port):
            if process.poll() is not None or time.perf_counter() - began > PATIENCE_SECONDS:
                raise SystemExit(log.read_text()[-2000:])
            time.sleep(0.01)
        yield Running(port, 0, process, time.perf_counter() - began)


def one_start(models: Path, state: Path, workers: int, checkout: Path, requests: int) -> dict[str, float]:
    """Return what one start takes, and when each batch size was first served; and what so many requests leave."""
    with started(models, state, workers, checkout) as server:
        began = time.perf_counter() - server.ready_seconds
        found = {"ready": server.ready_seconds, "MiB when ready": server.memory_mib()}
        names, log = sorted(path.name for path in models.iterdir()), state.parent / "log"
        while time.perf_counter() - began < PATIENCE_SECONDS:
            for name in names:
                for bucket in _buckets(server.port, name):
                    found.setdefault(f"{name}, batches of {bucket} after", time.perf_counter() - began)
            if log.read_text().count(ALL_PROVED) >= len(names) * workers:
                break
            time.sleep(0.05)
        time.sleep(0.5)  # in which the process that measured has ended
        found["MiB in the end"] = server.memory_mib()
        if requests:
            found[f"answers/s, {requests:,} requests to all models in turns"] = answers_per_second(
                server, names, requests
            )
            found[f"MiB after {requests:,} requests"] = server.memory_mib()
            if not _is_ready(server.port):
                raise SystemExit("the service is not ready after the requests")
        return found


def answers_per_second(server: Running, names: list[str], requests: int) -> float:
    """Ask models in turns, 16 connections at a time.

    Raises:
        SystemExit: an answer is not 200.
    """
    size = 3 * 224 * 224
    own = threading.local()

    def ask(number: int) -> None:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        body = bytes([number % 256]) * size
        headers = {"Content-Type": "application/octet-stream", "X-Deadline-Ms": "60000"}
        own.connection.request("POST", f"/predict?model={names[number % len(names)]}", body, headers)
        answer = own.connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{answer.status} {text[:300]!r}")

    began = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as executor:
        list(executor.map(ask, range(requests)))
    return requests / (time.perf_counter() - began)


def plain_seconds(models: Path) -> float:
    """Return what onnxruntime takes in a process of its own to open all files and run one row of each."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", PLAIN, *map(str, sorted(models.glob("*/1/model.onnx")))], check=True)
    return time.perf_counter() - began


def _is_ready(port: int) -> bool:
    try:
        return _get(port, "/v2/health/ready")[0] == 200
    except OSError:
        return False


def _buckets(port: int, name: str) -> list[int]:
    buckets: list[int] = json.loads(_get(port, f"/v2/models/{name}/config")[1])["dynamic_batching"][
        "preferred_batch_size"
    ]
    return buckets


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", nargs="+", metavar=("FOLDER", "NAME"), help="publish these networks and end")
    parser.add_argument("--models", type=Path, help="folder of published models")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose service is started")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=0, help="asked once all batch sizes are proved (0)")
    parser.add_argument("--cold", action="store_true", help="empty the page cache before each start")
    options = parser.parse_args()
    if options.make:
        make(Path(options.make[0]), options.make[1:])
        return 0
    figures: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        figures["onnxruntime alone"].append(plain_seconds(options.models))
        with tempfile.TemporaryDirectory() as folder:
            for start in ("first", "second"):
                if options.cold:
                    os.sync()
                    Path("/proc/sys/vm/drop_caches").write_text("3")
                state = Path(folder) / "state"
                found = one_start(options.models, state, options.workers, options.checkout, options.requests)
                for name, value in found.items():
                    figures[f"{start} start: {name}"].append(value)
    print(f"| {options.workers} worker(s) | median (least to most) |\n|---|---|")
    for name, values in figures.items():
        print(f"| {name} | {stats.median(values):,.2f} ({min(values):,.2f} to {max(values):,.2f}) |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
