"""What publishing prints: what was folded, what stayed and why, what was proved and how closely, and how to ask it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..fold.report import Report
from .proof import Proof

MADE = "only made inputs were proved; give --examples for a proof on real ones"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A network that was proved and, unless it was a dry run, published.

    Attributes:
        folder: of the version; None for a dry run.
        name: of the model.
        task: of `foldserve.format.task`.
        report: of the fold; None where nothing could be folded.
        proof: what was measured.
        manifest: as it was written, without what names the version.
        notes: what was recognised, left out or cannot be proved.
        question: a command that asks the model.
    """

    folder: Path | None
    name: str
    task: str
    report: Report | None
    proof: Proof
    manifest: Mapping[str, Any]
    notes: tuple[str, ...]
    question: str

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "folder": None if self.folder is None else str(self.folder),
            "name": self.name,
            "task": self.task,
            "fold": None if self.report is None else self.report.as_dict(),
            "proof": self.proof.as_dict(),
            "accuracy": self.manifest.get("accuracy"),
            "promotion": self.manifest.get("promotion"),
            "notes": list(self.notes),
            "ask": self.question,
        }

    def to_json(self) -> str:
        """Return everything as JSON text with sorted keys."""
        return json.dumps(self.as_dict(), indent=2, sort_keys=True)

    def __str__(self) -> str:
        """Return what the command prints."""
        lines = [*([] if self.report is None else [self.report.table()]), *self.notes, *self._proved()]
        promotion = self.manifest.get("promotion")
        if promotion is not None:
            lines.append(f"{'promoted' if promotion['promoted'] else 'NOT promoted'}: {promotion['reason']}")
        if self.folder is None:
            return "\n".join([*lines, "nothing was written (--dry-run)"])
        return "\n".join([*lines, f"published {self.folder}", f"ask it: {self.question}"])

    def _proved(self) -> list[str]:
        proof = self.proof
        kind = "made inputs" if proof.examples == "made" else proof.examples
        worst = ", ".join(f"{name} {error:.1e}" for name, error in proof.deviations.items())
        lines = [
            f"proved on {proof.rows} {kind} against a {proof.oracle}: {worst or 'equal'} of the largest value at most "
            f"(allowed {proof.tolerance.cpu:.0e}; float32 costs the network itself {proof.tolerance.float32_cost:.0e})"
        ]
        if proof.agreement is not None:
            lines[0] += f"; same class on {proof.agreement:.1%}, probabilities {proof.probability_difference:.1e} apart"
        if proof.examples == "made":
            lines.append(MADE)
        return lines
