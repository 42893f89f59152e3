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
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_map

from ...errors import CannotJudge, FoldError
from ..failures import during, failure
from ..report import Proof
from ..verdict import STEP, Runs, judge, judge_in_float64, require_close
from .circumstances import Circumstance, call_as_before, resized
from .float64 import (
    Inputs,
    call,
    copy_to_run,
    named_tensors,
    needs_no_mode,
    run_in_float64,
    run_model_in_float64,
    sharing_copy,
    widen,
)
from .process_state import same_random_state
from .reproducible import first_difference
from .returned import Returned, difference, taken_apart
from .tails import TailRecorder

Outputs = list[list[Tensor]]  # each output of a model, followed by what it was before its saturating tail


@dataclass(frozen=True)
class Ran:
    """What one run gave.

    Attributes:
        outputs: the tensors among what was returned, then the numbers, each followed by what it was before its tail.
        returned: all of it, taken apart; its tensors are let go.
    """

    outputs: Outputs
    returned: Returned


@dataclass(frozen=True)
class Runnable:
    """One of the two models, as it is run for the proof.

    Attributes:
        name: for messages, such as "original".
        module: in eval mode.
        exact: float64 values of its rounded tensors, by `id`.
        prepare: what happens to the inputs first, for a model whose counterpart takes in the normalisation of them.
        is_graph: what it returns is compared with what a graph returns; see `taken_apart`.
        tails: found by earlier runs: the operations whose operands are what the outputs were before their tails.
    """

    name: str
    module: nn.Module
    exact: Mapping[int, Tensor] = field(default_factory=dict)
    prepare: Callable[[Inputs], Inputs] = lambda inputs: inputs
    is_graph: bool = False
    tails: dict[str, frozenset[int]] = field(default_factory=dict, repr=False)

    def in_float64(self, inputs: Inputs) -> Outputs:
        """Return the outputs, evaluated in float64."""
        return self.ran_in_float64(inputs).outputs

    def ran_in_float64(self, inputs: Inputs) -> Ran:
        """Return what it gives, evaluated in float64."""
        given = self.prepare(tree_map(widen, _detached(inputs)))
        return self._ran(
            f"the {self.name} in float64", lambda: run_model_in_float64(self.module, given, self.exact), given
        )

    def ran_as_deployed(self, inputs: Inputs) -> Ran:
        """Return what it gives in the model's own dtype."""
        given = self.prepare(_detached(inputs))
        return self._ran(f"the {self.name}", lambda: call(copy_to_run(self.module), given), given)

    def _ran(self, what: str, run: Callable[[], Any], given: Inputs) -> Ran:
        """Return each output with what it was before its tail; a second run keeps that where all would be too much."""
        key = f"{what} for {shapes_of(given)}"
        wanted = self.tails.get(key)
        with during(f"running {what} on the inputs"):
            recorder = TailRecorder(wanted)
            returned = taken_apart(_recorded(run, recorder), is_graph=self.is_graph)
            numbers = frozenset(number for output in returned.tensors for number in recorder.numbers(output))
            if recorder.has_overflown or (wanted is not None and wanted != numbers):
                self.tails[key] = numbers
                recorder = TailRecorder(numbers)
                returned = taken_apart(_recorded(run, recorder), is_graph=self.is_graph) if numbers else returned
            if not returned.tensors:
                raise FoldError(f"{what} returned no tensor; expected one or more to compare")
            outputs = [[_dense(output), *recorder.before(output)] for output in returned.tensors]
            outputs += [[number] for number in returned.numbers]
        return Ran(outputs, replace(returned, tensors=[], numbers=[]))


def _dense(tensor: Tensor) -> Tensor:
    dense = tensor.dequantize() if tensor.is_quantized else tensor
    return dense if dense.layout is torch.strided else dense.to_dense()


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
    pair = _Pair(original, folded, inputs)
    return judge(
        pair.runs(),
        roundoff=unit_roundoff(folded.module),
        is_exact=is_exact,
        names=pair.names,
        concerned=concerned,
        require_reproducible=pair.require_reproducible,
        at_sites=at_sites,
    )


def require_same(original: Runnable, folded: Runnable, inputs: Inputs, *, is_exact: bool) -> None:
    """Raise where two models differ in float64, or in what they return, for further inputs that both of them take.

    Args:
        original: in eval mode.
        folded: in eval mode.
        inputs: see `prove_model`.
        is_exact: see there.

    Raises:
        FoldError: they differ, by ten times what is allowed of the first inputs.
        CannotJudge: these inputs say nothing.
    """
    pair = _Pair(original, folded, inputs)
    runs = pair.runs()
    runs.deployed_original()
    runs.deployed_folded()
    judge_in_float64(
        runs,
        roundoff=unit_roundoff(folded.module),
        is_exact=is_exact,
        names=pair.names,
        require_reproducible=pair.require_reproducible,
        slack=10.0,
    )


class _Pair:
    """Two models and the inputs that both are run on; what they return is compared as soon as it is known."""

    def __init__(self, original: Runnable, folded: Runnable, inputs: Inputs):
        self._is_graph = isinstance(folded.module, GraphModule) != isinstance(original.module, GraphModule)
        self._original, self._folded = (replace(one, is_graph=self._is_graph) for one in (original, folded))
        self._inputs = inputs
        self._returned: dict[bool, Returned] = {}
        self.names: list[str] = []

    def runs(self) -> Runs:
        """Return the runs of both, of which that of the original in float64 has been made."""
        ran = self._original.ran_in_float64(self._inputs)
        self._returned[False] = ran.returned
        if ran.returned.opaque:
            where = f"{ran.returned.opaque[0]} of its output" if ran.returned.opaque[0] else "its output"
            kind = ran.returned.form[ran.returned.opaque[0]]
            every = tuple(range(len(ran.outputs)))
            raise CannotJudge(
                f"the original returns a {kind} as {where}, of which nothing can be compared", kind, every
            )
        self.names = [f"output {number}" for number in range(len(ran.outputs))]
        original, inputs = self._original, self._inputs
        return Runs(
            oracle=ran.outputs,
            moved=lambda: original.in_float64(_nudged(inputs)),
            folded=lambda: self._as_the_original(self._folded.ran_in_float64(inputs), is_deployed=False),
            deployed_original=self._deployed_original,
            deployed_folded=lambda: self._as_the_original(self._folded.ran_as_deployed(inputs), is_deployed=True),
            is_moved=_is_nudged(inputs),
            changed=lambda: _with_other_parameters(original).in_float64(inputs),
        )

    def require_reproducible(self) -> None:
        """Raise CannotJudge when the original, run twice from one random state, gives two results."""
        node = first_difference(lambda: self._original.in_float64(self._inputs))
        if node:
            reason = f"the original gives another result each time, from {node} on"
            raise CannotJudge(reason, node, tuple(range(len(self.names))))

    def _deployed_original(self) -> Outputs:
        ran = self._original.ran_as_deployed(self._inputs)
        self._returned[True] = ran.returned
        return ran.outputs

    def _as_the_original(self, ran: Ran, *, is_deployed: bool) -> Outputs:
        """Return the outputs; raise FoldError when they are returned in another way than the original's."""
        differs = difference(self._returned[is_deployed], ran.returned, has_dtypes=is_deployed)
        if differs:
            self.require_reproducible()
            raise FoldError(differs)
        return ran.outputs


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


def prove_in(
    circumstance: Circumstance, original: Runnable, folded: Runnable, inputs: Inputs, amplification: float
) -> None:
    """Require that two models agree in float64 in a circumstance, as far as the original runs there.

    Raises:
        FoldError: they differ by more than rounding can explain.
    """
    try:
        oracle = _in_circumstance(circumstance, original, inputs)
    except Exception:  # whatever a model raises
        return
    try:
        got = _in_circumstance(circumstance, folded, inputs)
    except Exception as err:
        raise FoldError(failure(f"running the folded model {circumstance.words}", err)) from err
    try:
        require_close(oracle, got, amplification, circumstance.words)
    except FoldError as err:
        raise FoldError(
            f"{circumstance.words} the model computes otherwise than in a first call without gradients, and the folded "
            "form of it cannot follow; make its forward independent of that, or fold each part by itself"
        ) from err


def _in_circumstance(circumstance: Circumstance, model: Runnable, inputs: Inputs) -> Outputs:
    """Return the outputs of the last call, evaluated in float64."""
    copied = sharing_copy(model.module, keep=model.exact)

    def run(given: Inputs) -> Any:
        call_as_before(
            copied, circumstance, lambda shapes: model.prepare(tree_map(widen, resized(shapes, _detached(inputs))))
        )
        with circumstance.entered():
            return call(copied, circumstance.prepared(given))

    given = model.prepare(tree_map(widen, _detached(inputs)))
    with same_random_state():
        outputs = taken_apart(run_in_float64(run, (given,), model.exact)).tensors
    return [[output.detach()] for output in outputs]


def shapes_of(inputs: Inputs) -> str:
    """Return the shapes of the tensors among the inputs as text."""
    return ", ".join(str(tuple(v.shape)) for v in tree_leaves(_plain(inputs)) if isinstance(v, Tensor))


def _plain(inputs: Inputs) -> Any:
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


def _with_other_parameters(model: Runnable) -> Runnable:
    """Return the model with every floating-point tensor changed by a millionth of itself."""
    tensors = [tensor for _, tensor in named_tensors(model.module) if tensor.is_floating_point()]
    return replace(model, exact={id(tensor): tensor.detach().double() * (1 + 2.0**-20) for tensor in tensors})


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


def _is_nudged(inputs: Inputs) -> bool:
    values = tree_leaves(_plain(inputs))
    return any(isinstance(v, Tensor) and v.is_floating_point() and bool((v != 0).any()) for v in values)


def unit_roundoff(model: nn.Module) -> float:
    """Return the largest unit roundoff among the dtypes of a model's parameters."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} or {torch.float32}
    return max(float(np.ldexp(torch.finfo(d).eps, -1)) for d in dtypes)
