"""Says of the outputs of two models whether they are those of one function.

The last step of the proof in both front ends, which run the models and hand over what they gave. In float64 a right
fold agrees to about 1e-14 and a wrong one is off by about 1e-1, so the limits need no tuning: per channel 1e-11 of its
largest value times the model's own amplification of a last-bit change of its input. No limit is above a thousandth of
the channel's scale: what differs by more, and could by rounding alone, is neither right nor wrong, it cannot be judged.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CannotJudge, FoldError
from .comparison import NOISE, Difference, deviation, flaw, largest
from .report import Proof

ALGEBRA_LIMIT = 1e-11
# Folding moves where a layer rounds, so the deployed error may differ from the unfolded model's; not by orders.
DEPLOYED_FACTOR = 64.0
CAP = 1e-3  # of a channel's scale; half precision, which cannot be held to it, is held to 16 roundings
STEP = 2.0**-40  # of a change of the input: far above float64's rounding, far below any bend of an activation
_CAP_ROUNDINGS = 16
_ROUNDINGS_TO_ZERO = 1e3  # a channel this much smaller than the others is a sum that comes to zero, as deployed

Outputs = Sequence[Sequence[Tensor]]  # each output of a model, followed by what it was before its saturating tail
Deviations = Sequence[Sequence[Tensor]]  # for each of them a number for every channel, see `comparison.deviation`


@dataclass(frozen=True)
class Runs:
    """What two models give for the same inputs and the same random state, one after the other, to hold no two at once.

    Attributes:
        oracle: the original in float64.
        moved: gives the same for inputs of which every number is changed by `STEP` of itself, up or down.
        folded: gives the folded model in float64, with the exact parameters where they are known.
        deployed_original: gives the original in its own dtype.
        deployed_folded: gives the folded model in its own dtype.
        is_moved: False when no input holds a number that could be changed.
        changed: gives the original in float64 with every parameter changed a little. It is run when no output moves
            with the input: where biases outweigh it, an output still tells of the network.
    """

    oracle: Outputs
    moved: Callable[[], Outputs]
    folded: Callable[[], Outputs]
    deployed_original: Callable[[], Outputs]
    deployed_folded: Callable[[], Outputs]
    is_moved: bool = True
    changed: Callable[[], Outputs] | None = None

    def still(self, moved: Deviations) -> list[list[bool]]:
        """Return which outputs do not move with the input, or with the parameters where none moves with the input."""
        still = [[self.is_moved and not bool(of.any()) for of in tensors] for tensors in moved]
        if self.changed is not None and all(all(tensors) for tensors in still):
            changed = _deviations(self.oracle, self.changed())
            still = [[not bool(of.any()) for of in tensors] for tensors in changed]
        return still


def judge(
    runs: Runs,
    *,
    roundoff: float,
    is_exact: bool,
    names: Sequence[str],
    concerned: Collection[int] | None = None,
    require_reproducible: Callable[[], None] = lambda: None,
    at_sites: Callable[[], tuple[float, float, float]] | None = None,
) -> Proof:
    """Return the measured agreement of two models; raise when they are not the same function.

    Args:
        runs: of the two.
        roundoff: unit roundoff of the folded model's parameters.
        is_exact: the float64 values of the folded parameters are known; otherwise the comparison can be no sharper
            than the rounding of the parameters, and the limit is that of their dtype.
        names: of the outputs, for messages.
        concerned: the numbers of the outputs that have to be judged; None for all.
        require_reproducible: raises CannotJudge when the original gives another result each time; called before any
            other verdict than agreement.
        at_sites: gives error, error before the fold and limit of the stored parameters at the folded layers alone. It
            judges them where the network makes so much of rounding that its outputs cannot; for these parameters
            float64 has shown by then that the networks are one function.

    Raises:
        FoldError: outputs differ in number, shape or value by more than the stated limits.
        CannotJudge: an output says nothing, or rounding could explain a difference that is too large to pass.
    """
    cap = _cap(roundoff)
    verdict, algebra, growth = _judged_in_float64(
        runs, roundoff, is_exact, names, concerned, require_reproducible, slack=1.0
    )
    noise = _ROUNDINGS_TO_ZERO * roundoff
    unfolded = _deviations(runs.oracle, runs.deployed_original(), noise)
    limits = [
        [DEPLOYED_FACTOR * _rounding(*pair, roundoff) for pair in zip(*tensors, strict=False)]
        for tensors in zip(unfolded, growth, strict=True)
    ]
    errors = _deviations(runs.oracle, runs.deployed_folded(), noise)
    try:
        deployed = verdict.nearest("with stored parameters", errors, limits, cap, without_integers=True)
    except CannotJudge:
        if at_sites is None:
            raise
        return Proof(algebra.error, algebra.limit, algebra.at(growth), *at_sites())
    original_error = deployed.at(unfolded)
    return Proof(algebra.error, algebra.limit, algebra.at(growth), deployed.error, original_error, deployed.limit)


def judge_in_float64(
    runs: Runs,
    *,
    roundoff: float,
    is_exact: bool,
    names: Sequence[str],
    require_reproducible: Callable[[], None],
    slack: float,
) -> None:
    """Raise as `judge` does where two models differ in float64, on further inputs, where less is known of rounding.

    Args:
        runs: of the two; those in their own dtypes are not needed.
        roundoff: as in `judge`, as are the next ones.
        is_exact: see there.
        names: see there.
        require_reproducible: see there.
        slack: how many times the limit of `judge` is allowed, below the same cap.
    """
    _judged_in_float64(runs, roundoff, is_exact, names, None, require_reproducible, slack)


def _judged_in_float64(
    runs: Runs,
    roundoff: float,
    is_exact: bool,
    names: Sequence[str],
    concerned: Collection[int] | None,
    require_reproducible: Callable[[], None],
    slack: float,
) -> tuple["_Judge", "_Place", Deviations]:
    """Return what more can be judged with, the difference nearest to its limit, and the model's own amplification."""
    unit = ALGEBRA_LIMIT if is_exact else DEPLOYED_FACTOR * roundoff
    moved = _deviations(runs.oracle, runs.moved())
    growth = [[(of / STEP).clamp(min=1.0) for of in tensors] for tensors in moved]
    resolution = min(unit, _cap(roundoff))
    flaws = [[flaw(tensor, resolution) for tensor in tensors] for tensors in runs.oracle]
    verdict = _Judge(runs.oracle, names, flaws, runs.still(moved), concerned, require_reproducible)
    folded = runs.folded()
    errors = _deviations(runs.oracle, folded)
    verdict.require_same_integers(folded, runs.changed)
    del folded
    limits = [[slack * unit * of for of in tensors] for tensors in growth]
    return verdict, verdict.nearest("in float64", errors, limits, CAP if is_exact else _cap(roundoff)), growth


def _cap(roundoff: float) -> float:
    return max(CAP, _CAP_ROUNDINGS * roundoff)


def _rounding(unfolded: Tensor, growth: Tensor, roundoff: float) -> Tensor:
    """Return what rounding makes of each channel; the error of one that is seen in few numbers is small by chance."""
    typical = unfolded.median() if len(unfolded) else unfolded.new_zeros(())
    return torch.maximum(unfolded.clamp(min=float(typical)), roundoff * growth)


def require_close(oracle: Outputs, folded: Outputs, amplification: float, where: str) -> None:
    """Raise FoldError when two models differ, where nothing but the outputs in float64 is known of them.

    Args:
        oracle: the outputs of the original.
        folded: those of the folded model.
        amplification: of other inputs; it may be ten times as much here.
        where: for the message.
    """
    limit = min(CAP, 10 * ALGEBRA_LIMIT * amplification)
    for number, tensors in enumerate(_deviations(oracle, folded)):
        for errors in tensors:
            if len(errors) and not float(errors.max()) <= limit:
                raise FoldError(
                    f"{where} output {number} of the folded model differs by {float(errors.max()):.3g} of the scale of "
                    f"its channel, expected at most {limit:.3g}; pass dynamic=False when the sizes never vary"
                )


@dataclass(frozen=True)
class _Place:
    """A difference and where it is: the number of the output, and of the tensor in its group."""

    difference: Difference
    output: int
    tensor: int

    @property
    def error(self) -> float:
        return self.difference.error

    @property
    def limit(self) -> float:
        return self.difference.limit

    def at(self, deviations: Deviations) -> float:
        """Return what stands at this place in another list of the same form."""
        return float(deviations[self.output][self.tensor][self.difference.channel])


@dataclass(frozen=True)
class _Judge:
    """What a comparison is judged by.

    Attributes:
        oracle: the outputs of the original.
        names: of the outputs.
        flaws: why each of them is no evidence, "" when it is.
        still: which of them do not move with the input, though it was moved.
        concerned: the numbers of the outputs that have to be judged; None for all.
        require_reproducible: see `judge`.
    """

    oracle: Outputs
    names: Sequence[str]
    flaws: list[list[str]]
    still: list[list[bool]]
    concerned: Collection[int] | None
    require_reproducible: Callable[[], None]

    def nearest(
        self, where: str, errors: Deviations, limits: Deviations, cap: float, *, without_integers: bool = False
    ) -> _Place:
        """Return the difference nearest to its limit; raise when one is above, or an output has none to be judged by.

        An output is judged when its own values, or those before its saturating tail, are evidence and within their
        limits. Integers are not compared `without_integers`, since rounding may move them by a whole; in float64
        `require_same_integers` has compared them.
        """
        judged: list[_Place] = []
        unjudged: dict[int, str] = {}
        every = range(len(self.oracle))
        for output in every if self.concerned is None else sorted({*self.concerned} & {*every}):
            reasons = []
            for number, pair in enumerate(zip(errors[output], limits[output], strict=False)):
                if without_integers and not _is_rounded(self.oracle[output][number]):
                    continue
                place = _Place(largest(*pair, cap), output, number)
                if place.difference.is_wrong:
                    self.require_reproducible()
                    raise self._different(where, place)
                reasons.append(self.flaws[output][number] or place.difference.doubt)
                if not reasons[-1] and not self.still[output][number]:
                    judged.append(place)
            if all(reasons):
                unjudged[output] = reasons[0] if reasons else "it holds integers only"
        if unjudged or not judged:
            self.require_reproducible()
            raise self._unjudged(where, unjudged)
        return max(judged, key=lambda place: place.error / place.limit)

    def require_same_integers(self, folded: Outputs, changed: Callable[[], Outputs] | None) -> None:
        """Raise where whole numbers or truth values differ: FoldError, or CannotJudge where rounding could explain it.

        Args:
            folded: of the other model, in float64.
            changed: see `Runs`. Numbers that these little changes turn as well may be turned by rounding.
        """
        every = range(len(self.oracle)) if self.concerned is None else {*self.concerned} & {*range(len(self.oracle))}
        differing = [output for output in every if _integers_differ(self.oracle[output][0], folded[output][0])]
        if not differing:
            return
        self.require_reproducible()
        others = None if changed is None else changed()
        for output in differing:
            one, other = self.oracle[output][0], folded[output][0]
            turned = one != other if others is None else (one != other) & (one == others[output][0])
            if bool(turned.any()):
                raise FoldError(
                    f"the folded model does not compute what the original computes: in float64 {self.names[output]} "
                    f"differs in {int((one != other).sum())} of {one.numel()} whole numbers, expected none"
                )
        name = self.names[differing[0]]
        reason = "its whole numbers differ where a change of the parameters by a millionth changes them too"
        raise CannotJudge(f"{name} cannot be judged in float64: {reason}", name, tuple(differing))

    def _different(self, where: str, place: _Place) -> FoldError:
        return FoldError(
            f"the folded model does not compute what the original computes: {where} {self.names[place.output]} differs "
            f"by {place.error:.3g} of the scale of its channel {place.difference.channel}, expected at most "
            f"{place.limit:.3g}"
        )

    def _unjudged(self, where: str, reasons: Mapping[int, str]) -> CannotJudge:
        output, reason = next(iter(reasons.items()), (0, "no output follows the inputs and what was folded"))
        name = self.names[output] if self.names else "the model"
        return CannotJudge(f"{name} cannot be judged {where}: {reason}", name, tuple(reasons))


def _deviations(expected: Outputs, got: Outputs, noise: float = NOISE) -> Deviations:
    """Return the deviation of every output, and of what it was before its tail where both models have that tail."""
    if len(expected) != len(got):
        raise FoldError(f"the folded model returns {len(got)} tensors, the original {len(expected)}")
    return [_group_deviations(*groups, noise) for groups in zip(expected, got, strict=True)]


def _group_deviations(expected: Sequence[Tensor], got: Sequence[Tensor], noise: float) -> list[Tensor]:
    if expected[0].shape != got[0].shape:
        shapes = f"shape {tuple(got[0].shape)}, the original {tuple(expected[0].shape)}"
        raise FoldError(f"the folded model returns {shapes}")
    same_tail = [tensor.shape for tensor in expected] == [tensor.shape for tensor in got]
    pairs = zip(expected, got, strict=True) if same_tail else [(expected[0], got[0])]
    return [deviation(one, other, noise) for one, other in pairs]


def _integers_differ(one: Tensor, other: Tensor) -> bool:
    return not _is_rounded(one) and one.shape == other.shape and not torch.equal(one.long(), other.long())


def _is_rounded(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
