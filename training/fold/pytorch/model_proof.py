"""The proof that a folded model is the model it came from; every fold passes it before it is returned.

Last step of the PyTorch front end: it runs both models, in float64 and as they are deployed, all from the same random
state; `verdict` compares what they gave.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ...errors import CannotJudge, FoldError
from ..failures import during
from ..report import Proof
from ..verdict import STEP, Runs, judge, require_close
from .float64 import Inputs, call, named_tensors, needs_no_mode, run_model_in_float64, sharing_copy, tensors_in, widen
from .process_state import same_random_state
from .reproducible import first_difference
from .tails import TailRecorder

Outputs = list[list[Tensor]]  # each output of a model, followed by what it was before its saturating tail


@dataclass(frozen=True)
class Runnable:
    """One of the two models, as it is run for the proof.

    Attributes:
        name: for messages, such as "original".
        module: in eval mode.
        exact: float64 values of its rounded tensors, by `id`.
        prepare: what happens to the inputs first, for a model whose counterpart takes in the normalisation of them.
        tails: found by earlier runs: the operations whose operands are what the outputs were before their tails.
    """

    name: str
    module: nn.Module
    exact: Mapping[int, Tensor] = field(default_factory=dict)
    prepare: Callable[[Inputs], Inputs] = lambda inputs: inputs
    tails: dict[str, frozenset[int]] = field(default_factory=dict, repr=False)

    def in_float64(self, inputs: Inputs) -> Outputs:
        """Return the outputs, evaluated in float64."""
        given = self.prepare(tree_map(widen, _detached(inputs)))
        return self._outputs(
            f"the {self.name} in float64", lambda: run_model_in_float64(self.module, given, self.exact), given
        )

    def deployed(self, inputs: Inputs) -> Outputs:
        """Return the outputs in the model's own dtype."""
        given = self.prepare(_detached(inputs))
        return self._outputs(f"the {self.name}", lambda: call(sharing_copy(self.module), given), given)

    def _outputs(self, what: str, run: Callable[[], Any], given: Inputs) -> Outputs:
        """Return each output with what it was before its tail; a second run keeps that where all would be too much."""
        key = f"{what} for {shapes_of(given)}"
        wanted = self.tails.get(key)
        with during(f"running {what} on the inputs"):
            recorder = TailRecorder(wanted)
            outputs = tensors_in(_recorded(run, recorder))
            numbers = frozenset(number for output in outputs for number in recorder.numbers(output))
            if recorder.has_overflown or (wanted is not None and wanted != numbers):
                self.tails[key] = numbers
                recorder = TailRecorder(numbers)
                outputs = tensors_in(_recorded(run, recorder)) if numbers else outputs
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
    at_sites: Callable[[], tuple[float, float, float]] | None = None,
) -> Proof:
    """Return the measured agreement of two models; raise when they are not the same function.

    Args:
        original: in eval mode.
        folded: in eval mode.
        inputs: positional arguments for both, or a mapping of keyword arguments.
        is_exact: the float64 values of the folded parameters are known; otherwise the comparison can be no sharper
            than the rounding of the parameters, and the limit is that of their dtype.
        concerned: the numbers of the outputs that have to be judged; None for all.
        at_sites: see `verdict.judge`.

    Raises:
        FoldError: outputs differ in number, shape or value by more than the stated limits.
        CannotJudge: an output says nothing, or rounding could explain a difference that is too large to pass.
    """
    runs = Runs(
        oracle=original.in_float64(inputs),
        moved=lambda: original.in_float64(_nudged(inputs)),
        folded=lambda: folded.in_float64(inputs),
        deployed_original=lambda: original.deployed(inputs),
        deployed_folded=lambda: folded.deployed(inputs),
        is_moved=_is_nudged(inputs),
        changed=lambda: _with_other_parameters(original).in_float64(inputs),
    )
    return judge(
        runs,
        roundoff=_unit_roundoff(folded.module),
        is_exact=is_exact,
        names=[f"output {number}" for number in range(len(runs.oracle))],
        concerned=concerned,
        require_reproducible=lambda: _require_reproducible(original, inputs, len(runs.oracle)),
        at_sites=at_sites,
    )


def proved_sizes(original: Runnable, folded: Runnable, inputs: Inputs, amplification: float) -> str:
    """Return the shapes of further inputs on which two models agree in float64; "" when one of them does not run.

    Raises:
        FoldError: they differ there by more than rounding can explain.
    """
    try:
        oracle, got = original.in_float64(inputs), folded.in_float64(inputs)
    except FoldError:
        return ""
    require_close(oracle, got, amplification, f"for inputs of {shapes_of(inputs)}")
    return shapes_of(inputs)


def shapes_of(inputs: Inputs) -> str:
    """Return the shapes of the tensors among the inputs as text."""
    return ", ".join(str(tuple(v.shape)) for v in tree_leaves(_plain(inputs)) if isinstance(v, Tensor))


def _plain(inputs: Inputs) -> Any:
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


def _with_other_parameters(model: Runnable) -> Runnable:
    """Return the model with every floating-point tensor changed by a millionth of itself."""
    tensors = [tensor for _, tensor in named_tensors(model.module) if tensor.is_floating_point()]
    return replace(model, exact={id(tensor): tensor.detach().double() * (1 + 2.0**-20) for tensor in tensors})


def _require_reproducible(original: Runnable, inputs: Inputs, outputs: int) -> None:
    """Raise CannotJudge when the original, run twice from one random state, gives two results."""
    node = first_difference(lambda: original.in_float64(inputs))
    if node:
        reason = f"the original gives another result each time, from {node} on"
        raise CannotJudge(reason, node, tuple(range(outputs)))


def _detached(inputs: Inputs) -> Inputs:
    """Return copies of the inputs, so that an operation that writes into its input does not spoil the next run."""
    copied: Inputs = tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, _plain(inputs))
    return copied


def _nudged(inputs: Inputs) -> Inputs:
    """Return the inputs with every floating-point value moved by a part of itself, up or down."""
    generator = torch.Generator().manual_seed(0)

    def nudge(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        signs = torch.randint(0, 2, value.shape, generator=generator, dtype=torch.int8).to(value.device) * 2 - 1
        return value.double() * (1 + STEP * signs.double())

    nudged: Inputs = tree_map(nudge, _plain(inputs))
    return nudged


def _is_rounded(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _is_nudged(inputs: Inputs) -> bool:
    values = tree_leaves(_plain(inputs))
    return any(isinstance(v, Tensor) and v.is_floating_point() and bool((v != 0).any()) for v in values)


def _unit_roundoff(model: nn.Module) -> float:
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} or {torch.float32}
    return max(float(np.ldexp(torch.finfo(d).eps, -1)) for d in dtypes)
