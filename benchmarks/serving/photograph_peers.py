"""A photograph to a class: the service beside plain FastAPI and LitServe with Pillow and torchvision's transforms.

    make bench-peers
    python -m benchmarks.serving.photograph_peers --make /tmp/photographs
    python -m benchmarks.serving.photograph_peers --models /tmp/photographs --peers .venv-peers --rounds 3

One JPEG of 12 megapixels a request to ResNet-18, at 1, 8 and 32 connections that ask again as soon as they are
answered. All run the same graph in onnxruntime. Each server is started by itself, its answer is compared before and
after its load, and an answer that is not 200 ends the run. A server that has several forms (workers, batches) is
reported in the best one at each point. `--make` publishes the network twice, exact and with `decoding=scaled`; it needs
the training environment.
"""

import argparse
import http.client
import json
import os
import platform
import statistics as stats
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.serving.closed_loop import Loaded, closed_loop
from benchmarks.serving.photographs import photograph
from benchmarks.serving.servers import UVICORN, Form, Peer, start

CONNECTIONS = (1, 8, 32)
EXACT, SCALED = "exact", "scaled"
BOUNDARY = "photograph"
JPEG, UPLOAD = Form("/predict", "image/jpeg", "jpeg"), Form("/predict", f"multipart/form-data; boundary={BOUNDARY}", "")
MOST_APART = 1e-3  # of the probability: other releases of Pillow and libjpeg may round a value otherwise
SERVICE = "{python} -m foldserve serve --port {port} --models-dir {models} --workers {workers}"


@dataclass(frozen=True)
class Contender:
    """One server in one form.

    Args:
        peer: the server.
        workers: how many.
        form: how a photograph is sent.
    """

    peer: Peer
    workers: int
    form: Form


def contenders() -> list[Contender]:
    """Return every server in every form; the first is what the others are compared with."""
    # Peers refuse nothing as late, and hold as many files as are sent.
    quiet = {"FOLDSERVE_LOG_LEVEL": "warning", "FOLDSERVE_DEFAULT_DEADLINE_MS": "60000"}
    quiet |= dict.fromkeys(("FOLDSERVE_MAX_DECODE_BYTES", "FOLDSERVE_MAX_BUFFERED_BYTES"), str(1 << 30))
    found = []
    for name, model in (("foldserve", EXACT), ("foldserve, scaled", SCALED)):
        form = Form(f"/predict?model={model}", JPEG.media_type, "jpeg")
        found += [Contender(Peer(name, SERVICE, {"jpeg": form}, env=quiet), workers, form) for workers in (1, 2)]
    fastapi = UVICORN + " --workers {workers} benchmarks.serving.peers.photograph_fastapi:app"
    litserve = "{python} -m benchmarks.serving.peers.photograph_litserve"
    for workers in (1, 2):
        found.append(Contender(Peer("plain FastAPI", fastapi, {"": JPEG}, venv="photographs"), workers, JPEG))
        for batch in (1, 8):
            peer = Peer("LitServe", litserve, {"": UPLOAD}, venv="photographs", env={"BENCH_BATCH": str(batch)})
            found.append(Contender(peer, workers, UPLOAD))
    return found


def body_of(form: Form, file: bytes) -> bytes:
    """Return a file as it is sent: by itself, or as the only part of a form."""
    if form is not UPLOAD:
        return file
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n'
    return f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + file + f"\r\n--{BOUNDARY}--\r\n".encode()


def asked(port: int, form: Form, body: bytes) -> tuple[int, float]:
    """Return class and probability that a server answers.

    Raises:
        SystemExit: the answer is not 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", form.path, body, {"Content-Type": form.media_type})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{form.path}: {answer.status} {text[:300]!r}")
    (found,) = json.loads(text)["predictions"]
    probability = found["probability"] if "probability" in found else max(found["probabilities"])
    return int(found["class_id"]), float(probability)


def measure(
    contender: Contender, options: argparse.Namespace, file: bytes, expected: tuple[int, float] | None
) -> tuple[tuple[int, float], dict[int, Loaded]]:
    """Start a server, compare its answer, load it at each number of connections and compare again.

    Args:
        contender: the server.
        options: models, peers and seconds.
        file: the photograph.
        expected: what the first server answered; None where this is it.

    Returns:
        Its answer and its figures.

    Raises:
        SystemExit: it answers otherwise, or not every time with 200.
        RuntimeError: it does not start.
    """
    peer, form = contender.peer, contender.form
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        body = folder / "body"
        body.write_bytes(body_of(form, file))
        with start(peer, contender.workers, options.models, options.peers, body.read_bytes(), folder / "log") as server:
            answer = asked(server.port, form, body.read_bytes())
            check(peer.name, answer, expected)
            figures = {
                count: closed_loop(server, form, body, body.stat().st_size, count, options.seconds)
                for count in CONNECTIONS
            }
            check(peer.name, asked(server.port, form, body.read_bytes()), answer)
    return answer, figures


def check(name: str, answer: tuple[int, float], expected: tuple[int, float] | None) -> None:
    """Compare two answers; what is decoded at a part of its size may differ from the exact one.

    Raises:
        SystemExit: they differ.
    """
    if expected is None or (SCALED in name and answer[0] == expected[0]):
        return
    if answer[0] != expected[0] or abs(answer[1] - expected[1]) > MOST_APART:
        raise SystemExit(f"{name} answers {answer}, expected {expected}")


def make(folder: Path) -> None:
    """Publish ResNet-18 with made weights twice: exact, and with scaled decoding."""
    from benchmarks.serving.large import make_one

    for name, recipe in ((EXACT, "imagenet"), (SCALED, "imagenet,decoding=scaled")):
        make_one(folder, "resnet18", name, recipe)


def report(rounds: Sequence[dict[str, list[dict[int, Loaded]]]]) -> None:
    """Print each server in its best form at each point, and how many times the goodput of each peer the service has."""
    print("| server | connections | photographs/s: median (least to most) | p50 ms | p99 ms | ms of CPU each |")
    print("|---|---|---|---|---|---|")
    best: dict[tuple[str, int], list[Loaded]] = {}
    for name in rounds[0]:
        for count in CONNECTIONS:
            forms = [[one[name][form][count] for one in rounds] for form in range(len(rounds[0][name]))]
            runs = best[name, count] = max(forms, key=lambda runs: stats.median(run.per_second for run in runs))
            rates = [run.per_second for run in runs]
            print(
                f"| {name} | {count} | {stats.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f}) "
                f"| {stats.median(run.p50_ms for run in runs):.0f} | {stats.median(run.p99_ms for run in runs):.0f} "
                f"| {stats.median(run.cpu_us for run in runs) / 1e3:.0f} |"
            )
    print("\n| service / peer | connections | goodput: median (least to most) | p99, likewise |\n|---|---|---|---|")
    for (name, count), runs in best.items():
        for ours in ("foldserve", "foldserve, scaled"):
            if name.startswith("foldserve"):
                continue
            pairs = list(zip(best[ours, count], runs, strict=True))
            rates, waits = [a.per_second / b.per_second for a, b in pairs], [a.p99_ms / b.p99_ms for a, b in pairs]
            print(f"| {ours} / {name} | {count} | {_spread(rates)} | {_spread(waits)} |")


def _spread(ratios: Sequence[float]) -> str:
    return f"{stats.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="publish the networks and end")
    parser.add_argument("--models", type=Path, help="folder of the published networks")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers", help="folder of the peers' environments")
    parser.add_argument(
        "--kind", default="1/f", choices=("smooth", "1/f", "noise", "edges"), help="of photograph (1/f)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=6, help="of each load (6)")
    options = parser.parse_args()
    if options.make is not None:
        make(options.make)
        return 0
    options.models, options.peers = options.models.absolute(), options.peers.absolute()
    file = photograph(options.kind, 3000, 4000)
    expected, rounds, missing = None, [], set()
    for turn in range(options.rounds):
        found: dict[str, list[dict[int, Loaded]]] = defaultdict(list)
        for contender in contenders():
            if contender.peer.name in missing:
                continue
            try:
                answer, figures = measure(contender, options, file, expected)
            except RuntimeError as err:
                missing.add(contender.peer.name)
                print(f"left out: {err}", file=sys.stderr)
                continue
            expected = expected or answer
            found[contender.peer.name].append(figures)
        rounds.append(found)
        print(f"round {turn + 1} of {options.rounds}, load average {os.getloadavg()[0]:.1f}", file=sys.stderr)
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {options.kind}, {len(file) / 1e6:.2f} MB\n")
    report(rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
