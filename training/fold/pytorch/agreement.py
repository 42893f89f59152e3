"""Whether two models agree beyond the inputs that were given: at other sizes and values, and in other states.

Used by `verify`, after the proof on the inputs themselves. `look` says at which sizes each of them computes in another
way; `probes` makes other values, and `states` calls them in other circumstances, and again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from ...errors import CannotJudge, FoldError
from ..comparison import deviation
from ..failures import during
from ..report import Proof
from ..verdict import DEPLOYED_FACTOR
from .float64 import Inputs, call, sharing_copy
from .look import look_at_sizes
from .model_proof import Runnable, prove_model, require_same, shapes_of, unit_roundoff
from .probes import more, other_values, rows_of_tables, tensors_of
from .process_state import same_random_state
from .recorded_calls import Variant, other_computations
from .sizes import second_sizes
from .states import require_same_in_other_states

_MOST_RUNS = 24
_AT_LEAST = 2**20  # elements of the inputs; larger ones are tried up to so many times the inputs that were given
_TIMES = 8


def agree_everywhere(original: Runnable, folded: Runnable, inputs: Inputs, *, is_exact: bool) -> Proof:
    """Return the proof of two models on `inputs`, with the sizes of all inputs on which they agree.

    Args:
        original: in eval mode.
        folded: in eval mode.
        inputs: positional arguments for both, or a mapping of keyword arguments.
        is_exact: see `prove_model`.

    Raises:
        FoldError: they differ, or only one of them runs, there or at sizes that a model accepts, on larger or
            smaller values, in another circumstance, such as grad or autocast, or in a later call.
        CannotJudge: the inputs say nothing.
    """
    proof = prove_model(original, folded, inputs, is_exact=is_exact)
    _require_like_rounding(proof, folded)
    _require_same_writes(original, folded, inputs)
    sizes = [shapes_of(inputs)]
    for others in _other_inputs(original.module, folded.module, inputs):
        if _agree(original, folded, others, is_exact):
            sizes.append(shapes_of(others))
    require_same_in_other_states(original, folded, inputs)
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
        pairs = zip(tensors_of(inputs), tensors_of(given), strict=True)
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
    yield from other_values(inputs)
    yield from rows_of_tables(original, folded, inputs)
    yield from more(inputs, _AT_LEAST)
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


def _copied(values: Any) -> Any:
    return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, values)


def _elements(inputs: Inputs) -> int:
    return sum(value.numel() for value in tensors_of(inputs))


def _count(variant: Variant) -> int:
    return sum(prod(shape) for shape in variant.shapes)
