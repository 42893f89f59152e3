"""Requests a second, latency, start, memory and idle CPU of the service and of its peers, on one machine, in rounds.

    python -m benchmarks.serving --models models --peers .venv-peers --rounds 3 --seconds 8

Closed loop by `wrk` (Debian package), open loop by `overload.py`. In each round every server is started, measured and
stopped once, after the machine's own speed was measured (`Session.run`, one image, one thread), so that what else the
machine does falls on all of them alike; only ratios within a run are to be quoted. Peers that are not installed are
left out and named. Writes docs/results/serving.json, serving.md and serving.png.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks import ROOT
from benchmarks.serving import overload
from benchmarks.serving.report import write_report
from benchmarks.serving.servers import PEERS, Form, Peer, Running, golden, newest_model, start, triton

CONNECTIONS = (1, 32, 128)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
QUICK = {"foldserve": (1, 2), "foldserve V2": (2,), "bare ASGI echo": (1, 2), "plain FastAPI": (2,)}  # others: 1


class Bench:
    """One run: where things are, and what has been measured."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments = arguments
        self.folder = folder
        self.model = newest_model(arguments.models)
        self.images = golden(self.model, "inputs", "image").reshape(-1, 784)
        self._write_bodies()

    def _write_bodies(self) -> None:
        images = self.images
        flat = [row.tolist() for row in images]
        v2 = [
            {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 28, 28], "data": row}]} for row in flat
        ]
        (self.folder / "binary").write_bytes(images.tobytes())
        (self.folder / "json").write_text("\n".join(json.dumps({"instances": [row]}) for row in flat))
        (self.folder / "v2").write_text("\n".join(json.dumps(request) for request in v2))
        for rows in BATCHES:
            (self.folder / f"batch-{rows}").write_bytes(np.resize(images, (rows, 784)).tobytes())

    def calibrate(self) -> float:
        """Images a second of `Session.run` with one image on one thread: the speed of the machine at this moment."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
        image = self.images[:1].reshape(1, 1, 28, 28)
        runs, ends = 0, time.perf_counter() + 0.5
        while time.perf_counter() < ends:
            for _ in range(50):
                session.run(None, {"image": image})
            runs += 50
        return runs / (0.5 + time.perf_counter() - ends)

    def ask(self, server: Running, form: Form, connections: int, seconds: float, bodies: str = "") -> dict[str, Any]:
        """Closed loop: each connection sends its next request when its answer has come."""
        command = (
            self._grpc(server, connections, seconds) if form.is_grpc else self._wrk(server, form, connections, seconds)
        )
        size = (self.folder / bodies).stat().st_size if bodies else 784 if form.bodies == "binary" else 0
        env = os.environ | {
            "WRK_BODIES": str(self.folder / (bodies or form.bodies)),
            "WRK_SIZE": str(size),
            "WRK_TYPE": form.media_type,
            "WRK_HEADER": form.header,
        }
        out = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
        line = next(line for line in out.splitlines() if line.startswith("RESULT "))
        result = json.loads(line.removeprefix("RESULT "))
        return {**result, "per_second": result["requests"] / result["seconds"]}

    def _wrk(self, server: Running, form: Form, connections: int, seconds: float) -> list[str]:
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{round(seconds)}s",
            "-s",
            str(ROOT / "benchmarks/serving/wrk.lua"),
        ]
        return [*command, f"http://127.0.0.1:{server.port}{form.path}"]

    def _grpc(self, server: Running, connections: int, seconds: float) -> list[str]:
        command = [sys.executable, "-m", "benchmarks.serving.grpc_load", "--port", str(server.grpc_port)]
        command += ["--connections", str(connections), "--seconds", str(seconds)]
        return [*command, "--bodies", str(self.folder / "binary"), "--model", self.model.parent.parent.name]

    def closed_loop(self, server: Running, form: Form, connections: int) -> dict[str, Any]:
        """Measure one form at one number of connections, the machine's speed and the CPU that the server took."""
        machine = self.calibrate()
        self.ask(server, form, connections, 1)
        cpu = server.cpu_seconds()
        result = self.ask(server, form, connections, self.arguments.seconds)
        used = server.cpu_seconds() - cpu
        return {**result, "machine": machine, "cpu_us_per_request": used / max(1, result["requests"]) * 1e6}

    def one_round(self, peer: Peer, workers: int) -> dict[str, Any]:
        """Start one server, measure everything, stop it."""
        form = next(iter(peer.forms.values()))
        probe = (self.folder / form.bodies).read_bytes()
        probe = probe[:784] if form.bodies == "binary" else probe.split(b"\n")[0]
        arguments = self.arguments
        log = self.folder / f"{peer.name.replace(' ', '-')}-{workers}.log"
        with start(peer, workers, arguments.models.resolve(), arguments.peers.resolve(), probe, log) as server:
            idle = server.cpu_seconds()
            time.sleep(2)  # the very thing that is measured: what a ready server does when nobody asks
            measured: dict[str, Any] = {
                "ready_seconds": server.ready_seconds,
                "idle_cpu": (server.cpu_seconds() - idle) / 2,
                "forms": {},
            }
            for name, form in peer.forms.items():
                measured["forms"][name] = {
                    str(connections): self.closed_loop(server, form, connections) for connections in CONNECTIONS
                }
            measured["memory_mib"] = server.memory_mib()
            if "binary" in peer.forms and peer.name in ("foldserve", "plain FastAPI"):
                binary = peer.forms["binary"]
                measured["batches"] = {str(rows): self.ask(server, binary, 1, 2, f"batch-{rows}") for rows in BATCHES}
        return measured


def measure(bench: Bench, names: set[str]) -> dict[str, Any]:
    """Run all rounds; a peer that does not start is left out from then on, with the reason."""
    rounds: dict[str, list[dict[str, Any]]] = {}
    left_out: dict[str, str] = {}
    chosen = [peer for peer in (*PEERS, *triton()) if not names or peer.name in names]
    for number in range(bench.arguments.rounds):
        for peer in chosen:
            for workers in QUICK.get(peer.name, (1,)) if bench.arguments.quick else peer.workers:
                key = f"{peer.name}|{workers}"
                if key in left_out:
                    continue
                try:
                    if peer.venv and not (bench.arguments.peers / peer.venv).exists():
                        raise RuntimeError("not installed")
                    result = bench.one_round(peer, workers)
                except (RuntimeError, subprocess.CalledProcessError, StopIteration) as err:
                    left_out[key] = str(err)
                    print(f"round {number + 1}: {key} left out: {err}", file=sys.stderr)
                    continue
                rounds.setdefault(key, []).append(result)
                partial = bench.arguments.out / "serving.partial.json"  # an interrupted run keeps what it measured
                partial.parent.mkdir(parents=True, exist_ok=True)
                partial.write_text(json.dumps({"rounds": rounds, "left_out": left_out}))
                print(f"round {number + 1}: {key}: {_line(result)}", file=sys.stderr)
    return {"rounds": rounds, "left_out": left_out}


def _line(result: dict[str, Any]) -> str:
    """Return what a person wants to see while the benchmark runs."""
    return ", ".join(
        f"{form} {'/'.join(str(round(loads[str(c)]['per_second'])) for c in CONNECTIONS)}"
        for form, loads in result["forms"].items()
    )


def environment() -> dict[str, Any]:
    """Return what the figures depend on."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    packages = ("onnxruntime", "uvicorn", "fastapi", "uvloop", "httptools", "numpy", "orjson")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "load_before": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def peer_versions(peers: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the version of each peer that is installed."""
    packages = {"litserve": "litserve", "mosec": "mosec", "bentoml": "bentoml", "mlserver": "mlserver"}
    packages |= {"pytriton": "nvidia-pytriton", "ray": "ray"}
    code = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    versions = {}
    for name in names:
        python = peers / name / "bin" / "python"
        if python.exists():
            done = subprocess.run([python, "-c", code, packages[name]], capture_output=True, text=True, check=False)
            versions[name] = done.stdout.strip()
    return versions


def main() -> None:
    """Read the arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers", help="folder of one environment a peer")
    parser.add_argument("--only", default="", help="names of servers, separated by commas")
    parser.add_argument("--quick", action="store_true", help="one number of workers for most peers, not both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8, help="of each closed loop, whole: wrk takes no others")
    parser.add_argument("--open-seconds", type=float, default=5, help="of each level of the open loop; 0 leaves it out")
    parser.add_argument("--overload-seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        venvs = sorted({peer.venv for peer in PEERS if peer.venv})
        document: dict[str, Any] = {
            "environment": environment() | {"peers": peer_versions(arguments.peers, venvs)},
            "seconds": arguments.seconds,
            **measure(bench, {name for name in arguments.only.split(",") if name}),
        }
        if arguments.open_seconds:
            document["open_loop"] = overload.measure(
                arguments.models, arguments.overload_seconds, arguments.open_seconds
            )
        if not document["rounds"]:
            sys.exit("nothing was measured: no server started")
        machine = [load["machine"] for loads in _all_loads(document) for load in loads.values()]
        document["environment"]["machine"] = [min(machine), statistics.median(machine), max(machine)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "serving.json").write_text(json.dumps(document, indent=1))
    (arguments.out / "serving.partial.json").unlink()
    write_report(document, arguments.out)


def _all_loads(document: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for rounds in document["rounds"].values():
        for measured in rounds:
            yield from measured["forms"].values()


if __name__ == "__main__":
    main()
