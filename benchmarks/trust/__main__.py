"""Measure the table of promises.

    python -m benchmarks.trust                  all of it, some forty minutes
    python -m benchmarks.trust --part 4         a part of at most ten minutes
    python -m benchmarks.trust R8 S14           some rows
    python -m benchmarks.trust --missing        those that this revision has no figures of
    python -m benchmarks.trust --page           write the page from the figures that there are

Writes docs/results/trust.md and .json after each row, so that a run can be ended and gone on with. Exit code 1 when a
row is red. Starts services of its own on 127.0.0.1 and ends no other process.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.trust import report
from benchmarks.trust.row import Bench, Row
from benchmarks.trust.rows import PARTS, ROWS


def main() -> int:
    """Read the arguments, measure, write."""
    given = arguments()
    stamp = report.stamp()  # before anything is written: the figures are of the revision as it is now
    for row in [] if given.page else chosen(given):
        measured = run(row, given)
        everything = report.keep(given.out.with_suffix(".json"), {row.id: {**stamp, "runs": measured}})
        given.out.write_text(report.page(ROWS, everything))
    everything = report.keep(given.out.with_suffix(".json"), {})
    given.out.write_text(report.page(ROWS, everything))
    return 0 if all(report.is_green(row, everything.get(row.id)) for row in chosen(given)) else 1


def run(row: Row, given: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a row for each number of workers, and those of its control."""
    runs: dict[str, Any] = {}
    for workers in row.workers:
        bench, began = Bench(workers=workers, seconds=given.seconds, models=given.models), time.perf_counter()
        found = row.run(bench)
        entry: dict[str, Any] = {
            "figure": found.figure,
            "is_kept": found.is_kept,
            "control_fails": bool(row.own_control),
        }
        if row.flags or row.change:
            control = row.control(bench)
            entry |= {"control": control.figure, "control_fails": control.is_kept}
        runs[str(workers)] = entry | {"seconds": round(time.perf_counter() - began, 1)}
        verdict = "green" if entry["is_kept"] and entry["control_fails"] else "RED  "
        print(f"{verdict} {row.id} x{workers}: {found.figure} | control: {entry.get('control')}", file=sys.stderr)
    return runs


def chosen(given: argparse.Namespace) -> list[Row]:
    """Return the rows that were asked for and can be run."""
    rows = [row for row in ROWS if row.measure is not None or given.page]
    if given.rows:
        rows = [row for row in rows if row.id in given.rows]
    if given.part:
        rows = [row for row in rows if row.part == given.part]
    if given.missing:
        kept = report.keep(given.out.with_suffix(".json"), {})
        now = report.stamp()["revision"]
        rows = [row for row in rows if kept.get(row.id, {}).get("revision") != now]
    return rows


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="such as R8; all where none is named")
    parser.add_argument("--part", type=int, choices=PARTS, help="rows that take at most ten minutes together")
    parser.add_argument("--missing", action="store_true", help="only rows without figures of this revision")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "trust.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
