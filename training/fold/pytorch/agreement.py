"""Whether two models agree beyond the inputs that were given: at other sizes and values, with grad on, called again.

Used by `verify`, after the proof on the inputs themselves. `look` says at which sizes each of them computes in another
way; the values are those of the inputs, repeated.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_map

from ...errors import CannotJudge, FoldError
from ..comparison import deviation
from ..failures import during
from ..report import Proof
from ..verdict import CAP, DEPLOYED_FACTOR
from .float64 import Inputs, call, sharing_copy
from .look import look_at_sizes
from .model_proof import Ran, Runnable, prove_model, require_same, shapes_of, unit_roundoff
from .process_state import same_random_state
from .recorded_calls import Variant, other_computations
from .returned import difference
from .sizes import second_sizes

_MOST_RUNS = 24
_AT_LEAST = 2**20  # elements of the inputs; larger ones are tried up to so many times the inputs that were given
_TIMES = 8
_CALLS = 3


def agree_everywhere(original: Runnable, folded: Runnable, inputs: Inputs, *, is_exact: bool) -> Proof:
    """Return the proof of two models on `inputs`, with the sizes of all inputs on which they agree.

    Args:
        original: in eval mode.
        folded: in eval mode.
        inputs: positional arguments for both, or a mapping of keyword arguments.
        is_exact: see `prove_model`.

    Raises:
        FoldError: they differ, or only one of them runs, there or at sizes that a model accepts, on values up to a
            hundred times as large, with grad on, or in a later call.
        CannotJudge: the inputs say nothing.
    """
    proof = prove_model(original, folded, inputs, is_exact=is_exact)
    _require_like_rounding(proof, folded)
    _require_same_writes(original, folded, inputs)
    sizes = [shapes_of(inputs)]
    for others in _other_inputs(original.module, folded.module, inputs):
        if _agree(original, folded, others, is_exact):
            sizes.append(shapes_of(others))
    _require_same_in_other_states(original, folded, inputs)
    return replace(proof, sizes=tuple(dict.fromkeys(sizes)))


def _require_like_rounding(proof: Proof, folded: Runnable) -> None:
    """Raise CannotJudge when the original rounds far more than the other: one of them rounds by a cast of its own."""
    least = max(proof.deployed_error, unit_roundoff(folded.module) * proof.amplification)
    if proof.original_error > DEPLOYED_FACTOR * least:
        raise CannotJudge(
            f"as deployed the original is off by {proof.original_error:.3g} of a channel's scale from what it is in "
            f"float64, the folded model by {proof.deployed_error:.3g}: one of them rounds where the other does not",
            "a cast in the original",
        )


def _require_same_writes(original: Runnable, folded: Runnable, inputs: Inputs) -> None:
    """Raise FoldError when one of two models alone leaves other values in its inputs."""
    written = []
    for model in (original, folded):
        given = _copied(inputs if isinstance(inputs, tuple) else dict(inputs))
        with during(f"running the {model.name} on the inputs"), torch.no_grad(), same_random_state():
            call(sharing_copy(model.module), given)
        pairs = zip(_tensors(inputs), _tensors(given), strict=True)
        written.append([number for number, pair in enumerate(pairs) if bool(deviation(*pair).any())])
    if written[0] != written[1]:
        name, number = ("original", written[0]) if len(written[0]) > len(written[1]) else ("folded model", written[1])
        raise FoldError(f"only the {name} writes into its input {number[0]}, which its caller sees")


def _agree(original: Runnable, folded: Runnable, inputs: Inputs, is_exact: bool) -> bool:
    """Return whether two models agree on inputs that need not fit; False when neither runs, or they say nothing.

    Raises:
        FoldError: they differ, or only one of them runs.
    """
    runs = [_refusal_to_run(one, inputs) for one in (original, folded)]
    if any(runs):
        if all(runs) or any(one is not None and one.is_meant for one in runs):
            return False
        name, other = ("original", "folded model") if runs[1] else ("folded model", "original")
        refusal = runs[1] or runs[0]
        raise FoldError(f"for inputs of {shapes_of(inputs)} only the {name} runs, the {other} does not: {refusal}")
    try:
        require_same(original, folded, inputs, is_exact=is_exact)
    except CannotJudge:  # other inputs that say nothing take nothing from the first
        return False
    except FoldError as err:
        raise FoldError(f"for inputs of {shapes_of(inputs)}: {err}") from err
    return True


@dataclass(frozen=True)
class _RefusalToRun:
    """Why a model does not run on some inputs.

    Attributes:
        reason: one sentence.
        is_meant: it says so itself, as a folded network and an exported one do at sizes they were not read for.
    """

    reason: str
    is_meant: bool

    def __str__(self) -> str:
        return self.reason


def _refusal_to_run(model: Runnable, inputs: Inputs) -> _RefusalToRun | None:
    try:
        model.ran_as_deployed(inputs)
    except FoldError as err:
        cause = err.__cause__
        return _RefusalToRun(str(err), cause is None or isinstance(cause, FoldError) or _is_graph(model.module))
    return None


def _is_graph(model: nn.Module) -> bool:
    return isinstance(model, GraphModule)


def _other_inputs(original: nn.Module, folded: nn.Module, inputs: Inputs) -> Iterator[Inputs]:
    """Yield the inputs with other values, then in other sizes: where a model computes otherwise, and another batch."""
    yield _larger(inputs)
    yield from _more(inputs)
    tried = {shapes_of(inputs)}
    most = max(_AT_LEAST, _TIMES * _elements(inputs))
    left = 2 * most
    for others in sorted(_sizes(original, folded, inputs), key=_elements):
        if shapes_of(others) in tried or _elements(others) > left:
            continue
        tried.add(shapes_of(others))
        left -= _elements(others)
        yield others
        if len(tried) > _MOST_RUNS:
            return


def _sizes(original: nn.Module, folded: nn.Module, inputs: Inputs) -> list[Inputs]:
    """Return inputs of other sizes that one of both models accepts."""
    found: list[Inputs] = []
    for model in (original, folded):
        accepted = look_at_sizes(sharing_copy(model), inputs).variants
        found += [variant.inputs(inputs) for variant in other_computations(accepted)]
        found += second_sizes(accepted, inputs)
        found += [variant.inputs(inputs) for variant in accepted[1:] if _count(variant) <= 2 * _elements(inputs)][:2]
    return found


def _more(inputs: Inputs) -> Iterator[Inputs]:
    """Yield the inputs with eight times as many rows, and with as many places more along each other axis.

    A forward that takes rows or places by their number, such as `x[9:]`, asks nothing about sizes.
    """
    tensors = _tensors(inputs)
    for axis in range(max((tensor.ndim for tensor in tensors), default=0)):
        if axis == 1 or _TIMES * _elements(inputs) > _AT_LEAST:
            continue
        yield _repeated(inputs, axis)


def _repeated(inputs: Inputs, axis: int) -> Inputs:
    def repeat(value: Any) -> Any:
        is_long = isinstance(value, Tensor) and value.ndim > max(axis, 1) and value.layout is torch.strided
        return torch.cat([value] * _TIMES, axis) if is_long else value

    repeated: Inputs = tree_map(repeat, inputs if isinstance(inputs, tuple) else dict(inputs))
    return repeated


def _larger(inputs: Inputs) -> Inputs:
    """Return the inputs with every floating-point value up to a hundred times as large, of either sign, some zero."""
    generator = torch.Generator().manual_seed(2)

    def enlarge(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        powers, signs = (torch.rand(value.shape, generator=generator, dtype=torch.float64) for _ in range(2))
        factors = 100.0**powers * torch.where(signs < 0.5, -1.0, 1.0) * (powers < 0.9)
        return (value * factors.to(value.device)).to(value.dtype)

    larger: Inputs = tree_map(enlarge, dict(inputs) if not isinstance(inputs, tuple) else inputs)
    return larger


def _require_same_in_other_states(original: Runnable, folded: Runnable, inputs: Inputs) -> None:
    """Raise FoldError where two models differ with grad on, or when they are called again.

    What a state changes is known from runs as deployed. Only where it changes something are the two compared there, and
    by no more than the cap, or ten times what they differ by at first: float64 would tell more than a branch by grad
    can be told by. A folded network that refuses such calls, as where they train the original, differs in nothing.
    """
    first = [one.ran_as_deployed(inputs) for one in (original, folded)]
    for state, within in (("with grad on", _WithGrad), (f"in call {_CALLS} on the same network", _CalledAgain)):
        there = [replace(one, module=within(one.module)) for one in (original, folded)]
        refusal = _refusal_to_run(there[1], inputs)
        if refusal is not None and refusal.is_meant:
            continue
        ran = [one.ran_as_deployed(inputs) for one in there]
        if all(_is_same(*pair) for pair in zip(first, ran, strict=True)):
            continue
        differs = difference(ran[0].returned, ran[1].returned, has_dtypes=True)
        if differs:
            raise FoldError(f"{state} {differs}")
        usual, error = _largest(*first), _largest(*ran)
        if not error <= max(CAP, 10 * usual):
            raise FoldError(
                f"the folded model does not compute what the original computes: {state} its outputs differ by "
                f"{error:.3g} of the scale of their channel, expected at most {max(CAP, 10 * usual):.3g}"
            )


class _Around(nn.Module):
    """A network within another call of it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.training = False  # what torch.export returns cannot be told so


class _WithGrad(_Around):
    """Calls a network with grad on, whatever the mode outside."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.enable_grad():
            return self.network(*args, **kwargs)


class _CalledAgain(_Around):
    """Calls a network a few times, each time from the same random state, and returns the last result."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        for _ in range(_CALLS - 1):
            with same_random_state():
                self.network(*_copied(args), **_copied(kwargs))
        with same_random_state():
            return self.network(*args, **kwargs)


def _copied(values: Any) -> Any:
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, values)


def _is_same(one: Ran, other: Ran) -> bool:
    pairs = zip(one.outputs, other.outputs, strict=False)
    return not difference(one.returned, other.returned, has_dtypes=True) and all(
        a[0].shape == b[0].shape and not bool(deviation(a[0], b[0]).any()) for a, b in pairs
    )


def _largest(one: Ran, other: Ran) -> float:
    """Return the largest difference of floating-point outputs, infinite where their shapes differ."""
    errors = [0.0]
    for (a, *_), (b, *_) in zip(one.outputs, other.outputs, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.numel() and (a.is_floating_point() or a.is_complex()):
            errors.append(float(deviation(a, b).max()))
    return max(errors)


def _elements(inputs: Inputs) -> int:
    return sum(value.numel() for value in _tensors(inputs))


def _count(variant: Variant) -> int:
    return sum(prod(shape) for shape in variant.shapes)


def _tensors(inputs: Inputs) -> list[Tensor]:
    leaves = tree_leaves(inputs if isinstance(inputs, tuple) else dict(inputs))
    return [value for value in leaves if isinstance(value, Tensor)]
