"""The service of another checkout beside this one: requests a second, time until ready and memory, in turns.

    git worktree add ../before REVISION
    python -m benchmarks.serving.revisions --before ../before --rounds 5
    python -m benchmarks.serving.revisions --before ../before --rounds 5 --grpc

For changes that must not cost anything. Both run the committed model with this interpreter and its packages; only
ratios are printed as results, since the machine's speed moves between rounds and both see the same of it.
"""

import argparse
import itertools
import json
import statistics as stats
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks import ROOT
from benchmarks.serving.closed_loop import closed_loop, closed_loop_over_grpc
from benchmarks.serving.servers import BINARY, INSTANCES, Peer, golden, newest_model, start

CONNECTIONS = (1, 32, 128)
FORMS = {"binary": BINARY, "JSON": INSTANCES}
Figures = dict[str, list[float]]


def service(checkout: Path, *, grpc: bool = False) -> Peer:
    """Return the service of a checkout, on the CPU."""
    env = {"FOLDSERVE_LOG_LEVEL": "warning", "FOLDSERVE_PROVIDER": "cpu", "PYTHONPATH": str(checkout)}
    command = f"env -C {checkout} PYTHONPATH={checkout} {{python}} -m service --port {{port}} --models-dir {{models}}"
    return Peer(str(checkout), command + " --grpc-port {grpc}" * grpc, FORMS, env=env)


def grpc_round(checkout: Path, images: bytes, folder: Path, seconds: int) -> dict[str, float]:
    """Start the service of a checkout once with its gRPC port, load that, and end it."""
    bodies = folder / "binary"
    bodies.write_bytes(images)
    model = newest_model(ROOT / "models").parent.parent.name
    found = {}
    with start(service(checkout, grpc=True), 1, ROOT / "models", folder, images[:784], folder / "log") as server:
        for connections in CONNECTIONS:
            ran = closed_loop_over_grpc(server, model, bodies, connections, seconds)
            found[f"gRPC requests/s, {connections} in flight"] = ran.per_second
            found[f"gRPC us of CPU a request, {connections} in flight"] = ran.cpu_us
    return found


def one_round(checkout: Path, images: bytes, folder: Path, seconds: int) -> dict[str, float]:
    """Start the service of a checkout once, load it in every form, and end it."""
    rows = [images[at : at + 784] for at in range(0, len(images), 784)]
    binary, lines = folder / "binary", folder / "lines"
    binary.write_bytes(images)
    lines.write_text("\n".join(json.dumps({"instances": [list(row)]}) for row in rows))
    with start(service(checkout), 1, ROOT / "models", folder, rows[0], folder / "log") as server:
        found = {"seconds until ready": server.ready_seconds}
        for (name, form), connections in itertools.product(FORMS.items(), CONNECTIONS):
            bodies, size = (binary, 784) if name == "binary" else (lines, 0)
            ran = closed_loop(server, form, bodies, size, connections, seconds)
            found[f"requests/s, {name}, {connections} connections"] = ran.per_second
        return found | {"MiB after the load": server.memory_mib()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5, help="each starts both services once (5)")
    parser.add_argument("--seconds", type=int, default=2, help="of each load (2)")
    parser.add_argument("--grpc", action="store_true", help="ask the gRPC port, and nothing else")
    options = parser.parse_args()
    measure = grpc_round if options.grpc else one_round
    if not (options.before / "service").is_dir():
        parser.error(f"--before {options.before}: not a checkout, it holds no folder service")
    images = golden(newest_model(ROOT / "models"), "inputs", "image").tobytes()
    ratios: Figures = defaultdict(list)
    now: Figures = defaultdict(list)
    for turn in range(options.rounds):
        order = [options.before.resolve(), ROOT][:: 1 if turn % 2 == 0 else -1]
        with tempfile.TemporaryDirectory() as folder:
            found = {checkout: measure(checkout, images, Path(folder), options.seconds) for checkout in order}
        for name, value in found[ROOT].items():
            now[name].append(value)
            ratios[name].append(value / found[options.before.resolve()][name])
        print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
    print("| what | now, median | now / before: median (least to most) |\n|---|---|---|")
    for name, values in ratios.items():
        spread = f"{stats.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        print(f"| {name} | {stats.median(now[name]):,.2f} | {spread} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
