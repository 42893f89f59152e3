"""Requests with an API key, and with ids that are new each time, beside the same ones without: requests a second.

    python -m benchmarks.serving.headers --rounds 5
    python -m benchmarks.serving.headers --form JSON --rounds 3

Two services of this checkout run side by side, one of them with a keys file; each round loads them in turns with one
image a request, as bytes, JSON or a photograph, or over gRPC, so that both
see the same of the machine's moods. Only ratios are results; that of the server's CPU time a request is steady on a
busy machine too. A header that means nothing and is as long says what of it is the client's own work.
"""

import argparse
import json
import statistics as stats
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import ROOT
from benchmarks.serving.closed_loop import Loaded, closed_loop, closed_loop_over_grpc
from benchmarks.serving.photographs import photograph
from benchmarks.serving.servers import BINARY, INSTANCES, OCTETS, Form, Peer, Running, golden, newest_model, start
from foldserve.service.keys import new_key

CONNECTIONS = (1, 32)
PLAIN = "neither"
GRPC = "gRPC"
WITH_NEW_IDS = ("binary", "JSON")  # `wrk` makes 40,000 requests beforehand, with their bodies
FORMS = {"binary": BINARY, "JSON": INSTANCES, "photograph": Form("/predict", "image/jpeg", ""), GRPC: BINARY}


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
        "a header as long as a key, always the same": Load(f"X-Nothing: {'0' * len(key)}"),
        "a header as long as a traceparent, always the same": Load(new=f"X-Nothing12: {'0' * 55}"),
        "an API key": Load(f"X-API-Key: {key}", has_keys=True),
        "a new traceparent each": Load(new=trace),
        "a new X-Request-ID each": Load(new=request_id),
        "an API key and a new traceparent each": Load(f"X-API-Key: {key}", trace, has_keys=True),
    }


def bodies_of(form: str, images: bytes) -> tuple[bytes, int]:
    """Return what is sent in a form, and the bytes of each body; 0 where each is a line."""
    if form == "JSON":
        rows = [images[at : at + 784] for at in range(0, len(images), 784)]
        return "\n".join(json.dumps({"instances": [list(row)]}) for row in rows).encode(), 0
    if form == "photograph":
        file = photograph("1/f", 480, 640)
        return file, len(file)
    return images, 784


def measure(server: Running, name: str, load: Load, bodies: Path, size: int, connections: int, seconds: int) -> Loaded:
    """Load a server in one form with what requests carry.

    Raises:
        SystemExit: an answer was not 200.
    """
    if name == GRPC:
        model = newest_model(ROOT / "models").parent.parent.name
        return closed_loop_over_grpc(server, model, bodies, connections, seconds, load.header)
    return closed_loop(server, replace(FORMS[name], header=load.header), bodies, size, connections, seconds, load.new)


def service(keys_file: Path | None, header: str) -> Peer:
    """Return the service of this checkout; with keys it is asked with a header that holds one."""
    command = "{python} -m foldserve serve --port {port} --grpc-port {grpc} --models-dir {models}"
    options = f" --keys-file {keys_file}" if keys_file else ""
    form = Form(BINARY.path, OCTETS, "binary", header)
    return Peer("foldserve", command + options, {"binary": form}, env={"FOLDSERVE_LOG_LEVEL": "warning"})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each load (2)")
    parser.add_argument("--form", default="binary", choices=list(FORMS), help="how an image is sent (binary)")
    options = parser.parse_args()
    images = golden(newest_model(ROOT / "models"), "inputs", "image").tobytes()
    key, line = new_key("bench", ["infer"])
    found: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "keys").write_text(line + "\n")
        data, size = bodies_of(options.form, images)
        (folder / "bodies").write_bytes(data)
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
                    if options.form not in WITH_NEW_IDS and what.new:
                        continue
                    bodies = folder / "bodies"
                    ran = measure(server, options.form, what, bodies, size, connections, options.seconds)
                    found[load, connections].append((ran.per_second, ran.cpu_us))
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
