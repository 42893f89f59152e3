"""What is known of a version and how it was proved: from its engine, which did prove it here, and from its manifest."""

from collections.abc import Mapping
from typing import Any

from foldserve.format.task import MULTILABEL

from ..live.model import Model
from . import schemas


def version_proof(model: Model) -> schemas.VersionProof:
    """Return what a version is, what was proved of it, and how closely."""
    engine, task = model.engine, model.task
    return schemas.VersionProof(
        name=model.name,
        version=model.version,
        task=task.name,
        threshold=task.threshold if task.name == MULTILABEL else None,
        columns=None if task.columns is None else list(task.columns),
        recipe=None if model.image is None else model.image.as_dict(),
        provider=engine.device.provider,
        fallback=engine.device.fallback_reason,
        specialised=engine.rewrite is not None,
        batch_invariant=engine.batch_invariant,
        sha256=model.artifact.sha256,
        verified=model.is_verified,
        accuracy=model.artifact.accuracy,
        golden=_golden(model) if model.is_verified else None,
        published=_published(model.artifact.manifest) if model.is_verified else None,
    )


def _golden(model: Model) -> schemas.GoldenProof:
    """Return how closely the golden answers were given; pictures that are decoded otherwise here are not asked."""
    engine = model.engine
    return schemas.GoldenProof(
        rows=model.artifact.golden.rows,
        agreeing=engine.golden.rows,
        largest_error=max(engine.deviations.values(), default=0.0),
        errors=engine.deviations,
        tolerance=engine.golden.tolerance[engine.device.provider],
    )


def _published(manifest: Mapping[str, Any]) -> schemas.PublishedProof:
    created = manifest.get("created")
    return schemas.PublishedProof(
        created=created if isinstance(created, str) else None,
        accuracy=_section(manifest, "accuracy"),
        parity=_section(manifest, "parity"),
        proof=_section(manifest, "proof"),
        fold=_fold(_section(manifest, "fold")),
    )


def _section(manifest: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """Return a section of the manifest; None where it is not there, or no object."""
    section = manifest.get(key)
    return section if isinstance(section, dict) else None


def _fold(section: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return how many norms were folded and stayed, which the manifest names one by one, and the fold's own proof."""
    if section is None:
        return None
    counts = {key: len(section[key]) for key in ("folded", "refused") if isinstance(section.get(key), list)}
    return counts | {"proof": section.get("proof")}
