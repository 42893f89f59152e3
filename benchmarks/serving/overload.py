"""What becomes of requests when more come than can be answered: an open loop over HTTP against a slowed engine.

    python -m benchmarks.serving.overload --models models --seconds 60 --curve-seconds 10

The service runs as `slowed_service.py`, whose capacity is known and low enough for a generator on the same machine
(`open_loop.py`, a process of its own). Levels from 10 % to 120 % of capacity, then four times capacity, then half of
it again. Every answer is compared, byte for byte, with the one that the service gave to the same image alone, and that
one's class with the model's golden answers; the service's own counts are compared with the generator's. Writes
docs/results/overload.md; `python -m benchmarks.serving` has the same tables.
"""

import argparse
import http.client
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT
from benchmarks.serving.servers import BINARY, Peer, Running, golden, newest_model, start
from benchmarks.serving.slowed_service import ROWS_PER_SECOND as CAPACITY

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.2)
OVERLOAD = 4.0
DEADLINE_MS = 250
AFTER_SECONDS = 5.0

SLOWED = Peer(
    "slowed",
    "{python} -m benchmarks.serving.slowed_service --port {port} --models-dir {models}",
    {"binary": BINARY},
    env={"FOLDSERVE_LOG_LEVEL": "warning", "FOLDSERVE_BUCKETS": "1,2,4,8,16,32,64", "FOLDSERVE_PROVIDER": "cpu"},
)

_COUNTED = re.compile(r'foldserve_requests_total\{method="POST",route="/predict",status="(\d+)"\} (\S+)')


def measure(models: Path, seconds: float, curve_seconds: float) -> dict[str, Any]:
    """Return what came of each level, of the overload and of the time after it.

    Args:
        models: folder of models; the newest version of the first is asked.
        seconds: of the overload; 0 leaves it out.
        curve_seconds: of each level; 0 leaves them out.
    """
    model = newest_model(models)
    images = golden(model, "inputs", "image").reshape(-1, 784)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").write_bytes(images.tobytes())
        with start(SLOWED, 1, models.resolve(), folder, images[0].tobytes(), folder / "log") as server:
            alone = ask_alone(server.port, images, golden(model, "outputs", "class_id").ravel())
            (folder / "expected").write_text(json.dumps(alone))
            result: dict[str, Any] = {"capacity": CAPACITY, "deadline_ms": DEADLINE_MS, "levels": {}}
            for level in LEVELS if curve_seconds else ():
                result["levels"][str(level)] = play(server.port, level, curve_seconds, folder)
            if seconds:
                result["overload"] = overload(server, seconds, folder)
                result["after"] = play(server.port, 0.5, AFTER_SECONDS, folder)
    return result


def overload(server: Running, seconds: float, folder: Path) -> dict[str, Any]:
    """Return what came of four times capacity, and whether the service counted what the generator did."""
    before, memory = counts(server.port), server.memory_mib()
    run = play(server.port, OVERLOAD, seconds, folder)
    counted = {status: count - before.get(status, 0) for status, count in counts(server.port).items()}
    run["counted_exactly"] = {status: count for status, count in counted.items() if count} == run["statuses"]
    run["memory_grew_mib"] = server.memory_mib() - memory
    return run


def play(port: int, level: float, seconds: float, folder: Path) -> dict[str, Any]:
    """Run the generator at a share of capacity."""
    command = [sys.executable, "-m", "benchmarks.serving.open_loop", "--port", str(port)]
    command += ["--rate", str(level * CAPACITY), "--seconds", str(seconds), "--deadline-ms", str(DEADLINE_MS)]
    command += ["--bodies", str(folder / "images"), "--expected", str(folder / "expected")]
    run = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"{level:.0%}: {' | '.join(cells(run))}", file=sys.stderr)
    time.sleep(0.5)  # the connections close, and the next level begins with a rested server
    return dict(run)


def ask_alone(port: int, images: np.ndarray, class_ids: np.ndarray) -> list[str]:
    """Return the answer to each image when nothing else runs.

    Raises:
        SystemExit: one of them has another class than the golden answer.
    """
    answers = []
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for image, class_id in zip(images, class_ids, strict=True):
        connection.request("POST", "/predict", image.tobytes(), {"Content-Type": "application/octet-stream"})
        text = connection.getresponse().read().decode()
        if json.loads(text)["predictions"][0]["class_id"] != class_id:
            raise SystemExit(f"the service answers {text}, the golden class is {class_id}")
        answers.append(text)
    connection.close()
    return answers


def counts(port: int) -> dict[str, int]:
    """Return the service's own count of answers of `/predict` by status."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return {status: round(float(count)) for status, count in _COUNTED.findall(text)}


def cells(run: dict[str, Any]) -> list[str]:
    """Return one run as the cells of a table."""
    accepted, refused = run["accepted_ms"], run["refused_ms"]
    statuses = ", ".join(f"{status}: {count:,}" for status, count in run["statuses"].items() if status != "200")
    return [
        f"{run['goodput']:,.0f} ({run['goodput'] / min(CAPACITY, run['rate']):.2f})",
        *(f"{accepted[name]:.1f}" if accepted[name] else "" for name in ("p50", "p99", "p999")),
        f"{statuses} (p99 {refused['p99']:.1f} ms)" if statuses else "none",
        f"{run['wrong']} / {run['resets']} / {run['unanswered']} / {run['refused_without_retry_after']}",
        f"{run['lag_p99_ms']:.1f} ms{' **void**' if run['void'] else ''}",
    ]


def tables(result: dict[str, Any]) -> list[str]:
    """Return the lines that report all of it."""
    lines = [
        f"Requests at random times, latency from the planned moment; the engine slowed to {CAPACITY:,} images/s so",
        "that the generator keeps up (a run in which it lags more than 5 ms at its p99 is void). Goodput counts",
        f"answers within the deadline of {DEADLINE_MS} ms, in brackets of what could be had. Wrong: not byte for byte",
        "the answer that the same image got alone.",
        "",
        "| of capacity | goodput/s | p50 ms | p99 | p99.9 | refused | wrong / resets / unanswered / 503 without "
        "Retry-After | generator's lag p99 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for level, run in result["levels"].items():
        lines.append(f"| {float(level):.0%} | {' | '.join(cells(run))} |")
    if "overload" not in result:
        return lines
    run, after = result["overload"], result["after"]
    lines += [
        f"| {OVERLOAD:.0%}, {run['seconds']:g} s | {' | '.join(cells(run))} |",
        f"| 50 % right after, {after['seconds']:g} s | {' | '.join(cells(after))} |",
        "",
        f"At four times capacity {run['sent']:,} requests over {run['connections']:,} connections; the service's memory"
        f" grew by {run['memory_grew_mib']:.0f} MiB, and `/metrics` counted"
        f" {'exactly what the generator did' if run['counted_exactly'] else 'something else than the generator'}.",
    ]
    return lines


def page(result: dict[str, Any], command: str) -> str:
    """Return the page."""
    processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    lines = [
        "# Overload",
        "",
        f"`{command}`",
        "",
        f"{processor.split(':', 1)[1].strip()}, {os.cpu_count()} cores, load average {result['load_before']:.1f}",
        f"before; Python {platform.python_version()}; one worker, one image a request, raw bytes; generator beside it.",
        "",
        *tables(result),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the run at 4 x capacity; 0 leaves it out")
    parser.add_argument("--curve-seconds", type=float, default=10.0, help="of each level; 0 leaves them out")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "overload.md")
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    result = measure(arguments.models, arguments.seconds, arguments.curve_seconds) | {"load_before": load_before}
    words = f"--seconds {arguments.seconds:g} --curve-seconds {arguments.curve_seconds:g}"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(page(result, f"python -m benchmarks.serving.overload {words}"))


if __name__ == "__main__":
    main()
