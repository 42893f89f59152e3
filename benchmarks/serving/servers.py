"""Who is measured: how each server is started, asked and stopped, on the same model and the same images.

Used by `python -m benchmarks.serving`. A server whose environment is missing is left out, and the report says so.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import ROOT
from benchmarks.ending import ends_with_us

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 90


@dataclass(frozen=True)
class Form:
    """One way to send an image."""

    path: str
    media_type: str
    bodies: str  # "binary", "json" or "v2"
    header: str = ""
    is_grpc: bool = False  # asked by `grpc_load.py` at the server's gRPC port


@dataclass(frozen=True)
class Peer:
    """One server.

    Args:
        name: in the report.
        command: words with {port}, {grpc}, {workers}, {models}, {python} and its folder {bin} to fill in.
        forms: by the name under which they are compared; the first is asked until it answers.
        workers: how many are tried; the better one is reported.
        venv: folder under the peers' folder, None for the interpreter that runs the benchmark.
        env: further environment variables.
    """

    name: str
    command: str
    forms: dict[str, Form]
    workers: tuple[int, ...] = (1, 2)
    venv: str | None = None
    env: dict[str, str] = field(default_factory=dict)


OCTETS, JSON = "application/octet-stream", "application/json"
BINARY, INSTANCES = Form("/predict", OCTETS, "binary"), Form("/predict", JSON, "json")
UVICORN = "{python} -m uvicorn --loop uvloop --http httptools --no-access-log --log-level warning --port {port}"

PEERS = (
    Peer(
        "foldserve",
        "{python} -m foldserve serve --port {port} --models-dir {models} --workers {workers}",
        {"binary": BINARY, "json": INSTANCES},
        env={"FOLDSERVE_LOG_LEVEL": "warning"},
    ),
    Peer(
        "foldserve V2",
        "{python} -m foldserve serve --port {port} --models-dir {models} --workers {workers}",
        {
            "binary": Form("/v2/models/lenet-bn/infer", OCTETS, "binary", "Inference-Header-Content-Length: 0"),
            "json": Form("/v2/models/lenet-bn/infer", JSON, "v2"),
        },
        env={"FOLDSERVE_LOG_LEVEL": "warning"},
    ),
    Peer(
        "foldserve gRPC",
        "{python} -m foldserve serve --port {port} --grpc-port {grpc} --models-dir {models}",
        {"HTTP binary": BINARY, "gRPC raw": Form("", "", "binary", is_grpc=True)},
        workers=(1,),
        env={"FOLDSERVE_LOG_LEVEL": "warning"},
    ),
    Peer("bare ASGI echo", UVICORN + " --workers {workers} benchmarks.serving.peers.bare_echo:app", {"binary": BINARY}),
    Peer(
        "plain FastAPI",
        UVICORN + " --workers {workers} benchmarks.serving.peers.plain_fastapi:app",
        {"binary": Form("/raw", OCTETS, "binary"), "json": Form("/json", JSON, "json")},
    ),
    Peer(
        "mosec (bytes)",
        "{python} -m benchmarks.serving.peers.mosec_server --port {port} --timeout 10000",
        {"binary": Form("/inference", OCTETS, "binary")},
        venv="mosec",
        env={"BENCH_FORM": "binary"},
    ),
    Peer(
        "mosec (JSON)",
        "{python} -m benchmarks.serving.peers.mosec_server --port {port} --timeout 10000",
        {"json": Form("/inference", JSON, "json")},
        venv="mosec",
        env={"BENCH_FORM": "json"},
    ),
    Peer("LitServe", "{python} -m benchmarks.serving.peers.litserve_server", {"json": INSTANCES}, venv="litserve"),
    Peer(
        "BentoML",
        "{python} -m bentoml serve benchmarks.serving.peers.bentoml_server:Classifier --port {port}",
        {"json": INSTANCES},
        venv="bentoml",
    ),
    Peer(
        "MLServer",
        "{bin}/mlserver start {mlserver}",
        {"json": Form("/v2/models/lenet/infer", JSON, "v2")},
        workers=(1,),
        venv="mlserver",
    ),
    Peer(
        "PyTriton",
        "{python} -m benchmarks.serving.peers.pytriton_server",
        {"binary": Form("/v2/models/lenet/infer", OCTETS, "binary", "Inference-Header-Content-Length: 0")},
        venv="pytriton",
    ),
    Peer(
        "Ray Serve",
        "{python} -m benchmarks.serving.peers.ray_server",
        {"json": Form("/", JSON, "json")},
        venv="ray",
        env={"RAY_SERVE_ENABLE_HA_PROXY": "0"},
    ),
)


def triton() -> tuple[Peer, ...]:
    """Return a real Triton when `BENCH_TRITON` holds the command that starts one, with {port} and {models}."""
    command = os.environ.get("BENCH_TRITON")
    if not command:
        return ()
    path = "/v2/models/lenet-bn/infer"
    forms = {
        "binary": Form(path, OCTETS, "binary", "Inference-Header-Content-Length: 0"),
        "json": Form(path, JSON, "v2"),
    }
    return (Peer("Triton", command, forms, workers=(1,)),)


@dataclass
class Running:
    """A server that answers."""

    port: int
    grpc_port: int
    process: subprocess.Popen[bytes]
    ready_seconds: float

    def processes(self) -> list[int]:
        """The server's process and all that it started."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except (OSError, IndexError):
                    continue
                children.setdefault(parent, []).append(int(entry.name))
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            queue.extend(children.get(pid, []))
        return found

    def cpu_seconds(self) -> float:
        """Seconds of CPU that all of them have used."""
        ticks = 0
        for pid in self.processes():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            ticks += int(fields[11]) + int(fields[12])
        return ticks / CLOCK_TICKS

    def memory_mib(self) -> float:
        """Proportional set size of all of them together: what is shared counts once."""
        kib = 0
        for pid in self.processes():
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            kib += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        return kib / 1024


@contextmanager
def start(peer: Peer, workers: int, models: Path, peers_dir: Path, probe: bytes, log: Path) -> Iterator[Running]:
    """Start a server, wait until it answers `probe` in its first form with 200, and end it afterwards.

    Raises:
        RuntimeError: it ended by itself or did not answer in time; the last lines of its log are in the message.
    """
    port, grpc_port = free_port(), free_port()
    python = str(peers_dir / peer.venv / "bin" / "python") if peer.venv else sys.executable
    model = newest_model(models)
    settings = _mlserver_folder(log.parent, port) if peer.venv == "mlserver" else ""
    words = [
        word.format(
            port=port,
            grpc=grpc_port,
            workers=workers,
            models=models,
            python=python,
            bin=Path(python).parent,
            mlserver=settings,
        )
        for word in peer.command.split()
    ]
    # Users have compiled modules; without this each start would compile all of them again where it is switched off.
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env = usual | peer.env | {"BENCH_MODEL": str(model), "BENCH_PORT": str(port), "BENCH_WORKERS": str(workers)}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": f"{Path(python).parent}:{os.environ['PATH']}"}
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(words, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True)
        try:
            with ends_with_us(process.pid):
                form = next(iter(peer.forms.values()))
                while not _answers(port, form, probe):
                    if process.poll() is not None or time.perf_counter() - started > START_SECONDS:
                        tail = log.read_text(errors="replace")[-400:]
                        raise RuntimeError(f"{peer.name} did not start: {tail}")
                    time.sleep(0.02)
                yield Running(port, grpc_port, process, time.perf_counter() - started)
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and its own process group, kindly first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _answers(port: int, form: Form, body: bytes) -> bool:
    """Whether one request is answered with 200."""
    header = f"{form.header}\r\n" if form.header else ""
    head = (
        f"POST {form.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {form.media_type}\r\n{header}"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(head.encode() + body)
            return connection.recv(64).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


def newest_model(models: Path) -> Path:
    """Return `model.onnx` of the newest version of the first model.

    Raises:
        SystemExit: there is none.
    """
    found = min(models.glob("*/*/model.onnx"), default=None)
    if found is None:
        raise SystemExit(f"{models} holds no <model>/<version>/model.onnx; name a folder that does with --models")
    folder = found.parent.parent
    return max(folder.glob("*/model.onnx"), key=lambda path: int(path.parent.name))


def golden(model: Path, side: str, name: str) -> np.ndarray:
    """Return a golden tensor of a model; `side` is "inputs" or "outputs"."""
    tensor = json.loads((model.parent / "manifest.json").read_text())["golden"][side][name]
    dtype = {"UINT8": np.uint8, "INT64": np.int64, "FP32": np.float32}[tensor["datatype"]]
    return np.frombuffer(base64.b64decode(tensor["data"]), dtype).reshape(tensor["shape"])


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _mlserver_folder(folder: Path, port: int) -> str:
    """Write MLServer's settings files and return their folder."""
    target = folder / "mlserver"
    target.mkdir(exist_ok=True)
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    (target / "settings.json").write_text(json.dumps({"host": "127.0.0.1", "parallel_workers": 0, **ports}))
    (target / "model-settings.json").write_text(
        json.dumps(
            {
                "name": "lenet",
                "implementation": "benchmarks.serving.peers.mlserver_model.Classifier",
                "max_batch_size": 64,
                "max_batch_time": 0.002,
            }
        )
    )
    return str(target)
