"""Two ONNX models run on the same inputs and the same draws: in float64, and by onnxruntime in their own dtypes.

Used by `model_proof`. Where an operation is not known to the float64 evaluation, the runtime alone is judged by; what
does not fit the inputs that were tried, or draws numbers that cannot be handed over, is judged by nothing.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from torch import Tensor

from ...errors import CannotJudge, FoldError
from ..core import Array
from ..report import Proof
from ..verdict import STEP, Runs, judge
from .evaluator import Cause, Evaluator, Gap
from .probe import Probe, stored_form
from .protos import FLOAT_TYPES, Values, coarsest_roundoff, is_boxed, to_array, unit_roundoff, widened
from .randomness import draws_of, with_draws_as_inputs
from .runtime import CannotRunError, outputs_of
from .tails import tail_of

_DEPLOYED_STEP = 2.0**-10  # of a change of the input where only the runtime can say what comes of it
_SINGLE = unit_roundoff("float32")

Named = Mapping[str, Values]


@dataclass(frozen=True)
class _Stored:
    """What both models give in their own dtypes; in float64 with stored parameters where onnxruntime runs neither."""

    before: Named
    after: Named
    is_runtime: bool


@dataclass(frozen=True)
class _Row:
    """What is compared of one value, and of those before its tail: see `Runs` for the lists."""

    number: int
    names: list[str]
    oracle: list[Values]
    moved: list[Values]
    folded: list[Values]
    deployed_original: list[Values]
    deployed_folded: list[Values]


class _NudgedParameters(Mapping[str, Values]):
    """The parameters of a model, each moved by a part of itself whenever it is read."""

    def __init__(self, model: onnx.ModelProto):
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def __getitem__(self, name: str) -> Values:
        value: Values = widened(to_array(self._tensors[name]))
        return _nudged({name: value}, STEP)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class Pair:
    """The original and another model.

    Attributes:
        before: runs the original in float64.
        after: runs the other one, with its exact parameters where they are known.
        outputs: names of the outputs, the same in both.
        wanted: values of the original that are compared or handed over: outputs, their tails, and draws.
        exact: the float64 values of the other model's rounded parameters, None where they are not known.
    """

    def __init__(self, original: onnx.ModelProto, folded: onnx.ModelProto, exact: Mapping[str, Array] | None):
        self.before, self.after = Evaluator(original), Evaluator(folded, exact)
        self.outputs = [value.name for value in original.graph.output]
        self._tails = {n: (_with_tail(self.before, n), _with_tail(self.after, n)) for n in self.outputs}
        self._draws = draws_of(self.before.model), draws_of(self.after.model)
        self.wanted = {*(name for tail, _ in self._tails.values() for name in tail), *self._draws[0]}
        self._folded, self.exact = folded, exact

    @property
    def dtypes_of_inputs(self) -> list[str]:
        """The float dtypes that the original's inputs are declared to have."""
        kinds = [value.type.tensor_type.elem_type for value in self.before.model.graph.input]
        return [FLOAT_TYPES[kind] for kind in kinds if kind in FLOAT_TYPES]

    def judge(self, probe: Probe, names: Sequence[str], optional: Collection[str] = ()) -> Proof:
        """Return the agreement of the two models on one probe.

        Args:
            probe: holds what `wanted` and `names` say of the original, as far as it could be computed.
            names: of the values to compare, made by both models.
            optional: those of them that need not be computable.

        Raises:
            FoldError: the models differ by more than the stated limits, or only one of them runs.
            CannotJudge: a value says nothing; `outputs` are numbers in `names`.
        """
        tails = [self._tails.get(name, ([name], [name])) for name in names]
        moved = self.before.run(_nudged(probe.feeds, STEP), [name for tail, _ in tails for name in tail])
        other = self.after.run(probe.feeds, [name for _, tail in tails for name in tail])
        stored = self._stored(probe, tails)
        rows, doubts = list[_Row](), dict[int, tuple[str, str]]()
        for number, (one, two) in enumerate(tails):
            gap = probe.unknown.get(one[0])
            if one[0] in probe.values:
                rows += self._row(number, probe.values, moved, other, stored, one, two)
            elif gap is not None and gap.cause is Cause.UNSUPPORTED and stored.is_runtime:
                rows.append(self._runtime_row(number, probe, stored, one[:1], two[0]))
            elif names[number] not in optional:
                doubts[number] = _doubt(names[number], gap)
        try:
            proof = self._verdict(rows, names, probe, stored)
        except CannotJudge as doubt:
            doubts |= {rows[i].number: (doubt.node.strip("'"), str(doubt)) for i in doubt.outputs}
            if not doubts:
                raise
        if doubts:
            node, reason = next(iter(doubts.values()))
            raise CannotJudge(reason, node, tuple(doubts))
        return replace(proof, sizes=(probe.sizes,))

    def _verdict(self, rows: list[_Row], names: Sequence[str], probe: Probe, stored: _Stored) -> Proof:
        runs = Runs(
            oracle=_tensors(row.oracle for row in rows),
            moved=lambda: _tensors(row.moved for row in rows),
            folded=lambda: _tensors(row.folded for row in rows),
            deployed_original=lambda: _tensors(row.deployed_original for row in rows),
            deployed_folded=lambda: _tensors(row.deployed_folded for row in rows),
            is_moved=any(value.dtype.kind == "f" and bool(value.any()) for value in probe.feeds.values()),
            changed=lambda: self._changed(rows, probe),
        )
        return judge(
            runs,
            roundoff=self._roundoff(stored),
            is_exact=self.exact is not None,
            names=[f"{names[row.number]!r}" for row in rows],
            require_reproducible=lambda: self._require_reproducible(probe, stored, len(names)),
        )

    def _changed(self, rows: list[_Row], probe: Probe) -> list[list[Tensor]]:
        """Return what the original gives with every parameter moved by a part of itself."""
        changed = Evaluator(self.before.model, _NudgedParameters(self.before.model))
        values = changed.run(probe.feeds, {name for row in rows for name in row.names})
        return _tensors([values.get(n, v) for n, v in zip(row.names, row.oracle, strict=True)] for row in rows)

    def _row(
        self,
        number: int,
        oracle: Named,
        moved: Named,
        other: Named,
        stored: _Stored,
        one: list[str],
        two: list[str],
    ) -> list[_Row]:
        """Return what the verdict compares of one value, nothing when that holds no floats and is equal in both.

        Raises:
            FoldError: the other model does not make it, or makes other integers or strings.
        """
        known = [name for name in one if name in oracle and _is_numeric(oracle[name])] or one[:1]
        values, gap = [oracle[name] for name in known], self.after.unknown.get(two[0])
        if two[0] in other:
            got = [other[name] for name in two if name in other and _is_numeric(other[name])] or [other[two[0]]]
        elif gap is not None and gap.cause is Cause.UNSUPPORTED and stored.is_runtime:
            got = values  # the runtime alone says what it is
        else:
            why = "no node makes it" if gap is None else gap.reason
            raise FoldError(f"{two[0]!r} of the folded model cannot be computed: {why}")
        _require_same_form(one[0], values[0], got[0])
        if not any(map(_holds_floats, values)):
            if not _same(values[0], got[0]):
                raise FoldError(f"the folded model does not compute what the original computes: {one[0]!r} differs")
            return []
        before = [stored.before[name] for name in known if name in stored.before]
        after = [stored.after[name] for name in two if name in stored.after]
        return [_Row(number, known, values, [moved.get(name, oracle[name]) for name in known], got, before, after)]

    def _runtime_row(self, number: int, probe: Probe, stored: _Stored, one: list[str], two: str) -> _Row:
        """Return the same where only onnxruntime can compute the value: its own results stand for those in float64."""
        value = widened(stored.before[one[0]])
        _require_same_form(one[0], value, stored.after[two])
        nudged = replace(probe, feeds=_nudged(probe.feeds, _DEPLOYED_STEP))
        try:
            moved = widened(self._deployed(self.before, self._draws[0], nudged, one)[one[0]])
        except CannotRunError:  # such inputs do not fit: nothing is known of what moves with them
            moved = value
        if value.dtype.kind == "f" and moved.shape == value.shape:
            moved = value + (moved - value) * (STEP / _DEPLOYED_STEP)
        return _Row(number, one, [value], [moved], [value], [value], [stored.after[two]])

    def _stored(self, probe: Probe, tails: Sequence[tuple[list[str], list[str]]]) -> _Stored:
        names = [[name for pair in tails for name in pair[side]] for side in (0, 1)]
        fits = all(probe.unknown[name].cause is not Cause.FAILED for name in self.outputs if name in probe.unknown)
        try:
            if not fits:
                raise CannotRunError("the inputs that were tried do not fit")
            before = self._deployed(self.before, self._draws[0], probe, names[0])
        except CannotRunError:
            return _Stored(probe.values, Evaluator(self._folded).run(probe.feeds, names[1]), is_runtime=False)
        try:
            return _Stored(before, self._deployed(self.after, self._draws[1], probe, names[1]), is_runtime=True)
        except CannotRunError as err:
            raise FoldError(f"onnxruntime runs the model but not the folded one: {err}") from err

    def _deployed(self, side: Evaluator, draws: Sequence[str], probe: Probe, names: Iterable[str]) -> dict[str, Values]:
        """Return values of one model by onnxruntime, with the original's draws.

        Raises:
            CannotRunError: onnxruntime does not run it, or a draw is not known.
            FoldError: the other model draws in other places.
        """
        if len(draws) != len(self._draws[0]):
            raise FoldError(f"the models differ: they draw {len(self._draws[0])} and {len(draws)} times")
        missing = [name for name in self._draws[0] if name not in probe.values]
        if missing:
            raise CannotRunError(f"the draw {missing[0]!r} is not known")
        drawn = {name: probe.values[one] for name, one in zip(draws, self._draws[0], strict=True)}
        model = with_draws_as_inputs(side.model, drawn)
        return outputs_of(model, stored_form({**probe.feeds, **drawn}, model), names)

    def _roundoff(self, stored: _Stored) -> float:
        dtypes = {value.dtype.name for value in stored.before.values()} if stored.is_runtime else set()
        return max(coarsest_roundoff(self._folded), *map(unit_roundoff, dtypes), 0.0) or _SINGLE

    def _require_reproducible(self, probe: Probe, stored: _Stored, outputs: int) -> None:
        """Raise CannotJudge when onnxruntime, run twice, gives two results of the original."""
        if not stored.is_runtime:
            return
        again = self._deployed(self.before, self._draws[0], probe, stored.before)
        for name, value in stored.before.items():
            if not _same(value, again[name]):
                gap = probe.unknown.get(name)
                node = name if gap is None else gap.node
                reason = f"the original gives another result each time, from {node!r} on"
                raise CannotJudge(reason, node, tuple(range(outputs)))


def _with_tail(evaluator: Evaluator, name: str) -> list[str]:
    return [name, *tail_of(evaluator.model, name)]


def _doubt(name: str, gap: Gap | None) -> tuple[str, str]:
    """Return the node to name, and why a value that was not computed says nothing."""
    if gap is None:
        return name, f"{name!r} cannot be judged: it holds no numbers"
    return gap.node, f"{name!r} cannot be judged: {gap.node!r}: {gap.reason}"


def _nudged(feeds: Named, step: float) -> dict[str, Values]:
    """Return the inputs with every floating-point number moved by a part of itself, up or down."""
    rng = np.random.default_rng(1)
    return {
        name: np.asarray(value * (1 + step * rng.choice([-1.0, 1.0], value.shape)))
        if value.dtype.kind == "f"
        else value
        for name, value in feeds.items()
    }


def _require_same_form(name: str, one: Values, other: Values) -> None:
    if _form(one) != _form(other):
        raise FoldError(f"the folded model returns {name!r} as {_form(other)}, the original {_form(one)}")


def _form(value: Values) -> str:
    """Return the shape of a tensor, or of each one in a sequence, or the keys of a map, for messages and comparison."""
    if not is_boxed(value):
        return f"shape {value.shape}"
    parts = [f"keys {[*one]}" if isinstance(one, dict) else str(np.shape(one)) for one in value.item()]
    return f"a sequence of {', '.join(parts) or 'nothing'}"


def _parts(value: Values) -> list[Values]:
    """Return a tensor, or those of a sequence; of the maps in one, the values in the order of their keys."""
    if not is_boxed(value):
        return [value]
    return [np.asarray([*one.values()] if isinstance(one, dict) else one) for one in value.item()]


def _is_numeric(value: Values) -> bool:
    return all(part.dtype.kind in "fiub" for part in _parts(value))


def _holds_floats(value: Values) -> bool:
    return any(part.dtype.kind == "f" for part in _parts(value))


def _same(one: Values, other: Values) -> bool:
    pairs = zip(_parts(one), _parts(other), strict=False)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


def _tensors(rows: Iterable[list[Values]]) -> list[list[Tensor]]:
    return [[_tensor(value) for value in values] for values in rows]


def _tensor(value: Values) -> Tensor:
    """Return numbers as a tensor, floats as float64; a sequence of tensors as one row."""
    if is_boxed(value):
        value = np.concatenate([np.ravel(part) for part in _parts(value)] or [np.zeros(0)])
    wide = widened(value) if value.dtype.kind == "f" or value.dtype.name == "bfloat16" else value.astype(np.int64)
    return torch.from_numpy(np.array(wide))
