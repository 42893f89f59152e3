"""Images per second of the engine against onnxruntime as anybody would call it, one thread, one model.

    python -m benchmarks.serving.engine --models-dir models --out docs/results/engine.md

Three ways to run the exported file, in rounds that take turns: `onnxruntime.InferenceSession` with its defaults and
one thread; the engine with the published graph; the engine as it is. Times are this thread's own CPU seconds, which a
neighbour on the core does not lengthen, and wall-clock seconds beside them; medians over the rounds.
"""

import argparse
import os
import platform
import statistics as stats
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from foldserve.service.artifacts.repository import Artifact, Repository
from foldserve.service.engines.engine import Engine
from foldserve.service.engines.load import load_engine
from foldserve.service.settings import DEFAULT_BUCKETS

Run = Callable[[dict[str, np.ndarray]], object]
Times = dict[str, tuple[list[float], list[float]]]  # CPU and wall-clock seconds of a batch, one of each a round
WAYS = ("onnxruntime", "published graph", "engine")


def processor() -> str:
    """Return the name of the processor and the widest vectors that it knows (Linux)."""
    text = Path("/proc/cpuinfo").read_text()
    name = next(line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name"))
    return f"{name}, {'AVX-512' if 'avx512f' in text else 'AVX2' if 'avx2' in text else 'no AVX2'}"


def ways(artifact: Artifact) -> tuple[dict[str, Run], Engine]:
    """Return the three ways to answer a batch, and the engine among them that is as it is."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(artifact.model_path, options, providers=["CPUExecutionProvider"])
    engine = load_engine(artifact, provider="cpu", threads=1)
    plain = load_engine(artifact, provider="cpu", threads=1, is_autotuned=False)
    return dict(zip(WAYS, (lambda inputs: session.run(None, inputs), plain.run, engine.run), strict=True)), engine


def measure(runs: dict[str, Run], batch: dict[str, np.ndarray], rounds: int) -> Times:
    """Return CPU and wall-clock seconds of a batch for each way, one number a round; a round lasts some 10 ms a way."""
    found: Times = {name: ([], []) for name in runs}
    started = time.thread_time()
    runs[WAYS[0]](batch)
    repeat = max(1, round(0.01 / max(1e-6, time.thread_time() - started)))
    for _ in range(rounds):
        for name, run in runs.items():
            run(batch)
            cpu, wall = time.thread_time(), time.perf_counter()
            for _ in range(repeat):
                run(batch)
            found[name][0].append((time.thread_time() - cpu) / repeat)
            found[name][1].append((time.perf_counter() - wall) / repeat)
    return found


def row(bucket: int, found: Times) -> str:
    """Return one line of the table."""
    speed = {name: bucket / stats.median(times[0]) for name, times in found.items()}
    wall = {name: bucket / stats.median(times[1]) for name, times in found.items()}
    ratios = [default / ours for default, ours in zip(found[WAYS[0]][0], found[WAYS[2]][0], strict=True)]
    low, _, high = stats.quantiles(ratios, n=4)
    columns = [f"{speed[name]:,.0f}" for name in WAYS]
    ratio, by_wall = (kind[WAYS[2]] / kind[WAYS[0]] for kind in (speed, wall))
    return f"| {bucket} | {' | '.join(columns)} | {ratio:.2f} ({low:.2f}-{high:.2f}) | {by_wall:.2f} |"


def report(artifact: Artifact, engine: Engine, rows: list[str], rounds: int, command: str) -> str:
    """Return the page."""
    load = os.getloadavg()[0]
    return "\n".join(
        [
            "# The engine on one thread",
            "",
            f"`{command}`",
            "",
            f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, onnxruntime "
            f"{onnxruntime.__version__}, NumPy {np.__version__}; model {artifact.name}, "
            f"SHA-256 {artifact.sha256[:12]}; "
            f"load average {load:.1f}.",
            "",
            f"Images per second of CPU time, medians of {rounds} interleaved rounds after one run that is left out; in "
            "brackets the quartiles of the ratio over the rounds. `onnxruntime` is `InferenceSession` with one thread "
            "and its defaults on the exported file. The last column is the same ratio by the wall clock.",
            "",
            f"Rewrite chosen at load: {engine.rewrite or 'none'}. Golden answers: off by at most "
            f"{max(engine.deviations.values(), default=0.0):.1e} of the largest value. "
            "Batch invariant over the buckets "
            f"{', '.join(map(str, engine.buckets))}: {'yes' if engine.batch_invariant else 'no'}.",
            "",
            f"| batch | {' | '.join(WAYS)} | engine / onnxruntime | by the wall clock |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models-dir", type=Path, default=Path("models"))
    parser.add_argument("--model", default="lenet-bn")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--out", type=Path, help="write the page here as well")
    options = parser.parse_args(argv)
    artifact = Repository(options.models_dir).open(options.model)
    runs, engine = ways(artifact)
    rows = []
    for bucket in DEFAULT_BUCKETS:
        batch = {name: np.resize(array, (bucket, *array.shape[1:])) for name, array in artifact.golden.inputs.items()}
        rows.append(row(bucket, measure(runs, batch, options.rounds)))
        print(rows[-1], flush=True)
    command = f"python -m benchmarks.serving.engine --model {options.model} --rounds {options.rounds}"
    page = report(artifact, engine, rows, options.rounds, command)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
