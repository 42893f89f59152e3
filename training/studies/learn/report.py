"""A lesson's report: the figures with what made them, findings beside them, and the picture.

It writes `NAME.json` and `NAME.png`; what it prints is made of the same values.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from foldserve.patience import shown, tell

from ...drawing import to_png
from ...errors import ArtifactError
from ..tables import json_bytes, origin, origins_of, write_report
from .lesson import Lesson, Reading, Setting

ORIGIN = "origin"  # key of a training's own origin in the figures of `trained`


def report(lesson: Lesson, setting: Setting, folder: Path) -> dict[str, Any]:
    """Measure `lesson`, write its files into `folder`, print what was found, and return what the JSON file holds.

    Raises:
        TrainingError: as trainings and the disk do.
    """
    made_by = origin(setting.command)
    with shown(f"measuring {lesson.name}"):
        figures = lesson.measure(setting)
    runs = figures.pop("runs_made_by", None)
    origins = origins_of([{ORIGIN: made_by}] if runs is None else [{ORIGIN: each} for each in runs])
    return _write(lesson, {"origins": origins}, figures, folder, setting.tell)


def report_again(lesson: Lesson, folder: Path, tell: Callable[[str], None] = tell) -> dict[str, Any]:
    """Make findings and picture anew of the figures in `folder`, which keep what made them.

    Raises:
        ArtifactError: there are no figures, or they cannot be read or written.
    """
    path = folder / f"{lesson.name}.json"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        figures, origins = held["figures"], held["origins"]
    except (OSError, ValueError, KeyError) as err:
        raise ArtifactError(f"{path}: no figures of this lesson ({err}); measure it without --report-only") from err
    return _write(lesson, {"origins": origins}, figures, folder, tell)


def _write(
    lesson: Lesson, made_by: dict[str, Any], figures: dict[str, Any], folder: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    reading = lesson.read(figures)
    held = {
        "lesson": lesson.name,
        "says": lesson.says,
        **made_by,
        "findings": [finding.as_dict() for finding in reading.findings],
        "figures": figures,
    }
    files = {f"{lesson.name}.json": json_bytes(held)}
    if lesson.draw is not None:
        files[f"{lesson.name}.png"] = to_png(lesson.draw(figures))
    write_report(folder, files)
    tell(text(lesson, reading))
    tell("\n" + "\n".join(f"wrote {folder / name}" for name in files))
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
