"""The proof of each fold by itself: the stretch of the graph that it changed, computed before and after in float64.

Part of the proof. Sigmoid, Relu and ArgMax hide wrong channels from a comparison of outputs, so every folded norm is
also checked alone. What cannot be proved is refused with its reason; the other norms fold.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from ...errors import FoldError
from ..core import Array
from ..crops import Shape
from ..failures import during
from ..refusals import Refusal, RefusalCode
from ..rounding import round_once
from ..tiled import give_memory_back
from ..verdict import ALGEBRA_LIMIT
from .evaluator import SMALL, Evaluator, Gap, why_unknown
from .protos import FLOAT_TYPES, Values, to_array
from .site_crops import Crop, crop_of

Verdicts = list[float | Refusal]  # of each fold: its float64 error, or why it is not proved

_STRETCH = 2**18  # numbers: 2 MB
_SMALLEST = 1e-3  # of the largest magnitude: what an error is relative to, at least


@dataclass(frozen=True)
class Segment:
    """The stretch of both graphs that one fold changed.

    Attributes:
        result: the value after it, which means the same in both graphs.
        inputs: the values before it, which do too.
        changed: names whose meaning the fold changed or that it took away.
    """

    result: str
    inputs: tuple[str, ...]
    changed: frozenset[str] = field(default=frozenset())


class Sites:
    """The folds of a graph, as they are proved.

    Args:
        folds: the segments of each, in the order in which they were made.
        before: the original.
        after: the folded model.

    Attributes:
        live: the segments that no later fold has changed; each stands for the earlier ones within it as well.
        crops: those of them that are proved on small maps of random numbers, with what they read.
    """

    def __init__(self, folds: Sequence[Sequence[Segment]], before: Evaluator, after: Evaluator):
        segments = _between_kept_values([segment for fold in folds for segment in fold])
        successors = iter([_successor(segments, i) for i in range(len(segments))])
        self._folds = [[segments[next(successors)] for _ in fold] for fold in folds]
        self.live = [segment for i, segment in enumerate(segments) if _successor(segments, i) == i]
        self.before, self.after = before, after
        crops = ((segment, crop_of((before, after), segment.result, segment.inputs)) for segment in self.live)
        self.crops = {segment: crop for segment, crop in crops if crop is not None}

    @property
    def starts(self) -> set[str]:
        """What the live segments read."""
        return {name for segment in self.live for name in segment.inputs}

    @property
    def names(self) -> set[str]:
        """What the live segments read and make."""
        return self.starts | {segment.result for segment in self.live}

    def of_folds(self, verdicts: Mapping[Segment, float | Refusal], known: Verdicts) -> Verdicts:
        """Return the largest float64 error of each fold, relative to A, or why it is not proved.

        Args:
            verdicts: of the live segments, on one probe.
            known: the verdicts on other probes.
        """
        return [
            _worst([one, *(verdicts[segment] for segment in fold)])
            for one, fold in zip(known, self._folds, strict=True)
        ]

    def withdrawn(self, numbers: Collection[int], refusal: Refusal) -> Verdicts:
        """Return `refusal` for the folds with one of these live segments, for all when there is none."""
        concerned = {self.live[number] for number in numbers} or {*self.live}
        return [refusal if concerned & {*fold} else 0.0 for fold in self._folds]


class SiteTrial:
    """Proves the sites on one set of inputs.

    On small maps where that is as strong, once the original has run; else while it runs, each site as soon as the
    values at its ends are there. So these values, which are large, are held for one site at a time, if at all.

    Args:
        sites: to be proved.
        inputs: what the message about an empty value says of the inputs.

    Attributes:
        names: see `Watcher`.
        verdicts: of the live segments that were proved so far.
    """

    def __init__(self, sites: Sites, inputs: str):
        self._sites, self._inputs = sites, inputs
        self._pending = {s: {s.result, *s.inputs} for s in sites.live if s not in sites.crops}
        self.names = frozenset(sites.names)
        self.verdicts: dict[Segment, float | Refusal] = {}

    def reached(self, values: Mapping[str, Values]) -> frozenset[str]:
        """Prove what is complete, and return the names that no further site reads; see `Watcher`."""
        for segment in [segment for segment, names in self._pending.items() if names <= values.keys()]:
            self._prove(segment, values)
        return self.names.difference(*self._pending.values())

    def finish(self, values: Mapping[str, Values], shapes: Mapping[str, Shape], unknown: Mapping[str, Gap]) -> None:
        """Prove the sites that are left.

        Args:
            values: may hold random numbers in the place of values that could not be computed.
            shapes: of all values that could be computed, and of these.
            unknown: why these could not.
        """
        for segment, crop in self._sites.crops.items():
            with _proving(segment):
                self.verdicts[segment] = _missing(crop.sources, shapes, unknown) or self._of_crop(segment, crop, shapes)
        for segment in list(self._pending):
            missing = _missing(segment.inputs, values, unknown)
            if missing is None:
                known = {name: value for name, value in values.items() if name not in unknown or name in segment.inputs}
                self._prove(segment, known)
            else:
                self.verdicts[segment] = missing
        give_memory_back()

    def _prove(self, segment: Segment, values: Mapping[str, Values]) -> None:
        del self._pending[segment]
        with _proving(segment):
            given = _given(self._sites.before, segment, values)
            self.verdicts[segment] = self._verdict(segment, given, values.get(segment.result))

    def _of_crop(self, segment: Segment, crop: Crop, shapes: Mapping[str, Shape]) -> float | Refusal:
        """Return the verdict on small maps, or on whole ones where these do not fit."""
        for given in crop.samples(shapes):
            one = self._sites.before.run(given, [segment.result]).get(segment.result)
            if one is not None:
                break
        return self._verdict(segment, given, one)

    def _verdict(self, segment: Segment, given: Mapping[str, Values], one: Values | None) -> float | Refusal:
        """Return max |folded - unfolded| / A over the segment's result, both computed from `given`.

        Args:
            segment: the stretch.
            given: its inputs, at least.
            one: the unfolded result, if it is known.
        """
        before, after, gaps = self._sites.before, self._sites.after, dict[str, Gap]()
        if one is None:
            one = before.run(given, [segment.result]).get(segment.result)
            gaps = before.unknown
        size = after.magnitude(given, segment.result)  # before `two`, which is twice as large
        two = after.run(given, [segment.result]).get(segment.result)
        gap = next(iter({**gaps, **after.unknown}.values()), None)
        if one is None or two is None or size is None:
            reason = "its magnitude is not finite" if gap is None else f"{gap.node!r}: {gap.reason}"
            return _unproved(f"{segment.result!r} cannot be computed in float64: {reason}", "")
        if one.size == 0 and one.shape == two.shape:
            return _unproved(f"{segment.result!r} is empty for inputs of {self._inputs}", "")
        if one.shape != two.shape:
            return _unproved(f"{segment.result!r} has shape {two.shape}, expected {one.shape}")
        error = _largest_difference(one, two, size)
        if not error <= ALGEBRA_LIMIT:
            return _unproved(f"in float64 {segment.result!r} is off by {error:.3g} of what it adds up")
        return error


def _largest_difference(one: Values, two: Values, size: Values) -> float:
    """Return max |two - one| / size, a stretch at a time, since whole activations are large; NaN where one is."""
    floor = max(_SMALLEST * float(np.max(size)), np.finfo(float).tiny)
    flat = [np.ravel(value) for value in (one, two, np.broadcast_to(size, one.shape))]
    largest = 0.0
    for at in range(0, one.size, _STRETCH):
        a, b, scale = (value[at : at + _STRETCH] for value in flat)
        largest = np.maximum(largest, np.max(np.abs(b - a) / np.maximum(scale, floor)))
    return float(largest)


def require_rounded_once(folded: onnx.ModelProto, exact: Mapping[str, Array]) -> None:
    """Raise FoldError unless each folded parameter is its float64 value rounded once, bit for bit."""
    for tensor in folded.graph.initializer:
        if tensor.name not in exact:
            continue
        expected = round_once(exact[tensor.name], FLOAT_TYPES[tensor.data_type])
        if not np.array_equal(to_array(tensor), expected):
            what = f"the stored parameter {tensor.name!r} is not its float64 value rounded once"
            raise FoldError(f"{what}; please report this")


def _between_kept_values(segments: Sequence[Segment]) -> list[Segment]:
    """Return the segments, those that start or end at a value which an earlier fold changed extended by that fold's.

    Such a value lies between a norm and the layer that took it: before a layer that takes what stands behind it, too,
    or behind one that takes what stands before it.
    """
    found: list[Segment] = []
    for segment in segments:
        for earlier in reversed(found):
            if segment.result in earlier.changed:
                more = (name for name in earlier.inputs if name not in segment.changed)
                inputs = tuple(dict.fromkeys((*segment.inputs, *more)))
                segment = replace(segment, result=earlier.result, inputs=inputs)
            if earlier.changed.intersection(segment.inputs):
                kept = (name for name in segment.inputs if name not in earlier.changed)
                segment = replace(segment, inputs=tuple(dict.fromkeys((*earlier.inputs, *kept))))
        found.append(segment)
    return found


def _successor(segments: Sequence[Segment], index: int) -> int:
    """Return the number of the segment that contains that of `index`, because it changed one of its ends later."""
    while True:
        ends = {segments[index].result, *segments[index].inputs}
        later = next((at for at in range(index + 1, len(segments)) if ends & segments[at].changed), None)
        if later is None:
            return index
        index = later


def _worst(verdicts: Sequence[float | Refusal]) -> float | Refusal:
    errors = [verdict for verdict in verdicts if isinstance(verdict, float)]
    return max(errors) if len(errors) == len(verdicts) else next(v for v in verdicts if isinstance(v, Refusal))


def _given(before: Evaluator, segment: Segment, values: Mapping[str, Values]) -> dict[str, Values]:
    """Return what both runs of the segment start from: its inputs, those of the model, and shapes."""
    shapes = {name for name, value in values.items() if value.size <= SMALL and value.dtype.kind in "iub"}
    names = {*before.inputs, *segment.inputs, *shapes} - {segment.result}
    return {name: value for name, value in values.items() if name in names}


@contextmanager
def _proving(segment: Segment) -> Iterator[None]:
    with during(f"proving the fold up to {segment.result!r}"):
        yield


def _missing(names: Collection[str], known: Collection[str], unknown: Mapping[str, Gap]) -> Refusal | None:
    """Return the refusal for the first of `names` that is not known, None when all are."""
    name = next((name for name in names if name not in known), None)
    if name is None:
        return None
    return _unproved(f"its input {name!r} cannot be computed: {why_unknown(name, unknown)}", "")


def _unproved(reason: str, remedy: str = "report this model to us") -> Refusal:
    return Refusal(RefusalCode.UNJUDGED, f"the fold is not proved: {reason}", remedy or None)
