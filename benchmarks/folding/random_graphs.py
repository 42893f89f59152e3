"""Random PyTorch networks and ONNX graphs, folded, and compared with PyTorch in float64 and with onnxruntime.

    python -m benchmarks.folding.random_graphs        500 of each; writes a section of the zoo's page
    python -m benchmarks.folding.random_graphs --form ONNX --first 7 --count 1        one seed again

Each graph is run at the size of its example, and at another size and batch drawn anew. Every seed whose result is not
right is printed with what the graph is made of; the exit code is 1 then. With `--raw FILE` a run that was broken off
goes on where it was. The lines of the table stand in folding-random.json, from where the zoo's page takes them too.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import ROOT
from tests.support.random_judge import Verdict, judge_onnx, judge_torch
from tests.support.random_onnx import random_graph
from tests.support.random_torch import random_network

RESULTS = ROOT / "docs" / "results" / "folding-zoo.md"
ROWS = ROOT / "docs" / "results" / "folding-random.json"
TITLE = "## Random graphs\n"
JUDGES: dict[str, Callable[[int], Verdict]] = {"PyTorch": judge_torch, "ONNX": judge_onnx}
HEAD = "| graphs | seeds | right | wrong | raised | norms folded | left | at two sizes | error | seconds | revision |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", action="append", choices=sorted(JUDGES), help="default: both")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--count", type=int, default=500, help="how many seeds (default 500)")
    parser.add_argument("--raw", type=Path, help="a JSON line for each seed, from which a run goes on")
    parser.add_argument("--out", type=Path, default=RESULTS, help="page whose section is replaced")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(args.first, args.first + args.count)
    rows: dict[str, str] = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else {}
    known, bad = found_before(args.raw), 0
    for form in args.form or JUDGES:
        found = [known.get((form, seed)) or judged(form, seed, args.raw) for seed in seeds]
        line = row(form, seeds, [verdict for verdict, _ in found], sum(seconds for _, seconds in found))
        rows[f"{form} from {seeds.start}"] = line
        print(line, flush=True)
        bad += sum(verdict.word != "right" for verdict, _ in found)
    if args.count > 1:
        ROWS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        head = args.out.read_text(encoding="utf-8").partition(TITLE)[0] if args.out.exists() else ""
        args.out.write_text((head.rstrip() + "\n\n").lstrip() + section(), encoding="utf-8")
    return 1 if bad else 0


def found_before(raw: Path | None) -> dict[tuple[str, int], tuple[Verdict, float]]:
    """Return what an earlier run found, and in how many seconds, by form and seed."""
    lines = raw.read_text(encoding="utf-8").splitlines() if raw and raw.exists() else []
    return {
        (one["form"], one["verdict"]["seed"]): (Verdict(**one["verdict"]), one["seconds"])
        for one in map(json.loads, lines)
    }


def judged(form: str, seed: int, raw: Path | None = None) -> tuple[Verdict, float]:
    """Return the verdict on one seed, printed when it is not right, and how many seconds it took."""
    start = time.perf_counter()
    verdict = JUDGES[form](seed)
    seconds = time.perf_counter() - start
    if verdict.word != "right":
        text = str(random_network(seed)[0]) if form == "PyTorch" else random_graph(seed)[2]
        print(f"{form} seed {seed}: {verdict.word}, error {verdict.error:.2g}: {text}", flush=True)
    if raw:
        with raw.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"form": form, "seconds": seconds, "verdict": asdict(verdict)}) + "\n")
    return verdict, seconds


def row(form: str, seeds: range, verdicts: list[Verdict], seconds: float) -> str:
    """One line of the table."""
    words = Counter(verdict.word.split()[0] for verdict in verdicts)
    folded, left = sum(v.folded for v in verdicts), sum(len(v.refused) for v in verdicts)
    both = sum(v.sizes == 2 for v in verdicts)
    error = max((v.error for v in verdicts if v.word == "right"), default=0.0)
    return (
        f"| {form} | {seeds.start} to {seeds.stop - 1} | {words['right']} | {words['wrong']} | {words['raised']} "
        f"| {folded} | {left} | {both} | {error:.1e} | {seconds:.0f} | {revision()} |"
    )


def revision() -> str:
    """Return the short hash of the commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


def section() -> str:
    """The table as Markdown, of the last run of each form from each first seed."""
    rows = json.loads(ROWS.read_text(encoding="utf-8")).values() if ROWS.exists() else []
    text = """\
`python -m benchmarks.folding.random_graphs`: graphs drawn from a seed, with views, shape arithmetic, branches on sizes,
shared and computed weights. Each is compared with itself unfolded, PyTorch's in float64 with exact parameters (limit
1e-8 of the largest output), ONNX in onnxruntime without optimisations (float32, 1e-3), at the example's size and at
another size and batch where the graph takes them.
"""
    return "\n".join([TITLE, text, HEAD, "|---" * 11 + "|", *rows]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
