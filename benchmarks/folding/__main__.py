"""The folding scoreboard: every case of both lists through this project and every tool that installs from PyPI.

    python -m benchmarks.folding --python .venv-folding/bin/python     run everything, write docs/results/folding.md
    python -m benchmarks.folding --show TOOL CASE                      one case through one tool
    python -m benchmarks.folding --reproducers                         run the programs that the page prints

The other tools need an environment of their own: `python -m venv .venv-folding`, then `pip install -r
benchmarks/folding/requirements.txt` in it. `--python` names its interpreter; without it, the one that runs this serves.
A tool that is not installed there is named on the page as such; nothing is skipped in silence. A run that was broken
off goes on where it was, from the file that `--raw` names; verdicts of other versions or cases are not taken over.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.folding.cases import LISTS, RESULTS, case_list, judge, tools
from benchmarks.folding.report import page
from benchmarks.folding.reproducers import check
from benchmarks.folding.runs import describe, found_here, run_boards


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=3, metavar=("LIST", "TOOL", "FIRST"), help=argparse.SUPPRESS)
    parser.add_argument("--describe", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--show", nargs=2, metavar=("TOOL", "CASE"), help="run one case and print the verdict")
    parser.add_argument("--reproducers", action="store_true", help="run the page's programs and check what they show")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="interpreter that has the tools")
    parser.add_argument("--jobs", type=int, default=2, help="how many tools run at once (default 2)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the page to write")
    parser.add_argument("--raw", type=Path, help="JSON file of verdicts, kept up to date, from which a run goes on")
    parser.add_argument("--tool", action="append", help="run these tools again, with the others' verdicts from --raw")
    args = parser.parse_args()
    if args.describe:
        print(json.dumps(found_here()))
        return 0
    if args.worker:
        return work(args.worker[0], args.worker[1], int(args.worker[2]))
    if args.show:
        return show(*args.show)
    if not args.python.is_file():
        parser.error(f"--python {args.python}: there is no such file; make the environment as said above")
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: expected 1 or more")
    python = str(args.python.absolute())
    if args.reproducers:
        return 1 if check(python) else 0
    return write_page(python, args.jobs, args.out, args.raw, args.tool or [])


def write_page(python: str, jobs: int, out: Path, raw: Path | None, again: list[str]) -> int:
    """Run both lists and write the page with one timestamp's worth of verdicts."""
    start = time.perf_counter()
    here = describe(python)
    boards = run_boards(python, here, jobs, raw, again)
    minutes = (time.perf_counter() - start) / 60
    out.parent.mkdir(parents=True, exist_ok=True)
    text = page(boards, here["versions"], here["missing"], costs(out), minutes=minutes, jobs=jobs)
    out.write_text(text, encoding="utf-8")
    print(f"wrote {out} after {minutes:.1f} minutes")
    return 0


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
    shown = 0
    for name in LISTS:
        for case in case_list(name):
            if case.name == wanted and tool in tools(name):
                print(name, tool, wanted, judge(name, tool, case))
                shown += 1
    if not shown:
        print(f"no case {wanted!r} for a tool {tool!r}; the page lists both", file=sys.stderr)
    return 0 if shown else 2


def costs(out: Path) -> str:
    """The section that `benchmarks/folding/cost.py` wrote, kept when the scoreboard is written again."""
    if not out.exists():
        return ""
    _, mark, section = out.read_text(encoding="utf-8").partition("## Time and memory\n")
    return mark + section


if __name__ == "__main__":
    sys.exit(main())
