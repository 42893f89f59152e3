"""A closed loop of requests to a running server: so many connections that ask again once they are answered."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.serving.servers import Form, Running


@dataclass(frozen=True)
class Loaded:
    """What a loop found: answers a second, microseconds of the server's CPU for each, and quantiles of their times."""

    per_second: float
    cpu_us: float
    p50_ms: float
    p99_ms: float


def closed_loop(
    server: Running, form: Form, bodies: Path, size: int, connections: int, seconds: int, new: str = ""
) -> Loaded:
    """Load a server; an answer that is not 200 ends the benchmark.

    Args:
        server: that answers.
        form: how it is asked.
        bodies: file of bodies.
        size: bytes of each of them.
        connections: that ask at a time.
        seconds: for how long.
        new: a header that is new with each request, with %s for 32 hexadecimal digits.

    Raises:
        SystemExit: an answer was not 200, or none came.
    """
    variables = {"WRK_BODIES": str(bodies), "WRK_SIZE": str(size), "WRK_TYPE": form.media_type}
    variables |= {"WRK_HEADER": form.header, "WRK_NEW": new}
    script = str(ROOT / "benchmarks" / "serving" / "wrk.lua")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "-s", script]
    command.append(f"http://127.0.0.1:{server.port}{form.path}")
    return _result(server, command, variables)


def closed_loop_over_grpc(
    server: Running, model: str, bodies: Path, connections: int, seconds: int, header: str = ""
) -> Loaded:
    """Load the gRPC port of a server with a client in Python, which is then the bound.

    Args:
        server: that answers.
        model: its name.
        bodies: file of rows.
        connections: calls in flight at a time.
        seconds: for how long.
        header: that each call carries, as `Name: value`; empty: none.

    Raises:
        SystemExit: an answer was not OK, or none came.
    """
    command = [sys.executable, "-m", "benchmarks.serving.grpc_load", "--port", str(server.grpc_port), "--model", model]
    command += ["--connections", str(connections), "--seconds", str(seconds), "--bodies", str(bodies)]
    return _result(server, [*command, "--header", header], {})


def _result(server: Running, command: list[str], variables: dict[str, str]) -> Loaded:
    before = server.cpu_seconds()
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | variables)
    result = json.loads(done.stdout.split("RESULT ")[1])
    if result["not_2xx"] or result["failed"] or not result["requests"]:
        raise SystemExit(f"answers that are not 200: {result}")
    count, spent = result["requests"], server.cpu_seconds() - before
    return Loaded(count / result["seconds"], spent / count * 1e6, result["p50_us"] / 1e3, result["p99_us"] / 1e3)
