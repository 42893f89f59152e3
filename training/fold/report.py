"""What a fold did and why not, as data: one `Site` per norm, a `Report` for the model, a table for people.

Shared by the PyTorch and the ONNX front end. It decides nothing; it is what `explain` returns, what the command line
prints and what the manifest keeps.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import FoldError
from .refusals import Refusal, RefusalCode

__all__ = ["Proof", "RefusalCode", "Report", "Site"]


@dataclass(frozen=True)
class Site:
    """One norm of the model: folded, with its figures, or refused, with the reason.

    Attributes:
        path: module path in the user's model, such as "features.1"; the node's name where there is no module.
        node: name of the norm in the graph that was read.
        kind: what was recognised, such as "batch_norm" or "affine chain".
        code: None when folded, else why not.
        reason: one sentence with the facts; for a folded norm, what it became.
        remedy: what would make it foldable; empty when folded.
        into: names of the parameters' layers that took the norm.
        channels: number of channels, 0 when not known.
        scale_range: least and largest scale of the affine, None when not known.
        dead_channels: how many channels have scale zero; their filters are now zeros and may be pruned.
        max_ulp: largest distance of a stored parameter from its float64 value, in units in the last place (<= 0.5).
        cancellation: largest kappa / |bias|, how much of the bias' magnitude cancelled; harmless in float64.
        proof_error: largest |folded - unfolded| / A in float64, A being the layer on absolute values (limit 1e-11).
        notes: remarks, such as untied weights or statistics that were never updated.
    """

    path: str
    node: str
    kind: str
    code: RefusalCode | None = None
    reason: str = ""
    remedy: str = ""
    into: tuple[str, ...] = ()
    channels: int = 0
    scale_range: tuple[float, float] | None = None
    dead_channels: int = 0
    max_ulp: float | None = None
    cancellation: float | None = None
    proof_error: float | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def refused(cls, path: str, node: str, kind: str, refusal: Refusal, channels: int = 0) -> "Site":
        """Return the site of a norm that stays, from the refusal that stopped it."""
        return cls(path, node, kind, refusal.code, refusal.reason, refusal.remedy, channels=channels)

    @property
    def is_folded(self) -> bool:
        """True when the norm is gone from the folded model."""
        return self.code is None

    def as_dict(self) -> dict[str, Any]:
        """Return the site as plain JSON values."""
        return _plain(self)


@dataclass(frozen=True)
class Proof:
    """What was measured of the whole model before it was returned.

    Attributes:
        algebra_error: end to end in float64, exact folded parameters: max |difference| / max |output|.
        algebra_limit: 1e-11 times `amplification`; the error is below it.
        amplification: relative change of the output over that of a last-bit change of the input, at least 1.
        deployed_error: stored parameters in their own dtype against the float64 original, measured alike.
        original_error: the same for the unfolded model, what the deployed error is to be judged by.
        deployed_limit: the bound that the deployed error kept.
        sizes: the shapes of the inputs of each run, such as "x 2x3x12x12"; empty where nothing was chosen.
    """

    algebra_error: float
    algebra_limit: float
    amplification: float
    deployed_error: float
    original_error: float
    deployed_limit: float
    sizes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """Every norm of the model, folded or refused, and the proof of the model as a whole.

    Attributes:
        folded: norms that are gone.
        refused: norms that stay, each with code, reason and remedy.
        form: "module" for the user's own classes, "graph" for a GraphModule, "onnx" for an ONNX graph.
        form_reason: why it could not stay the user's own classes; empty otherwise.
        proof: None when nothing was folded.
        notes: remarks on the model as a whole, such as a wrapper that it was taken out of.
        entrances: other ways into the model than the traced one that read a changed parameter, such as "embed()".
    """

    folded: tuple[Site, ...] = ()
    refused: tuple[Site, ...] = ()
    form: str = "module"
    form_reason: str = ""
    proof: Proof | None = None
    notes: tuple[str, ...] = ()
    entrances: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values, sites in graph order."""
        return _plain(self)

    def to_json(self) -> str:
        """Return the report as JSON text with sorted keys."""
        return json.dumps(self.as_dict(), indent=2, sort_keys=True)

    def require_all_folded(self) -> None:
        """Raise FoldError when a norm had to stay, naming each with its reason and remedy."""
        if self.refused:
            lines = [f"  {site.path} ({site.code}): {site.reason}; {site.remedy}" for site in self.refused]
            raise FoldError(f"{len(self.refused)} norms cannot be folded exactly:\n" + "\n".join(lines))

    def table(self) -> str:
        """Return the report as text for a terminal: one line per norm, then a summary."""
        rows = [_folded_row(site) for site in self.folded] + [_refused_row(site) for site in self.refused]
        lines = _aligned([("norm", "verdict", "detail"), *rows]) if rows else []
        return "\n".join([*lines, *self._summary()])

    def __str__(self) -> str:
        return self.table()

    def _summary(self) -> list[str]:
        lines = [f"{len(self.folded)} folded, {len(self.refused)} refused"]
        lines += self.notes
        if self.form_reason:
            lines.append(f"form: {self.form} ({self.form_reason})")
        if self.proof is not None:
            p = self.proof
            lines.append(
                f"proof: float64 end to end {p.algebra_error:.1e} (limit {p.algebra_limit:.1e}), "
                f"deployed {p.deployed_error:.1e} (unfolded {p.original_error:.1e}, limit {p.deployed_limit:.1e})"
            )
            lines += [f"proved for inputs of {'; '.join(p.sizes)}"] if p.sizes else []
        if self.entrances:
            lines.append(f"not promised, other ways into the model: {', '.join(self.entrances)}")
        return lines


def _plain(record: Site | Report) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(asdict(record)))
    return values


def _folded_row(site: Site) -> tuple[str, str, str]:
    facts = ["into " + ", ".join(site.into)]
    if site.scale_range is not None:
        facts.append(f"scale {site.scale_range[0]:.3g}..{site.scale_range[1]:.3g}")
    if site.max_ulp is not None:
        facts.append(f"{site.max_ulp:.2f} ulp")
    if site.proof_error is not None:
        facts.append(f"proof {site.proof_error:.1e}")
    if site.dead_channels:
        facts.append(f"{site.dead_channels} dead channels")
    return site.path, "folded", "; ".join([*facts, *site.notes])


def _refused_row(site: Site) -> tuple[str, str, str]:
    return site.path, str(site.code), f"{site.reason}; to fold it: {site.remedy}"


def _aligned(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{path:<{first}}  {verdict:<{second}}  {detail}".rstrip() for path, verdict, detail in rows]
