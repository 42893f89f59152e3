"""The proof that a folded model is the model it came from; every fold passes it before it is returned.

Last step of the PyTorch front end. In float64 a right fold agrees to about 1e-14 and a wrong one is off by about 1e-1,
so the limits need no tuning: per channel 1e-11 of its largest value times the model's own amplification of a last-bit
change of its input. No limit is above a thousandth of the channel's scale: what differs by more, and could by rounding
alone, is neither right nor wrong, it cannot be judged. All runs start from the same random state.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ...errors import CannotJudge, FoldError
from ..report import Proof
from .comparison import NOISE, Difference, deviation, flaw, largest
from .float64 import Inputs, call, needs_no_mode, run_model_in_float64, sharing_copy, tensors_in, widen
from .process_state import same_random_state
from .reproducible import first_difference
from .tails import TailRecorder

ALGEBRA_LIMIT = 1e-11
# Folding moves where a layer rounds, so the deployed error may differ from the unfolded model's; not by orders.
DEPLOYED_FACTOR = 64.0
CAP = 1e-3  # of a channel's scale; half precision, which cannot be held to it, is held to 16 roundings
_CAP_ROUNDINGS = 16
_STEP = 2.0**-40  # of a change of the input: far above float64's rounding, far below any bend of an activation
_ROUNDINGS_TO_ZERO = 1e3  # a channel this much smaller than the others is a sum that comes to zero, as deployed

Outputs = list[list[Tensor]]  # each output of a model, followed by what it was before its saturating tail
Deviations = list[list[Tensor]]  # for each of them a number for every channel, see `comparison.deviation`


@dataclass(frozen=True)
class Runnable:
    """One of the two models, as it is run for the proof.

    Attributes:
        name: for messages, such as "original".
        module: in eval mode.
        exact: float64 values of its rounded tensors, by `id`.
        prepare: what happens to the inputs first, for a model whose counterpart takes in the normalisation of them.
    """

    name: str
    module: nn.Module
    exact: Mapping[int, Tensor] = field(default_factory=dict)
    prepare: Callable[[Inputs], Inputs] = lambda inputs: inputs

    def in_float64(self, inputs: Inputs) -> Outputs:
        """Return the outputs, evaluated in float64."""
        given = self.prepare(tree_map(widen, _detached(inputs)))
        return self._outputs(
            f"the {self.name} in float64", lambda: run_model_in_float64(self.module, given, self.exact)
        )

    def deployed(self, inputs: Inputs) -> Outputs:
        """Return the outputs in the model's own dtype."""
        given = self.prepare(_detached(inputs))
        return self._outputs(f"the {self.name}", lambda: call(sharing_copy(self.module), given))

    def _outputs(self, what: str, run: Callable[[], Any]) -> Outputs:
        recorder = TailRecorder()
        try:
            outputs = tensors_in(_recorded(run, recorder))
        except Exception as err:
            raise FoldError(f"{what} cannot be run on the inputs: {type(err).__name__}: {err}") from err
        if not outputs:
            raise FoldError(f"{what} returned no tensor; expected one or more to compare")
        return [[output, *recorder.before(output)] for output in outputs]


def _recorded(run: Callable[[], Any], recorder: TailRecorder) -> Any:
    try:
        with torch.no_grad(), same_random_state(), recorder:
            return run()
    except RuntimeError as err:
        if not needs_no_mode(err):
            raise
    torch.compiler.reset()  # torch.cond keeps what it compiled under the mode
    with torch.no_grad(), same_random_state():
        return run()


def prove_model(
    original: Runnable,
    folded: Runnable,
    inputs: Inputs,
    *,
    is_exact: bool = True,
    concerned: Collection[int] | None = None,
) -> Proof:
    """Return the measured agreement of two models; raise when they are not the same function.

    Args:
        original: in eval mode.
        folded: in eval mode.
        inputs: positional arguments for both, or a mapping of keyword arguments.
        is_exact: the float64 values of the folded parameters are known; otherwise the comparison can be no sharper
            than the rounding of the parameters, and the limit is that of their dtype.
        concerned: the numbers of the outputs that have to be judged; None for all.

    Raises:
        FoldError: outputs differ in number, shape or value by more than the stated limits.
        CannotJudge: an output says nothing, or rounding could explain a difference that is too large to pass.
    """
    roundoff = _unit_roundoff(folded.module)
    unit = ALGEBRA_LIMIT if is_exact else DEPLOYED_FACTOR * roundoff
    cap = max(CAP, _CAP_ROUNDINGS * roundoff)
    oracle = original.in_float64(inputs)
    moved = _deviations(oracle, original.in_float64(_nudged(inputs)))
    growth = [[(of / _STEP).clamp(min=1.0) for of in tensors] for tensors in moved]
    flaws = [[flaw(tensor, unit) for tensor in tensors] for tensors in oracle]
    still = [[not bool(of.any()) for of in tensors] for tensors in moved] if _is_nudged(inputs) else None
    judge = _Judge(original, inputs, oracle, flaws, still, concerned)
    errors = _deviations(oracle, folded.in_float64(inputs))
    limits = [[unit * of for of in tensors] for tensors in growth]
    algebra = judge.nearest("in float64", errors, limits, CAP if is_exact else cap)
    noise = _ROUNDINGS_TO_ZERO * roundoff
    unfolded = _deviations(oracle, original.deployed(inputs), noise)
    limits = [
        [DEPLOYED_FACTOR * torch.maximum(one, roundoff * other) for one, other in zip(*tensors, strict=False)]
        for tensors in zip(unfolded, growth, strict=True)
    ]
    errors = _deviations(oracle, folded.deployed(inputs), noise)
    deployed = judge.nearest("with stored parameters", errors, limits, cap, is_rounded=True)
    original_error = deployed.at(unfolded)
    return Proof(algebra.error, algebra.limit, algebra.at(growth), deployed.error, original_error, deployed.limit)


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
    """Says of the outputs of two models whether they are those of one function.

    Attributes:
        original: with its `inputs`, to be run once more when its results are doubtful.
        oracle: its outputs.
        flaws: why each of them is no evidence, "" when it is.
        still: which of them do not move with the input; None when the input cannot be moved.
        concerned: the numbers of the outputs that have to be judged; None for all.
    """

    original: Runnable
    inputs: Inputs
    oracle: Outputs
    flaws: list[list[str]]
    still: list[list[bool]] | None
    concerned: Collection[int] | None

    def nearest(
        self, where: str, errors: Deviations, limits: Deviations, cap: float, *, is_rounded: bool = False
    ) -> _Place:
        """Return the difference nearest to its limit; raise when one is above, or an output has none to be judged by.

        An output is judged when its own values, or those before its saturating tail, are evidence and within their
        limits. Integers are not compared when `is_rounded`: rounding may move them by a whole.
        """
        judged: list[_Place] = []
        unjudged: dict[int, str] = {}
        every = range(len(self.oracle))
        for output in every if self.concerned is None else sorted({*self.concerned} & {*every}):
            reasons = []
            for number, pair in enumerate(zip(errors[output], limits[output], strict=False)):
                if is_rounded and not self.oracle[output][number].is_floating_point():
                    continue
                place = _Place(largest(*pair, cap), output, number)
                if place.difference.is_wrong:
                    self._require_reproducible()
                    raise _different(where, place)
                reasons.append(self.flaws[output][number] or place.difference.doubt)
                if not reasons[-1] and not self._is_still(output, number):
                    judged.append(place)
            if all(reasons):
                unjudged[output] = reasons[0] if reasons else "it holds integers only"
        if unjudged or not judged:
            self._require_reproducible()
            raise _unjudged(where, unjudged)
        return max(judged, key=lambda place: place.error / place.limit)

    def _is_still(self, output: int, number: int) -> bool:
        return self.still is not None and self.still[output][number]

    def _require_reproducible(self) -> None:
        """Raise CannotJudge when the original, run twice from one random state, gives two results."""
        node = first_difference(lambda: self.original.in_float64(self.inputs))
        if node:
            outputs = tuple(range(len(self.oracle)))
            raise CannotJudge(f"the original gives another result each time, from {node} on", node, outputs)


def _different(where: str, place: _Place) -> FoldError:
    return FoldError(
        f"the folded model does not compute what the original computes: {where} output {place.output} differs by "
        f"{place.error:.3g} of the scale of its channel {place.difference.channel}, expected at most {place.limit:.3g}"
    )


def _unjudged(where: str, reasons: Mapping[int, str]) -> CannotJudge:
    output, reason = next(iter(reasons.items()), (0, "no output depends on the inputs"))
    return CannotJudge(f"output {output} cannot be judged {where}: {reason}", f"output {output}", tuple(reasons))


def _deviations(expected: Outputs, got: Outputs, noise: float = NOISE) -> Deviations:
    """Return the deviation of every output, and of what it was before its tail where both models have that tail."""
    if len(expected) != len(got):
        raise FoldError(f"the folded model returns {len(got)} tensors, the original {len(expected)}")
    return [_group_deviations(*groups, noise) for groups in zip(expected, got, strict=True)]


def _group_deviations(expected: list[Tensor], got: list[Tensor], noise: float) -> list[Tensor]:
    if expected[0].shape != got[0].shape:
        shapes = f"shape {tuple(got[0].shape)}, the original {tuple(expected[0].shape)}"
        raise FoldError(f"the folded model returns {shapes}")
    same_tail = [tensor.shape for tensor in expected] == [tensor.shape for tensor in got]
    pairs = zip(expected, got, strict=True) if same_tail else [(expected[0], got[0])]
    return [deviation(one, other, noise) for one, other in pairs]


def _detached(inputs: Inputs) -> Inputs:
    """Return copies of the inputs, so that an operation that writes into its input does not spoil the next run."""
    given = dict(inputs) if isinstance(inputs, Mapping) else inputs
    copied: Inputs = tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, given)
    return copied


def _nudged(inputs: Inputs) -> Inputs:
    """Return the inputs with every floating-point value moved by a part of itself, up or down."""
    generator = torch.Generator().manual_seed(0)

    def nudge(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        signs = torch.randint(0, 2, value.shape, generator=generator, dtype=torch.int8).to(value.device) * 2 - 1
        return value.double() * (1 + _STEP * signs.double())

    given = dict(inputs) if isinstance(inputs, Mapping) else inputs
    nudged: Inputs = tree_map(nudge, given)
    return nudged


def _is_nudged(inputs: Inputs) -> bool:
    values = tree_leaves(dict(inputs) if isinstance(inputs, Mapping) else inputs)
    return any(isinstance(v, Tensor) and v.is_floating_point() and bool((v != 0).any()) for v in values)


def _unit_roundoff(model: nn.Module) -> float:
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} or {torch.float32}
    return max(float(np.ldexp(torch.finfo(d).eps, -1)) for d in dtypes)
