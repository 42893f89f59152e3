"""Time and memory of folding ResNets of growing depth, through both front ends.

    python -m benchmarks.folding.cost                                    measure, write the section of folding.md
    python -m benchmarks.folding.cost --depth 18 --runs 1 --out page.md  a quick look

Each measurement has a process of its own: it folds a small network to have every import behind it, loads the model,
then folds. "read" is what comes before the fold: `torch.export` of the module, or parsing the ONNX file's bytes. "fold"
is the time without that and without the proof, which is timed apart and never switched off. Seconds of processor time
stand beside those of the wall clock, since the machine may have other work. Memory is the peak of the resident set
above what it was with the model loaded, over the size of the parameters.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.folding.cases import RESULTS
from benchmarks.folding.resnets import STAGES, OnnxResNet, torch_resnet
from benchmarks.folding.runs import versions

TITLE = "## Time and memory\n"
FORMS = {"module": "PyTorch", "onnx": "ONNX"}
COLUMNS = ("read", "fold", "proof", "all", "cpu")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=3, metavar=("FORM", "DEPTH", "SIZE"), help=argparse.SUPPRESS)
    parser.add_argument("--depth", type=int, action="append", choices=sorted(STAGES), help="default: 18, 50 and 152")
    parser.add_argument("--form", action="append", choices=sorted(FORMS), help="default: both")
    parser.add_argument("--runs", type=int, default=3, help="processes for each row (default 3)")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images (default 224)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="page whose section is replaced")
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.worker[0], int(args.worker[1]), int(args.worker[2]))))
        return 0
    load = os.getloadavg()[0]
    rows = []
    for form in args.form or FORMS:
        for depth in args.depth or sorted(STAGES):
            rows.append([in_a_process(form, depth, args.size) for _ in range(args.runs)])
            print(row_of(rows[-1]), flush=True)
    head = args.out.read_text(encoding="utf-8").partition(TITLE)[0] if args.out.exists() else ""
    args.out.write_text((head.rstrip() + "\n\n").lstrip() + section(rows, args.size, load), encoding="utf-8")
    return 0


def in_a_process(form: str, depth: int, size: int) -> dict[str, Any]:
    """Return what a process of its own measures."""
    command = [sys.executable, "-m", "benchmarks.folding.cost", "--worker", form, str(depth), str(size)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{form} {depth}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def section(rows: list[list[dict[str, Any]]], size: int, load: float) -> str:
    """The measurements as Markdown."""
    found = versions()
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    lines = [
        TITLE,
        f"`python -m benchmarks.folding.cost`: {len(rows[0])} runs each in processes of their own, {size} x {size} "
        f"images, {found['machine']}, torch {found['torch']}, {threads} threads at most, load before the first run "
        f"{load:.1f}. Each cell is least / median. Read is `torch.export` of the module, or parsing the ONNX file; "
        "fold and proof are what `fold` and `fold_onnx` do behind that; whole is all three, in seconds of the wall "
        "clock and of the processor on all cores. Memory is the peak above the loaded model, over its parameters.\n",
        "| model | front end | parameters | norms | read, s | fold, s | proof, s | whole, s | whole, CPU s | memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(row_of, rows),
    ]
    return "\n".join(lines) + "\n"


def row_of(runs: list[dict[str, Any]]) -> str:
    """One line of the table."""
    one = runs[0]
    times = " | ".join(_least_and_median([run[name] for run in runs], 2) for name in COLUMNS)
    growth = _least_and_median([run["growth"] for run in runs], 1)
    return (
        f"| ResNet-{one['depth']} | {FORMS[one['form']]} | {one['megabytes']:.0f} MB | {one['folded']} "
        f"| {times} | {growth} x |"
    )


def _least_and_median(values: list[float], digits: int) -> str:
    return f"{min(values):.{digits}f} / {statistics.median(values):.{digits}f}"


def measure(form: str, depth: int, size: int) -> dict[str, Any]:
    """Fold one ResNet and return seconds and memory."""
    clocks = Clocks(form)
    clocks.fold(made(form, (1, 1, 1, 1), 8, 32), 32)
    given = made(form, STAGES[depth], 64, size)
    clocks.spent.clear()
    model = clocks.load(given)
    del given
    parameters = megabytes(model, form)
    release()
    before, spent = resident("VmRSS"), Clock()
    report = clocks.fold(model, size)
    whole = spent.read()
    if report.refused:
        raise SystemExit(report.table())
    read, proof = clocks.seconds("read"), clocks.seconds("proof")
    inside = read[0] if form == "module" else 0.0  # a file is parsed before the fold, a module is exported within
    return {
        "form": form,
        "depth": depth,
        "megabytes": parameters,
        "folded": len(report.folded),
        "read": read[0],
        "fold": whole[0] - proof[0] - inside,
        "proof": proof[0],
        "all": whole[0] + read[0] - inside,
        "cpu": whole[1] + (read[1] if form == "onnx" else 0.0),
        "growth": (resident("VmHWM") - before) / parameters,
    }


class Clock:
    """Seconds since it was made: of the wall clock and of this process on all cores."""

    def __init__(self) -> None:
        self._start = (time.perf_counter(), time.process_time())

    def read(self) -> tuple[float, float]:
        """Seconds since the start."""
        return time.perf_counter() - self._start[0], time.process_time() - self._start[1]


class Clocks:
    """A front end whose reading and proving are timed; both still do all they did."""

    def __init__(self, form: str):
        self.form = form
        self.spent: list[tuple[str, tuple[float, float]]] = []
        if form == "onnx":
            import foldserve.training.fold.onnx.scopes as proving

            self._time(proving, "prove_onnx", "proof")
            return
        import foldserve.training.fold.pytorch.fold_plan as reading
        import foldserve.training.fold.pytorch.result as writing

        for module, name, kind in (
            (reading, "read", "read"),
            (reading, "prove_sites", "proof"),
            (writing, "prove_model", "proof"),
        ):
            self._time(module, name, kind)

    def load(self, given: Any) -> Any:
        """Return the model that a user would hold: a module as it is, an ONNX file parsed."""
        if self.form == "module":
            return given
        import onnx

        clock = Clock()
        model = onnx.load_from_string(given)
        self.spent.append(("read", clock.read()))
        return model

    def fold(self, model: Any, size: int) -> Any:
        """Fold a module, or an ONNX model or its bytes, and return the report."""
        if self.form == "onnx":
            from foldserve.training.fold.onnx.api import fold_onnx

            return fold_onnx(self.load(model) if isinstance(model, bytes) else model).report
        import torch

        from foldserve.training.fold.api import fold

        return fold(model, (torch.randn(2, 3, size, size),)).report

    def seconds(self, kind: str) -> tuple[float, float]:
        """Seconds of the wall clock and of the processor that went into `kind`."""
        found = [seconds for name, seconds in self.spent if name == kind]
        return sum(one for one, _ in found), sum(other for _, other in found)

    def _time(self, module: Any, name: str, kind: str) -> None:
        inner: Callable[..., Any] = getattr(module, name)

        def outer(*args: Any, **more: Any) -> Any:
            clock = Clock()
            result = inner(*args, **more)
            self.spent.append((kind, clock.read()))
            return result

        setattr(module, name, outer)


def made(form: str, stages: tuple[int, ...], width: int, size: int) -> Any:
    """Return a module, or the bytes of an ONNX file."""
    if form == "module":
        return torch_resnet(stages, width)
    data: bytes = OnnxResNet(stages, width, size).model.SerializeToString()
    return data


def megabytes(model: Any, form: str) -> float:
    """Size of the parameters."""
    if form == "onnx":
        return sum(len(t.raw_data) for t in model.graph.initializer) / 2**20
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20


def release() -> None:
    """Give freed memory back and forget the peak, so that the next peak is measured from the loaded model."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> float:
    """Return a field of this process's status in MB, such as VmRSS."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 2**10


if __name__ == "__main__":
    sys.exit(main())
