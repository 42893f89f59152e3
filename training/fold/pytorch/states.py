"""Whether two models agree in other states than in a first call: with grad on, under autocast, in later calls.

Used by `agreement`, after the proof on the inputs. The states are the circumstances that PyTorch itself enters, and
calls of a network that keeps something of the calls before.
"""

from dataclasses import replace
from functools import partial
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from ...errors import FoldError
from ..comparison import deviation
from ..verdict import CAP
from .circumstances import CIRCUMSTANCES, Circumstance
from .float64 import Inputs, call, full_copy, named_tensors
from .model_proof import Ran, Runnable
from .plain_layers import has_plain_layers_only
from .process_state import same_random_state
from .returned import difference
from .user_code import code_of, plain_state

_CALLS, _CALLS_WITH_STATE, _MOST_CALLS = 3, 6, 66
_MOST_CALLED = 2**28  # parameters, over all calls of one network
_SMALL = 2**24  # parameters of a network that is run in every circumstance, whether its code names it or not
# Those that PyTorch itself enters. Where its functions are made to answer that it traces or exports, its own code hears
# that too, which a run with values is not to be judged by; `fold` looks at these without values.
_ENTERED = ("with gradients", "with gradients of the input", "in inference mode", "under autocast", "for channels_last")
_WITH_GRAD = Circumstance("with grad on", entered=torch.enable_grad)


def require_same_in_other_states(original: Runnable, folded: Runnable, inputs: Inputs) -> None:
    """Raise FoldError where two models differ in a circumstance of `CIRCUMSTANCES`, or when they are called again.

    What a state changes is known from runs as deployed. Only where it changes something are the two compared there, and
    by no more than the cap, or ten times what they differ by at first: float64 would tell more than a branch by grad
    can be told by. A folded network that refuses such calls, as where they train the original, differs in nothing.
    """
    pair = [original, folded]
    first = [one.ran_as_deployed(inputs) for one in pair]
    for circumstance in _circumstances(pair):
        ran = _ran_in(circumstance, pair, inputs)
        if ran and not all(map(_is_same, first, ran)):
            _require_same(first, ran, circumstance.words)
    count = max(_count_of_calls(one.module, inputs) for one in pair)
    again = [replace(one, module=_CalledAgain(one.module, count)).ran_as_deployed(inputs) for one in pair]
    _require_same(first, again, f"in one of {count} calls of the same network")


def _circumstances(pair: list[Runnable]) -> list[Circumstance]:
    """Return those to try: all, for large networks those that their code names."""
    if all(has_plain_layers_only(one.module) for one in pair):
        return []
    size = sum(tensor.numel() for one in pair for _, tensor in named_tensors(one.module))
    names = frozenset[str]().union(*(code_of(one.module).names for one in pair)) if size > _SMALL else None
    asked = [one for one in CIRCUMSTANCES if one.words in _ENTERED and (names is None or one.names & names)]
    return [_WITH_GRAD, *(_in_own_dtype(one, pair) for one in asked)]


def _in_own_dtype(circumstance: Circumstance, pair: list[Runnable]) -> Circumstance:
    """Return the circumstance; autocast to the narrow dtype of the models, whose norms run on no other one."""
    dtypes = {tensor.dtype for one in pair for _, tensor in named_tensors(one.module)} & {torch.bfloat16, torch.float16}
    if not dtypes or "is_autocast_enabled" not in circumstance.names:
        return circumstance
    return replace(circumstance, entered=partial(torch.autocast, "cpu", dtypes.pop()))


def _ran_in(circumstance: Circumstance, pair: list[Runnable], inputs: Inputs) -> list[Ran]:
    """Return what both models give in a circumstance; nothing where the original does not run, or the other refuses.

    Raises:
        FoldError: the other one alone does not run, and does not say so itself.
    """
    ran = list[Ran]()
    for one in pair:
        try:
            ran.append(replace(one, module=_In(one.module, circumstance)).ran_as_deployed(inputs))
        except FoldError as err:
            is_meant = isinstance(err.__cause__, FoldError | NoneType) or isinstance(one.module, GraphModule)
            if one is pair[0] or is_meant:
                return []
            raise FoldError(f"{circumstance.words} the original runs, the folded model does not: {err}") from err
    return ran


def _count_of_calls(model: nn.Module, inputs: Inputs) -> int:
    """Return how often to call a model: more often than its constants say where it keeps something of a call."""
    if has_plain_layers_only(model) or not _keeps_state(model, inputs):
        return _CALLS
    most = max([one for one in code_of(model).constants if one < _MOST_CALLS], default=0) + 2
    size = sum(tensor.numel() for _, tensor in named_tensors(model))
    return max(_CALLS_WITH_STATE, min(most, _MOST_CALLED // max(size, 1)))


def _keeps_state(model: nn.Module, inputs: Inputs) -> bool:
    """True when a copy of the model holds other values after a call, of tensors too."""
    copied = full_copy(model)
    before = plain_state(copied), [tensor.clone() for _, tensor in named_tensors(copied)]
    with torch.no_grad(), same_random_state():
        call(copied, _copied(inputs if isinstance(inputs, tuple) else dict(inputs)))
    after = plain_state(copied), [tensor for _, tensor in named_tensors(copied)]
    if before[0] != after[0] or len(before[1]) != len(after[1]):
        return True
    pairs = zip(before[1], after[1], strict=True)
    return any(one.shape != two.shape or bool(deviation(one, two).any()) for one, two in pairs)


def _require_same(first: list[Ran], ran: list[Ran], words: str) -> None:
    differs = difference(ran[0].returned, ran[1].returned, has_dtypes=True)
    if differs:
        raise FoldError(f"{words} {differs}")
    kinds = ("of the scale of their channel", "of their whole numbers")
    for usual, error, kind in zip(_largest(*first), _largest(*ran), kinds, strict=True):
        limit = max(CAP, 10 * usual)
        if not error <= limit:
            raise FoldError(
                f"the folded model does not compute what the original computes: {words} its outputs differ by "
                f"{error:.3g} {kind}, expected at most {limit:.3g}"
            )


class _Around(nn.Module):
    """A network within another call of it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.training = False  # what torch.export returns cannot be told so


class _In(_Around):
    """Calls a network in a circumstance."""

    def __init__(self, network: nn.Module, circumstance: Circumstance):
        super().__init__(network)
        self.circumstance = circumstance

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.circumstance.entered():
            return self.network(*self.circumstance.prepared(args), **dict(self.circumstance.prepared(kwargs)))


class _CalledAgain(_Around):
    """Calls a network a few times, each time from the same random state, and returns all results."""

    def __init__(self, network: nn.Module, count: int):
        super().__init__(network)
        self.count = count

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return tuple(self._called(args, kwargs) for _ in range(self.count))

    def _called(self, args: Any, kwargs: Any) -> Any:
        with same_random_state():
            return _copied(self.network(*_copied(args), **_copied(kwargs)))


def _copied(values: Any) -> Any:
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, values)


def _is_same(one: Ran, other: Ran) -> bool:
    pairs = zip(one.outputs, other.outputs, strict=False)
    return not difference(one.returned, other.returned, has_dtypes=True) and all(
        a[0].shape == b[0].shape and not bool(deviation(a[0], b[0]).any()) for a, b in pairs
    )


def _largest(one: Ran, other: Ran) -> tuple[float, float]:
    """Return the largest difference of floating-point outputs, and the largest share of whole numbers that differ.

    Infinite where their shapes differ.
    """
    error, share = 0.0, 0.0
    for (a, *_), (b, *_) in zip(one.outputs, other.outputs, strict=True):
        if a.shape != b.shape:
            return float("inf"), float("inf")
        if a.numel() and (a.is_floating_point() or a.is_complex()):
            error = max(error, float(deviation(a, b).max()))
        elif a.numel():
            share = max(share, float((a != b).double().mean()))
    return error, share
