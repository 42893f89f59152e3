"""A lesson's report: the figures with what made them, findings beside them, and the picture.

It writes `NAME.json` and `NAME.png`; what it prints is made of the same values.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...drawing import to_png
from ..tables import json_bytes, origin, origins_of, write_report
from .lesson import Lesson, Reading, Setting

ORIGIN = "origin"  # key of a training's own origin in the figures of `trained`


def report(lesson: Lesson, setting: Setting, folder: Path) -> dict[str, Any]:
    """Measure `lesson`, write its files into `folder`, print what was found, and return what the JSON file holds.

    Raises:
        TrainingError: as trainings and the disk do.
    """
    made_by = origin(setting.command)
    figures = lesson.measure(setting)
    runs = figures.pop("runs_made_by", None)
    origins = origins_of([{ORIGIN: made_by}] if runs is None else [{ORIGIN: each} for each in runs])
    reading = lesson.read(figures)
    held = {
        "lesson": lesson.name,
        "says": lesson.says,
        "origins": origins,
        "findings": [finding.as_dict() for finding in reading.findings],
        "figures": figures,
    }
    files = {f"{lesson.name}.json": json_bytes(held)}
    if lesson.draw is not None:
        files[f"{lesson.name}.png"] = to_png(lesson.draw(figures))
    write_report(folder, files)
    setting.tell(text(lesson, reading))
    setting.tell("\n" + "\n".join(f"wrote {folder / name}" for name in files))
    return held


def text(lesson: Lesson, reading: Reading) -> str:
    """Return claim, table and findings for a terminal."""
    parts = [f"{lesson.name}: {lesson.says}"]
    if reading.rows:
        parts.append(_aligned([reading.columns, *reading.rows]))
    parts.append("\n".join(_line(finding.as_dict()) for finding in reading.findings))
    return "\n\n".join(parts)


def _line(finding: Mapping[str, Any]) -> str:
    verdict = "as said" if finding["agrees"] else "NOT as said"
    return f"- {finding['what']}: {finding['measured']} (said: {finding['said']}; {verdict})"


def _aligned(rows: Any) -> str:
    """Return rows of cells as columns, the first to the left and the others to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    )
