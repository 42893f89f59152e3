"""A candidate beside the version that serves: it gets a copy of live inputs; its answers are compared and never sent.

What it costs is bounded: while the candidate is behind, copies are dropped. Each worker counts for itself and leaves
its counts in the state folder, so that the report of any of them is that of all.
"""

import asyncio
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..batching.request import Answer
from ..errors import ServiceError
from ..tensors import Array
from .model import Model
from .state import Shadow

_log = logging.getLogger(__name__)

_MAX_ROWS = 1024  # of copies that are on their way at once
_DEADLINE_SECONDS = 1.0
_WRITE_SECONDS = 1.0


@dataclass(slots=True)
class Counts:
    """What was compared; sums only, so that workers can be added up. Seconds are of the runs that held the rows."""

    rows: int = 0
    agreeing_rows: int = 0
    live_confidence: float = 0.0
    candidate_confidence: float = 0.0
    largest_difference: float = 0.0
    requests: int = 0
    live_seconds: float = 0.0
    candidate_seconds: float = 0.0
    dropped: int = 0
    failed: int = 0

    def add(self, other: "Counts") -> None:
        """Take in what another worker counted."""
        for item in fields(self):
            ours, theirs = getattr(self, item.name), getattr(other, item.name)
            setattr(self, item.name, max(ours, theirs) if item.name == "largest_difference" else ours + theirs)

    def compare(self, live: Answer, candidate: Answer) -> None:
        """Count two answers to the same inputs."""
        ours, theirs = live.outputs, candidate.outputs
        shared = [name for name in ours if name in theirs and ours[name].shape == theirs[name].shape]
        floats = [name for name in shared if np.issubdtype(ours[name].dtype, np.floating)]
        rows = len(next(iter(ours.values())))
        self.rows += rows
        self.requests += 1
        self.agreeing_rows += int((decisions(ours) == decisions(theirs)).sum())
        for name in floats:
            difference = float(np.abs(ours[name].astype(np.float64) - theirs[name]).max(initial=0.0))
            self.largest_difference = max(self.largest_difference, difference)
        if "probabilities" in floats:
            self.live_confidence += float(ours["probabilities"].max(axis=1).sum())
            self.candidate_confidence += float(theirs["probabilities"].max(axis=1).sum())
        self.live_seconds += live.infer_seconds
        self.candidate_seconds += candidate.infer_seconds

    def report(self) -> dict[str, Any]:
        """Return agreement, confidence and latency; None where nothing was compared."""
        rows, requests = self.rows or None, self.requests or None
        return {
            "rows": self.rows,
            "agreement": rows and self.agreeing_rows / rows,
            "largest_difference": self.largest_difference,
            "confidence_shift": rows and (self.candidate_confidence - self.live_confidence) / rows,
            "live_infer_ms": requests and self.live_seconds / requests * 1000,
            "candidate_infer_ms": requests and self.candidate_seconds / requests * 1000,
            "dropped": self.dropped,
            "failed": self.failed,
        }


class _Candidate:
    """One comparison that runs."""

    def __init__(self, shadow: Shadow, model: Model) -> None:
        self.shadow = shadow
        self.model = model
        self.counts = Counts()
        self.rows_on_their_way = 0
        self.written_at = 0.0


class Shadows:
    """The candidates of one worker, by the name of their model.

    Args:
        folder: where counts are left for the other workers; None keeps them to this one.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder / "shadows" if folder else None
        self._candidates: dict[str, _Candidate] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(self, name: str, shadow: Shadow | None, loaded: Mapping[int, Model]) -> None:
        """Begin or end a comparison, as was decided."""
        current = self._candidates.get(name)
        model = loaded.get(shadow.version) if shadow and shadow.until > time.time() else None
        if model is None or shadow is None:
            self._candidates.pop(name, None)
        elif current is None or current.shadow != shadow or current.model is not model:
            self._candidates[name] = _Candidate(shadow, model)

    def watches(self, name: str) -> bool:
        """Return whether a candidate may want a copy of what a model is asked."""
        return name in self._candidates

    def offer(self, model: Model, inputs: Mapping[str, Array], answer: Answer) -> None:
        """Let the candidate answer the same inputs, if there is one and it keeps up; returns at once."""
        candidate = self._candidates.get(model.name)
        if candidate is None or candidate.model is model or time.time() > candidate.shadow.until:
            return
        rows = len(next(iter(inputs.values())))
        if candidate.rows_on_their_way + rows > _MAX_ROWS:
            candidate.counts.dropped += 1
            return
        candidate.rows_on_their_way += rows
        task = asyncio.get_running_loop().create_task(self._compare(candidate, inputs, answer, rows))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def report(self, name: str, shadow: Shadow) -> dict[str, Any]:
        """Return what all workers have counted for one comparison."""
        counts = Counts()
        candidate = self._candidates.get(name)
        if candidate is not None and candidate.shadow == shadow:
            counts.add(candidate.counts)
        for other in self._others(name, shadow):
            counts.add(other)
        return counts.report()

    async def _compare(self, candidate: _Candidate, inputs: Mapping[str, Array], live: Answer, rows: int) -> None:
        try:
            with candidate.model.in_use():
                deadline = time.perf_counter() + _DEADLINE_SECONDS
                answer = await candidate.model.batcher.infer(inputs, deadline=deadline)
            candidate.counts.compare(live, answer)
        except ServiceError:
            candidate.counts.failed += 1
        except Exception:
            candidate.counts.failed += 1
            _log.exception("a shadow could not be compared")
        finally:
            candidate.rows_on_their_way -= rows
        if self._folder and time.monotonic() - candidate.written_at > _WRITE_SECONDS:
            candidate.written_at = time.monotonic()
            _write(self._folder, candidate)

    def _others(self, name: str, shadow: Shadow) -> Iterator[Counts]:
        for path in self._folder.glob(f"{name}.*.json") if self._folder else ():
            try:
                document = json.loads(path.read_bytes())
                if Shadow(**document["shadow"]) == shadow and document["pid"] != os.getpid():
                    yield Counts(**document["counts"])
            except (OSError, ValueError, KeyError, TypeError):
                _log.warning("counts of a shadow cannot be read", extra={"path": str(path)})


def decisions(outputs: Mapping[str, Array]) -> Array:
    """Return what a model decided for each row: its class, or the place of its largest value."""
    if "class_id" in outputs:
        return outputs["class_id"].reshape(len(outputs["class_id"]))
    first = next(iter(outputs.values()))
    largest: Array = first.reshape(len(first), -1).argmax(axis=1)
    return largest


def _write(folder: Path, candidate: _Candidate) -> None:
    """Leave the counts of this worker, whole or not at all."""
    document = {"pid": os.getpid(), "shadow": asdict(candidate.shadow), "counts": asdict(candidate.counts)}
    path = folder / f"{candidate.model.name}.{os.getpid()}.json"
    try:
        folder.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(document))
        temporary.replace(path)
    except OSError as err:
        _log.warning("counts of a shadow cannot be written", extra={"reason": err.strerror})
