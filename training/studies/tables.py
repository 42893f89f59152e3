"""Figures as text: means with their spread, tables in Markdown, rows in CSV, and where a report comes from.

Every report of a study is written with these; they measure nothing.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk import write_file
from ..errors import ArtifactError, ConfigError
from ..provenance import environment, revision


@dataclass(frozen=True)
class Spread:
    """A sample in five figures; `sd` is the sample's standard deviation (divisor n - 1), 0 for one value."""

    n: int
    mean: float
    sd: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Return the spread of `values`.

        Raises:
            ConfigError: there are none.
        """
        held = sorted(values)
        if not held:
            raise ConfigError("a spread of no values: measure at least one")
        mean = math.fsum(held) / len(held)
        squares = math.fsum((value - mean) ** 2 for value in held)
        return cls(len(held), mean, math.sqrt(squares / max(len(held) - 1, 1)), held[0], held[-1])

    def text(self, digits: int = 4) -> str:
        """Return mean ± deviation and the range."""
        return f"{self.mean:.{digits}f} ± {self.sd:.{digits}f} [{self.least:.{digits}f}, {self.most:.{digits}f}]"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table, its first column to the left and the others to the right."""
    marks = ["---", *("---:" for _ in columns[1:])]
    lines = [columns, marks, *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines) + "\n"


def csv_bytes(rows: Sequence[Mapping[str, object]]) -> bytes:
    """Return `rows` as CSV; the columns are all keys in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def json_bytes(value: object) -> bytes:
    """Return `value` as JSON for people: indented, and no NaN in it."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def origin(command: str) -> dict[str, Any]:
    """Return what makes figures now: the command, the code's revision, versions and hardware."""
    return {"command": command, "revision": revision(), "environment": environment()}


def origins_of(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each different `origin` of `runs` with `figures`, how many of them it made; the most productive first."""
    origins: list[dict[str, Any]] = []
    counts: list[int] = []
    for run in runs:
        if run["origin"] not in origins:
            origins.append(run["origin"])
            counts.append(0)
        counts[origins.index(run["origin"])] += 1
    counted = [{**each, "figures": count} for each, count in zip(origins, counts, strict=True)]
    return sorted(counted, key=lambda each: -each["figures"])


def origins_text(origins: Iterable[Mapping[str, Any]]) -> str:
    """Return `origins_of` as a list in Markdown."""
    return "".join(f"- {each['figures']} by {_origin_text(each)}\n" for each in origins)


def _origin_text(each: Mapping[str, Any]) -> str:
    machine = each["environment"]
    commit, _, dirty = each["revision"].partition("+")
    versions = ", ".join(f"{name} {machine['packages'][name]}" for name in ("torch", "numpy"))
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cpu_count']} cores"
    revision_text = commit[:12] + (f"+{dirty}" if dirty else "")
    return f"`{each['command']}` at revision {revision_text}; Python {machine['python']}, {versions}; {where}"


def write_report(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a report into `folder`, each whole.

    Raises:
        ArtifactError: the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ArtifactError(f"--out {folder}: cannot be made ({err.strerror or err}); choose another") from err
    for name, content in files.items():
        write_file(folder / name, content, "choose another --out")
