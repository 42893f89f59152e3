"""The proof that a folded ONNX model is the model it was made from, or that any two models are one function.

At the end of the ONNX flow, after `site_proof` and with what `pair` runs. It reads and changes no files.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain

import numpy as np
import onnx
from onnx import TensorProto

from ...errors import CannotJudge, FoldError
from ..core import Array
from ..refusals import Refusal, RefusalCode
from ..report import Proof
from ..rounding import BFLOAT16
from .decisions import Decisions, name_of_way, sizes_to_try, with_way
from .order import with_nodes_in_order
from .pair import Pair
from .probe import Probe, Prober, Shapes
from .protos import check, with_free_sizes
from .shapes import with_output_shapes
from .site_proof import Segment, Sites, Verdicts, require_rounded_once

_LARGER = -32.0  # a power of two, so that a float32 stays one


def prove_onnx(
    original: onnx.ModelProto,
    folded: onnx.ModelProto,
    exact: Mapping[str, Array],
    folds: Sequence[Sequence[Segment]],
    shapes: Shapes | None = None,
) -> tuple[Verdicts, Proof | None]:
    """Return the float64 error of each fold, or why it is not proved, and the proof of the whole once all folds are.

    Args:
        original: the unfolded model.
        folded: the model that claims to equal it.
        exact: the folded parameters before their rounding, by name.
        folds: the segments of each fold, in the order in which they were made.
        shapes: input -> its whole shape, for those whose free sizes are not to be chosen here.

    Raises:
        FoldError: a stored parameter is not its value rounded once, or the outputs of the two models differ.
    """
    require_rounded_once(folded, exact)
    pair = Pair(original, folded, exact)
    sites = Sites(folds, pair.before, pair.after)
    verdicts: Verdicts = [0.0] * len(folds)
    proofs: list[Proof] = []
    for probe in Prober(pair.before, shapes, sites).probes(pair.wanted):
        assert probe.trial is not None
        verdicts = sites.of_folds(probe.trial.verdicts, verdicts)
        if any(isinstance(verdict, Refusal) for verdict in verdicts):
            return verdicts, None
        try:
            proofs.append(_prove_whole(pair, probe, sites))
        except CannotJudge as doubt:
            if not proofs:  # another size that says nothing takes nothing from the first
                return sites.withdrawn(doubt.outputs, Refusal(RefusalCode.UNJUDGED, str(doubt))), None
    return verdicts, _worst(proofs)


def compare_models(
    original: onnx.ModelProto,
    folded: onnx.ModelProto,
    exact: Mapping[str, Array] | None = None,
    shapes: Shapes | None = None,
) -> Proof:
    """Return how well two models agree on random inputs of the declared shapes; no site needs to be known.

    Args:
        original: weights in memory.
        folded: has the same inputs and outputs.
        exact: float64 values of the folded model's rounded parameters, by name; without them the comparison can be
            no sharper than the rounding of the parameters.
        shapes: input -> its whole shape, for those whose free sizes are not to be chosen here.

    Raises:
        FoldError: the models differ by more than the stated limits, or only one of them runs.
        CannotJudge: an output says nothing: it is random, empty, not finite or all equal, and so before its tail; or a
            way that a model may go was taken at no size, and not by force.
    """
    original, folded = (with_output_shapes(with_free_sizes(with_nodes_in_order(model))) for model in (original, folded))
    check(original, "the original", full=False)
    check(folded, "the folded model", full=False)
    _require_same_interface(original, folded)
    require_rounded_once(folded, exact or {})
    pair = Pair(original, folded, exact)
    decisions = Decisions.of(pair.before.model), Decisions.of(pair.after.model)
    judged = [proof for proof in _judged(pair, decisions, shapes) if proof is not None]
    _require_same_for_larger_values(pair, shapes)
    proofs = [*judged, *_forced(pair, decisions, shapes)]
    for side in decisions:
        for name in side.unturned():
            reason = f"a model decides at {name!r}, always in the same way at the sizes that were tried"
            raise CannotJudge(reason, name)
    return _worst(proofs)


def _judged(pair: Pair, decisions: tuple[Decisions, Decisions], shapes: Shapes | None) -> Iterator[Proof | None]:
    """Yield the proof at two sizes, and at those at which a decision may turn; None at one that says nothing.

    Raises:
        CannotJudge: the first size says nothing.
    """
    prober, wanted = Prober(pair.before, shapes), pair.wanted | decisions[0].wanted
    probes = chain(prober.probes(wanted), prober.at_sizes(sizes_to_try(decisions), wanted))
    for number, probe in enumerate(probes):
        decisions[0].note(probe.values)
        decisions[1].note(pair.after.run(probe.feeds, decisions[1].wanted) if decisions[1].wanted else {})
        try:
            yield pair.judge(probe, pair.outputs)
        except CannotJudge:
            if not number:
                raise
            yield None


def _require_same_for_larger_values(pair: Pair, shapes: Shapes | None) -> None:
    """Raise FoldError where two models differ for values some thirty times as large, which reach a clip or a threshold.

    Not in half precision, whose range such values leave.
    """
    if any(dtype in ("float16", BFLOAT16) for dtype in pair.dtypes_of_inputs):
        return
    probe = next(iter(Prober(pair.before, shapes).probes(pair.wanted)))
    feeds = {n: np.asarray(_LARGER * v) if v.dtype.kind == "f" else v for n, v in probe.feeds.items()}
    values = pair.before.run(feeds, pair.wanted)
    with suppress(CannotJudge):  # other values that say nothing take nothing from the first
        pair.judge(replace(probe, feeds=feeds, values=values, unknown=dict(pair.before.unknown)), pair.outputs)


def _forced(pair: Pair, decisions: tuple[Decisions, Decisions], shapes: Shapes | None) -> Iterator[Proof]:
    """Yield the proof of each branch that no run has taken, of both models by force.

    Raises:
        FoldError: the models differ there.
        CannotJudge: that branch does not run at the sizes that are tried.
    """
    before, after = pair.before.model, pair.after.model
    for way in sorted(decisions[0].untaken() | decisions[1].untaken()):
        node, branch = name_of_way(before if way in decisions[0].untaken() else after, way)
        reason = f"{branch} is not taken at the sizes that were tried, and cannot be judged by force"
        if decisions[0].count != decisions[1].count:
            raise CannotJudge(f"{reason}: the other model has another number of If nodes", node)
        forced = Pair(with_way(before, way), with_way(after, way), pair.exact)
        probe = next(iter(Prober(forced.before, shapes).probes(forced.wanted)))
        try:
            yield forced.judge(probe, forced.outputs)
        except CannotJudge as doubt:
            raise CannotJudge(f"{reason}: {doubt}", node) from doubt


def _prove_whole(pair: Pair, probe: Probe, sites: Sites) -> Proof:
    """Return the proof by the outputs, or, where one of them says nothing, by what the sites make as well.

    Raises:
        CannotJudge: that says nothing either; its `outputs` are numbers of the live segments.
    """
    try:
        return pair.judge(probe, pair.outputs)
    except CannotJudge as doubt:
        names = [name for number, name in enumerate(pair.outputs) if number not in doubt.outputs]
    results = [segment.result for segment in sites.live]
    values = pair.before.run(probe.feeds, results)
    more = replace(probe, values={**values, **probe.values}, unknown={**pair.before.unknown, **probe.unknown})
    try:
        return pair.judge(more, [*results, *names], optional=results)
    except CannotJudge as doubt:
        within = tuple(number for number in doubt.outputs if number < len(results))
        raise CannotJudge(str(doubt), doubt.node, within) from doubt


def _worst(proofs: Iterable[Proof]) -> Proof:
    """Return the proof that came nearest to its limits, with the sizes of all."""
    every = list(proofs)
    worst = max(every, key=lambda proof: proof.algebra_error / proof.algebra_limit)
    return replace(worst, sizes=tuple(dict.fromkeys(size for proof in every for size in proof.sizes)))


def _require_same_interface(original: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    """Raise FoldError unless both models have the same inputs for callers and the same outputs."""
    one, other = _interface(original), _interface(folded)
    if one != other:
        raise FoldError(f"the models differ: inputs and outputs are {other}, expected {one}")


def _interface(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    given = {tensor.name for tensor in model.graph.initializer}
    inputs = [_described(value) for value in model.graph.input if value.name not in given]
    return inputs, [_described(value) for value in model.graph.output]


def _described(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type.elem_type
    return f"{value.name} ({TensorProto.DataType.Name(kind)})" if kind else str(value.name)
