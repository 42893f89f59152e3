"""The table's page and the JSON file behind it: each figure with its revision, machine and versions.

A row that was not run, a promise that was not kept and a control that did not fail are all red. Figures of rows that
are not measured again stay.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.endurance.report import machine
from benchmarks.trust.row import Row
from training.provenance import revision

LEAD = """\
Every promise of the reliability reference, measured from outside on a real service on 127.0.0.1, with one worker and
with two, and measured again with its guard switched off: a control that does not fail is red, like a promise that is
not kept and a row that was not run. After each attack the next honest request has to be normal within a second and the
memory within a tenth. `make trust` measures all of it again, `python -m benchmarks.trust --part 4` a part of at most
ten minutes.
"""


def keep(out: Path, found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Put new figures beside those that are there; return all."""
    everything: dict[str, dict[str, Any]] = json.loads(out.read_text()) if out.exists() else {}
    everything |= found
    whole = out.with_name(f".{out.name}.new")
    whole.write_text(json.dumps(everything, indent=1, sort_keys=True) + "\n")
    whole.replace(out)
    return everything


def stamp() -> dict[str, Any]:
    """What a figure depends on."""
    return {"revision": revision(), "machine": machine()}


def is_green(row: Row, kept: dict[str, Any] | None) -> bool:
    """Whether a row was run with all its worker counts, was kept, and its controls failed."""
    runs = kept["runs"] if kept else {}
    wanted = [str(count) for count in row.workers]
    return row.measure is not None and all(
        runs.get(count, {}).get("is_kept") and runs[count].get("control_fails") for count in wanted
    )


def page(rows: list[Row], everything: dict[str, dict[str, Any]]) -> str:
    """Return the page."""
    red = [row.id for row in rows if not is_green(row, everything.get(row.id))]
    lines = ["# Trust", "", LEAD, f"{len(rows) - len(red)} of {len(rows)} rows are green.", ""]
    lines += [f"Red: {', '.join(red)}.", ""] if red else []
    lines += [*(f"* {row.id}: {row.why_not}." for row in rows if row.id in red and row.why_not), ""] if red else []
    lines += ["| row | promise | asked | one worker | two workers | control | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        kept = everything.get(row.id)
        cells = [
            f"`{row.id}`",
            row.promise,
            row.asked,
            *(_cell(row, kept, count) for count in (1, 2)),
            _control(row, kept),
        ]
        cells.append("yes" if is_green(row, kept) else "**no**")
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    lines += [
        "",
        "## On what",
        "",
        "Each row: `python -m benchmarks.trust ROW`. `+dirty`: the revision with changes that came in after it.",
        "",
    ]
    stamps: dict[str, list[str]] = {}
    for row in rows:
        if row.id in everything:
            stamps.setdefault(_words(everything[row.id]), []).append(row.id)
    lines += [f"* {', '.join(names)}: {words}" for words, names in stamps.items()]
    return "\n".join(lines) + "\n"


def _cell(row: Row, kept: dict[str, Any] | None, workers: int) -> str:
    if row.measure is None:
        return f"not run: {row.why_not}"
    if workers not in row.workers:
        return "-"
    run = (kept or {"runs": {}})["runs"].get(str(workers))
    if run is None:
        return "not run"
    return run["figure"] if run["is_kept"] else f"**missed**: {run['figure']}"


def _control(row: Row, kept: dict[str, Any] | None) -> str:
    if row.own_control:
        return row.own_control
    name = f"`{row.flags or row.change}`" if row.flags or row.change else "none"
    runs = (kept or {"runs": {}})["runs"]
    failing = [run.get("control_fails") for run in runs.values()]
    if not failing:
        return f"{name}: not run"
    figure = next((run["control"] for run in runs.values() if run.get("control")), "")
    return f"{name}: {'fails' if all(failing) else '**does not fail**'} ({figure})"


def _words(kept: dict[str, Any]) -> str:
    on = kept["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in on["packages"].items())
    return (
        f"{kept['revision']}, {on['at']}, {on['cores']} cores of {on['processor']}, Python {on['python']}, {packages}"
    )
