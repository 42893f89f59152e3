"""The folding scoreboard: every case of both lists through this project and every tool that installs from PyPI.

    python -m benchmarks.folding                    run everything and write docs/results/folding.md
    python -m benchmarks.folding --show TOOL CASE   run one case through one tool and print the verdict

Each tool runs in a process of its own, with a time limit for each case, so that a crash costs one case and not the run.
A tool that is not installed is named as such; nothing is skipped in silence.
"""

import argparse
import json
import platform
import subprocess
import sys
import threading
import warnings
from collections import Counter
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, Queue
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "folding.md"
LIMIT_S = 180.0
KINDS = ("right", "alone", "WRONG", "raised", "INVALID", "crashed", "timed out")
Row = dict[str, dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=3, metavar=("LIST", "TOOL", "FIRST"), help=argparse.SUPPRESS)
    parser.add_argument("--show", nargs=2, metavar=("TOOL", "CASE"), help="run one case and print the verdict")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the page to write")
    parser.add_argument("--raw", type=Path, help="JSON file of verdicts, kept up to date, from which a run goes on")
    parser.add_argument("--tool", action="append", help="run these tools again, with the others' verdicts from --raw")
    args = parser.parse_args()
    if args.worker:
        return work(args.worker[0], args.worker[1], int(args.worker[2]))
    if args.show:
        return show(*args.show)
    boards = {name: run_list(name, args.raw, args.tool or []) for name in ("onnx", "torch")}
    from benchmarks.folding_report import page

    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page(boards, versions(), missing(), costs(args.out)), encoding="utf-8")
    print(f"wrote {args.out}")
    return 0


def case_list(name: str) -> list[Any]:
    """The cases of "torch" or "onnx"."""
    if name == "onnx":
        from benchmarks.folding_cases_onnx import cases

        return cases()
    from tests.training.fold.cases import CASES

    beyond = "scale beyond float32"  # its outputs are infinite in every float32 runtime: nothing to compare
    return [case for case in CASES if case.name != beyond]


def tools(name: str) -> dict[str, str]:
    """Tool -> the package that it comes in."""
    from benchmarks.folding_tools import ONNX_TOOLS, TORCH_TOOLS

    return {tool: package for tool, (package, _) in (ONNX_TOOLS if name == "onnx" else TORCH_TOOLS).items()}


def missing() -> list[str]:
    """Tools whose package is not installed."""
    both = {**tools("torch"), **tools("onnx")}
    return [tool for tool, package in both.items() if find_spec(package.split(".")[0]) is None]


def judge(name: str, tool: str, case: Any) -> dict[str, Any]:
    from benchmarks.folding_tools import judge_onnx, judge_torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (judge_onnx if name == "onnx" else judge_torch)(tool, case).as_dict()


def work(name: str, tool: str, first: int) -> int:
    """Judge the cases from number `first` on, one JSON line each."""
    import logging

    import torch

    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    for i, case in enumerate(case_list(name)):
        if i >= first:
            print(json.dumps({"case": i, **judge(name, tool, case)}), flush=True)
    return 0


def show(tool: str, wanted: str) -> int:
    for name in ("torch", "onnx"):
        for case in case_list(name):
            if case.name == wanted and tool in tools(name):
                print(name, tool, wanted, judge(name, tool, case))
    return 0


def run_list(name: str, raw: Path | None, again: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the verdicts of every installed tool on the list `name`, in its order."""
    known = json.loads(raw.read_text()) if raw is not None and raw.exists() else {}
    board = {}
    for tool in tools(name):
        if tool in missing():
            continue
        kept = known.get(name, {}).get(tool)
        count = len(case_list(name))
        board[tool] = kept if kept and len(kept) == count and tool not in again else run_tool(name, tool, count)
        print(name, tool, dict(Counter(verdict["kind"] for verdict in board[tool])), flush=True)
        if raw is not None:
            known.setdefault(name, {})[tool] = board[tool]
            raw.write_text(json.dumps(known))
    return board


def run_tool(name: str, tool: str, count: int) -> list[dict[str, Any]]:
    verdicts: list[dict[str, Any]] = []
    while len(verdicts) < count:
        kind = collect(name, tool, verdicts, count)
        if len(verdicts) < count:
            verdicts.append({"kind": kind, "error": 0.0, "detail": ""})
    return verdicts


def collect(name: str, tool: str, verdicts: list[dict[str, Any]], count: int) -> str:
    """Append verdicts of one worker until it is through, crashes or takes too long; return which of the last two."""
    command = [sys.executable, "-m", "benchmarks.folding", "--worker", name, tool, str(len(verdicts))]
    worker = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    lines: Queue[str | None] = Queue()
    assert worker.stdout is not None
    reader = threading.Thread(target=feed, args=(worker.stdout, lines), daemon=True)
    reader.start()
    kind = "crashed"
    while len(verdicts) < count:
        try:
            line = lines.get(timeout=LIMIT_S)
        except Empty:
            kind = "timed out"
            break
        if line is None:
            break
        if line.startswith('{"case": '):
            verdicts.append(json.loads(line))
    worker.kill()
    worker.wait()
    return kind


def feed(stream: Any, lines: "Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def versions() -> dict[str, str]:
    """Python, machine and the version of every package that has a part in the results."""
    packages = (
        "torch",
        "torchao",
        "numpy",
        "onnx",
        "onnx-ir",
        "onnxscript",
        "onnxruntime",
        "onnxoptimizer",
        "onnxsim",
        "onnxslim",
    )
    found = {"python": platform.python_version(), "machine": machine()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> str:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(names) or '?'} logical CPUs, {platform.system()}"


def costs(out: Path) -> str:
    """The section that `benchmarks/folding_cost.py` wrote, kept when the scoreboard is written again."""
    if not out.exists():
        return ""
    _, mark, section = out.read_text(encoding="utf-8").partition("## Time and memory\n")
    return mark + section


if __name__ == "__main__":
    sys.exit(main())
