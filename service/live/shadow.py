"""A candidate beside the version that serves: it gets a copy of live inputs; its answers are compared and never sent.

What it costs is bounded: while the candidate lags, copies are dropped. The counts are kept in the state folder, so
that the report of any worker is that of all, also over a restart.
"""

import asyncio
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..batching.request import SHADOW, Answer
from ..errors import ServiceError
from ..processes.counters import Counters
from ..tensors import Array
from .model import Model
from .state import Shadow

_log = logging.getLogger(__name__)

_MAX_ROWS = 1024  # of copies that are pending at once
_DEADLINE_SECONDS = 1.0


@dataclass(slots=True)
class Comparison:
    """What was compared; sums only, so that they can be added up. Seconds are of the runs that held the rows."""

    rows: float = 0
    agreeing_rows: float = 0
    live_confidence: float = 0
    candidate_confidence: float = 0
    largest_difference: float = 0
    requests: float = 0
    live_seconds: float = 0
    candidate_seconds: float = 0
    dropped: float = 0
    failed: float = 0

    def report(self) -> dict[str, Any]:
        """Return agreement, confidence and latency; None where nothing was compared."""
        rows, requests = self.rows or None, self.requests or None
        return {
            "rows": int(self.rows),
            "agreement": rows and self.agreeing_rows / rows,
            "largest_difference": self.largest_difference,
            "confidence_shift": rows and (self.candidate_confidence - self.live_confidence) / rows,
            "live_infer_ms": requests and self.live_seconds / requests * 1000,
            "candidate_infer_ms": requests and self.candidate_seconds / requests * 1000,
            "dropped": int(self.dropped),
            "failed": int(self.failed),
        }


_NAMES = [field.name for field in fields(Comparison)]


def compare(live: Answer, candidate: Answer) -> Comparison:
    """Compare two answers to the same inputs."""
    ours, theirs = live.outputs, candidate.outputs
    shared = [name for name in ours if name in theirs and ours[name].shape == theirs[name].shape]
    floats = [name for name in shared if np.issubdtype(ours[name].dtype, np.floating)]
    comparison = Comparison(
        rows=len(next(iter(ours.values()))),
        agreeing_rows=int((decisions(ours) == decisions(theirs)).sum()),
        requests=1,
        live_seconds=live.infer_seconds,
        candidate_seconds=candidate.infer_seconds,
    )
    for name in floats:
        difference = float(np.abs(ours[name].astype(np.float64) - theirs[name]).max(initial=0.0))
        comparison.largest_difference = max(comparison.largest_difference, difference)
    if "probabilities" in floats:
        comparison.live_confidence = float(ours["probabilities"].max(axis=1).sum())
        comparison.candidate_confidence = float(theirs["probabilities"].max(axis=1).sum())
    return comparison


class _Candidate:
    """A comparison that is going on."""

    def __init__(self, shadow: Shadow, model: Model, folder: Path | None) -> None:
        self.shadow = shadow
        self.model = model
        self.pending_rows = 0
        self._folder = folder and folder / model.name / f"{shadow.version}-{shadow.since}"
        self._counters = self._open_counters()

    def count(self, comparison: Comparison) -> None:
        """Add to the comparisons so far."""
        self._counters.add(astuple(comparison))

    def totals(self) -> Comparison:
        """Return the sum of all workers."""
        return Comparison(*self._counters.totals())

    def end(self) -> None:
        """Take the counts of all workers away."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _open_counters(self) -> Counters:
        maxima = [_NAMES.index("largest_difference")]
        try:
            return Counters(len(_NAMES), self._folder, maxima)
        except OSError as err:
            _log.warning("counts of a shadow cannot be written", extra={"reason": err.strerror})
            return Counters(len(_NAMES), None, maxima)


class Shadows:
    """The candidates of one worker, by the name of their model.

    Args:
        folder: writable, where counts are kept for all workers and over a restart; None keeps them to this one.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder / "shadows" if folder else None
        self._candidates: dict[str, _Candidate] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(self, name: str, shadow: Shadow | None, loaded: Mapping[int, Model]) -> None:
        """Begin or end a comparison, as was decided; one whose time is over keeps its report until then."""
        current = self._candidates.get(name)
        if current is not None and current.shadow != shadow:
            self._candidates.pop(name).end()
        model = loaded.get(shadow.version) if shadow else None
        if shadow is None or model is None:
            self._candidates.pop(name, None)
        elif name in self._candidates:
            self._candidates[name].model = model
        else:
            self._candidates[name] = _Candidate(shadow, model, self._folder)

    def watches(self, name: str) -> bool:
        """Return whether a candidate may want a copy of the inputs of a model."""
        candidate = self._candidates.get(name)
        return candidate is not None and time.time() < candidate.shadow.until

    def offer(self, model: Model, inputs: Mapping[str, Array], answer: Answer) -> None:
        """Let the candidate answer the same inputs, if there is one and it keeps up; returns at once."""
        candidate = self._candidates.get(model.name)
        if candidate is None or candidate.model is model or not self.watches(model.name):
            return
        rows = len(next(iter(inputs.values())))
        if candidate.pending_rows + rows > _MAX_ROWS:
            candidate.count(Comparison(dropped=1))
            return
        candidate.pending_rows += rows
        task = asyncio.get_running_loop().create_task(_run(candidate, inputs, answer, rows))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def report(self, name: str, shadow: Shadow) -> dict[str, Any]:
        """Return the result of one comparison, over all workers."""
        candidate = self._candidates.get(name)
        is_this = candidate is not None and candidate.shadow == shadow
        return (candidate.totals() if candidate and is_this else Comparison()).report()


async def _run(candidate: _Candidate, inputs: Mapping[str, Array], live: Answer, rows: int) -> None:
    """Let a candidate answer, and count how its answer compares."""
    try:
        with candidate.model.in_use():
            deadline = time.perf_counter() + _DEADLINE_SECONDS
            answer = await candidate.model.batcher.infer(inputs, deadline=deadline, source=SHADOW)
        candidate.count(compare(live, answer))
    except ServiceError:
        candidate.count(Comparison(failed=1))
    except Exception:
        candidate.count(Comparison(failed=1))
        _log.exception("comparing a shadow failed")
    finally:
        candidate.pending_rows -= rows


def decisions(outputs: Mapping[str, Array]) -> Array:
    """Return what a model decided for each row: its class, or the place of its largest value."""
    if "class_id" in outputs:
        return outputs["class_id"].reshape(len(outputs["class_id"]))
    first = next(iter(outputs.values()))
    largest: Array = first.reshape(len(first), -1).argmax(axis=1)
    return largest
