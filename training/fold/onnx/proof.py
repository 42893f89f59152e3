"""Proves a folded ONNX model against the original, or raises; `fold_onnx` never returns without it.

At the end of the ONNX flow. Four questions: is every stored parameter its float64 value rounded once; does each site
compute the same in float64; does the whole model; and is the model as stored, run by onnxruntime without optimisations,
as close to the float64 original as rounding allows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from ...errors import FoldError
from ..core import Array
from ..report import Proof
from ..rounding import round_once
from .deployed import deployed_errors
from .evaluator import SMALL, Evaluator
from .probe import Prober, Shapes
from .protos import FLOAT_TYPES, Values, to_array

ALGEBRA_LIMIT = 1e-11  # measured errors are 1e-16 to 1e-14, a wrong fold is off by 1e-1
_LAST_BIT = 2.0**-52


@dataclass(frozen=True)
class Segment:
    """The stretch of both graphs that one fold changed.

    Attributes:
        result: the value behind it, which means the same in both graphs.
        inputs: the values before it, which do too.
        changed: names whose meaning the fold changed or that it took away.
    """

    result: str
    inputs: tuple[str, ...]
    changed: frozenset[str] = field(default=frozenset())


def prove_onnx(
    original: onnx.ModelProto,
    folded: onnx.ModelProto,
    exact: Mapping[str, Array],
    folds: Sequence[Sequence[Segment]],
    shapes: Shapes | None = None,
) -> tuple[list[float], Proof]:
    """Return the largest float64 error of each fold, relative to A, and the proof of the whole.

    Args:
        original: the unfolded model.
        folded: the model that claims to equal it.
        exact: the folded parameters before their rounding, by name.
        folds: the segments of each fold, in the order in which they were made.
        shapes: input -> its whole shape, for those whose free sizes are not to be chosen here.

    Raises:
        FoldError: one of the four questions has the wrong answer, or could not be asked at all.
    """
    require_rounded_once(folded, exact)
    before, after = Evaluator(original), Evaluator(folded, exact)
    segments = [segment for fold in folds for segment in fold]
    live = [s for i, s in enumerate(segments) if _successor(segments, i) == i]
    keep = {name for segment in live for name in (segment.result, *segment.inputs)}
    outputs = [value.name for value in original.graph.output]
    starts = {name for segment in live for name in segment.inputs}
    probe = Prober(before, shapes).probe(keep | set(outputs), starts)
    feeds, values = probe.feeds, probe.values
    known = {name: value for name, value in values.items() if name not in probe.unknown}
    errors = {id(s): _segment_error(before, after, s, {**feeds, **values}, known.get(s.result)) for s in live}
    truth = {name: values[name] for name in outputs if name in values}
    if not truth:  # all lie behind an operation that is unknown here: judge what stands before it
        truth = {segment.result: known[segment.result] for segment in live if segment.result in known}
    del known, values, probe  # large: every site's input and result
    algebra, amplification = end_to_end(before, after, feeds, truth)
    limit = ALGEBRA_LIMIT * amplification
    if not algebra <= limit:
        raise FoldError(f"proof failed: end to end the float64 error is {algebra:.2e}, expected at most {limit:.2e}")
    deployed = deployed_errors(original, folded, feeds, truth, amplification)
    per_segment = iter([errors[id(segments[_successor(segments, i)])] for i in range(len(segments))])
    return [max(next(per_segment) for _ in fold) for fold in folds], Proof(algebra, limit, amplification, *deployed)


def require_rounded_once(folded: onnx.ModelProto, exact: Mapping[str, Array]) -> None:
    """Raise FoldError unless each folded parameter is its float64 value rounded once, bit for bit."""
    for tensor in folded.graph.initializer:
        if tensor.name not in exact:
            continue
        expected = round_once(exact[tensor.name], FLOAT_TYPES[tensor.data_type])
        if not np.array_equal(to_array(tensor), expected):
            raise FoldError(f"proof failed: stored parameter {tensor.name!r} is not its float64 value rounded once")


def _successor(segments: Sequence[Segment], index: int) -> int:
    """Return the fold whose segment contains that of `index`, because it changed one of its ends later."""
    ends = {segments[index].result, *segments[index].inputs}
    for later in range(index + 1, len(segments)):
        if ends & segments[later].changed:
            return _successor(segments, later)
    return index


def _segment_error(
    before: Evaluator, after: Evaluator, segment: Segment, values: Mapping[str, Values], known: Values | None
) -> float:
    """Return max |folded - unfolded| / A over the segment's result, both computed from the same inputs.

    Args:
        before: the unfolded model.
        after: the folded one.
        segment: the stretch to compare.
        values: inputs of the model and of the segment, and shapes.
        known: the segment's result in the unfolded model, where that was computed from these inputs already.
    """
    inputs = {n: v for n, v in values.items() if n in segment.inputs or (v.size <= SMALL and v.dtype.kind in "iub")}
    given = {**{name: values[name] for name in before.inputs if name in values}, **inputs}
    given.pop(segment.result, None)
    one = before.run(given, [segment.result]).get(segment.result) if known is None else known
    reasons = before.unknown
    two = after.run(given, [segment.result]).get(segment.result)
    scale = after.magnitude(given, segment.result)
    if one is None or two is None or scale is None:
        why = next(iter({**reasons, **after.unknown}.values()), "it was not computed")
        raise FoldError(f"proof impossible: {segment.result!r} cannot be evaluated in float64: {why}")
    if one.shape != two.shape or one.size == 0:
        raise FoldError(f"proof failed: {segment.result!r} has shape {two.shape}, expected {one.shape}")
    largest = float(np.max(scale))
    error = float(np.max(np.abs(two - one) / np.maximum(scale, max(1e-3 * largest, np.finfo(float).tiny))))
    if not error <= ALGEBRA_LIMIT:
        raise FoldError(
            f"proof failed: {segment.result!r} differs by {error:.2e} of its magnitude in float64, "
            f"expected at most {ALGEBRA_LIMIT:.0e}"
        )
    return error


def end_to_end(
    before: Evaluator, after: Evaluator, feeds: Mapping[str, Values], truth: Mapping[str, Values]
) -> tuple[float, float]:
    """Return the error of the whole model in float64, and how much it enlarges a last-bit change of its input."""
    folded = after.run(feeds, truth)
    rng = np.random.default_rng(1)
    nudged = {
        name: value * (1 + _LAST_BIT * rng.choice([-1.0, 1.0], value.shape)) if value.dtype.kind == "f" else value
        for name, value in feeds.items()
    }
    moved = before.run(nudged, truth)
    error = max((relative(folded[n], truth[n]) for n in truth if n in folded), default=0.0)
    if any(name not in folded for name in truth):
        return float("inf"), 1.0
    change = max((relative(moved[n], truth[n]) for n in truth if n in moved), default=0.0)
    return error, max(1.0, change / _LAST_BIT)


def relative(found: Values, expected: Values) -> float:
    """Return max |found - expected| / max |expected|; infinite when shapes or non-finite places differ."""
    if found.shape != expected.shape:
        return float("inf")
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    largest = float(np.max(np.abs(expected[finite])))
    difference = float(np.max(np.abs(found[finite] - expected[finite])))
    return difference / largest if largest > 0 else (0.0 if difference == 0 else float("inf"))
