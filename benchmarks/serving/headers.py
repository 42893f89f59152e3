"""Requests with an API key, and with ids that are new each time, beside the same ones without: requests a second.

    python -m benchmarks.serving.headers --rounds 5

Two services of this checkout run side by side, one of them with a keys file; each round loads them in turns with one
image a request, so that both see the same of the machine's moods. Only ratios are results; that of the server's CPU
time a request is steady on a busy machine too.
"""

import argparse
import json
import os
import statistics as stats
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.serving.servers import BINARY, OCTETS, Form, Peer, Running, golden, newest_model, start
from foldserve.service.keys import new_key

CONNECTIONS = (1, 32)
PLAIN = "neither"


@dataclass(frozen=True)
class Load:
    """What requests carry: a header that stays, and one that is new each time."""

    header: str = ""
    new: str = ""
    has_keys: bool = False


def loads(key: str) -> dict[str, Load]:
    """Return the loads by name; the first is what the others are compared with."""
    trace, request_id = "traceparent: 00-%s-00f067aa0ba902b7-01", "X-Request-ID: %s"
    return {
        PLAIN: Load(),
        "an API key": Load(f"X-API-Key: {key}", has_keys=True),
        "a new traceparent each": Load(new=trace),
        "a new X-Request-ID each": Load(new=request_id),
        "an API key and a new traceparent each": Load(f"X-API-Key: {key}", trace, has_keys=True),
    }


def measure(server: Running, load: Load, bodies: Path, connections: int, seconds: int) -> tuple[float, float]:
    """Load a server with `wrk`; returns requests a second, and microseconds of the server's CPU for each.

    Raises:
        SystemExit: an answer was not 200.
    """
    variables = {"WRK_BODIES": str(bodies), "WRK_SIZE": "784", "WRK_TYPE": OCTETS}
    variables |= {"WRK_HEADER": load.header, "WRK_NEW": load.new}
    script = str(ROOT / "benchmarks" / "serving" / "wrk.lua")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script]
    command.append(f"http://127.0.0.1:{server.port}{BINARY.path}")
    before = server.cpu_seconds()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | variables)
    result = json.loads(done.stdout.split("RESULT ")[1])
    if result["not_2xx"] or result["failed"]:
        raise SystemExit(f"answers that are not 200: {result}")
    spent = server.cpu_seconds() - before
    return result["requests"] / result["seconds"], spent / result["requests"] * 1e6


def service(keys_file: Path | None, header: str) -> Peer:
    """Return the service of this checkout; with keys it is asked with a header that holds one."""
    command = "{python} -m foldserve serve --port {port} --models-dir {models}"
    options = f" --keys-file {keys_file}" if keys_file else ""
    form = Form(BINARY.path, OCTETS, "binary", header)
    return Peer("foldserve", command + options, {"binary": form}, env={"FOLDSERVE_LOG_LEVEL": "warning"})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each load (2)")
    options = parser.parse_args()
    images = golden(newest_model(ROOT / "models"), "inputs", "image").tobytes()
    key, line = new_key("bench", ["infer"])
    found: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "keys").write_text(line + "\n")
        (folder / "bodies").write_bytes(images)
        servers = {}
        for has_keys in (False, True):
            peer = service(folder / "keys", f"X-API-Key: {key}") if has_keys else service(None, "")
            servers[has_keys] = stack.enter_context(
                start(peer, 1, ROOT / "models", folder, images[:784], folder / f"log{has_keys}")
            )
        for turn in range(options.rounds):
            for connections in CONNECTIONS:
                for load, what in list(loads(key).items())[:: 1 if turn % 2 == 0 else -1]:
                    server = servers[what.has_keys]
                    figures = measure(server, what, folder / "bodies", connections, options.seconds)
                    found[load, connections].append(figures)
            print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
    print("| with | connections | requests/s | of those without: median (least to most) | CPU a request, likewise |")
    print("|---|---|---|---|---|")
    for (load, connections), rounds in found.items():
        pairs = list(zip(rounds, found[PLAIN, connections], strict=True))
        rates = [one[0] / plain[0] for one, plain in pairs]
        costs = [one[1] / plain[1] for one, plain in pairs]
        median = stats.median(rate for rate, _ in rounds)
        print(f"| {load} | {connections} | {median:,.0f} | {_spread(rates)} | {_spread(costs)} |")
    return 0


def _spread(ratios: list[float]) -> str:
    return f"{stats.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    sys.exit(main())
