"""The proof that a folded model is the model it came from; every fold passes it before it is returned.

Last step of the PyTorch front end. In float64 a right fold agrees to about 1e-14 and a wrong one is off by about 1e-1,
so the limits need no tuning: per site 1e-11 of the magnitude A that the site adds up, end to end 1e-11 of the largest
output times the model's own amplification of a last-bit change of its input.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ...errors import FoldError
from ..report import Proof
from .float64 import Inputs, call, run_model_in_float64, sharing_copy, tensors_in, widen

ALGEBRA_LIMIT = 1e-11
# Folding moves where a layer rounds, so the deployed error may differ from the unfolded model's; not by orders.
DEPLOYED_FACTOR = 64.0

Runner = Callable[..., Any]


def prove_model(
    original: nn.Module,
    folded: nn.Module,
    inputs: Inputs,
    *,
    exact: Mapping[int, Tensor] | None = None,
    original_exact: Mapping[int, Tensor] | None = None,
    before: Callable[[Inputs], Inputs] | None = None,
) -> Proof:
    """Return the measured agreement of two models; raise when they are not the same function.

    Args:
        original: in eval mode.
        folded: in eval mode.
        inputs: positional arguments for both, or a mapping of keyword arguments.
        exact: float64 values of the folded model's rounded tensors, by `id`; without them the comparison can be no
            sharper than the rounding of the parameters, and the limit is that of their dtype.
        original_exact: the same for the original.
        before: what happens to the original's inputs first, for models that took in the normalisation of their input.

    Raises:
        FoldError: outputs differ in number, shape or value by more than the stated limits.
    """
    prepared = before or (lambda values: values)
    oracle = _outputs("the original in float64", original, inputs, prepared, original_exact)
    algebra = _outputs("the folded model in float64", folded, inputs, exact=exact or {})
    amplification = _amplification(original, inputs, prepared, oracle, original_exact)
    limit = ALGEBRA_LIMIT * amplification
    if exact is None:
        limit = DEPLOYED_FACTOR * _unit_roundoff(folded) * amplification
    algebra_error = _relative_error(oracle, algebra)
    _require(algebra_error <= limit, "in float64", algebra_error, limit)
    deployed, unfolded = _deployed(folded, inputs), _deployed(original, prepared(inputs))
    deployed_error, original_error = _relative_error(oracle, deployed), _relative_error(oracle, unfolded)
    deployed_limit = DEPLOYED_FACTOR * max(original_error, _unit_roundoff(folded) * amplification)
    _require(deployed_error <= deployed_limit, "with stored parameters", deployed_error, deployed_limit)
    return Proof(algebra_error, limit, amplification, deployed_error, original_error, deployed_limit)


def _require(holds: bool, where: str, error: float, limit: float) -> None:
    if not holds:
        raise FoldError(
            f"the folded model does not compute what the original computes: {where} the outputs differ by {error:.3g} "
            f"of the largest one, expected at most {limit:.3g}"
        )


def _outputs(
    what: str, model: nn.Module, inputs: Inputs, prepared: Callable[[Inputs], Inputs] | None = None, exact: Any = None
) -> list[Tensor]:
    given = _detached(inputs)
    if prepared is not None:
        given = prepared(tree_map(widen, given))
    try:
        outputs = tensors_in(run_model_in_float64(model, given, exact))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as err:
        raise FoldError(f"{what} cannot be run on the inputs: {type(err).__name__}: {err}") from err
    if not outputs:
        raise FoldError(f"{what} returned no tensor; expected one or more to compare")
    return outputs


def _deployed(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return tensors_in(call(sharing_copy(model), _detached(inputs)))


def _detached(inputs: Inputs) -> Inputs:
    """Return copies of the inputs, so that an operation that writes into its input does not spoil the next run."""
    given = dict(inputs) if isinstance(inputs, Mapping) else inputs
    copied: Inputs = tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, given)
    return copied


def _amplification(
    model: nn.Module, inputs: Inputs, prepared: Callable[[Inputs], Inputs], oracle: list[Tensor], exact: Any
) -> float:
    """Return how much larger, each relative to its size, a change of the output is than of the input; at least 1."""
    step = 2.0**-40  # far above float64's rounding, far below any bend of an activation
    generator = torch.Generator().manual_seed(0)

    def nudge(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        signs = torch.randint(0, 2, value.shape, generator=generator, dtype=torch.int8).to(value.device) * 2 - 1
        return value.double() * (1 + step * signs)

    moved = _outputs("the original in float64", model, tree_map(nudge, inputs), prepared, exact)
    return max(1.0, _relative_error(oracle, moved) / step)


def _relative_error(expected: list[Tensor], got: list[Tensor]) -> float:
    """Return the largest |difference| over the largest |expected|, the worst over the outputs."""
    if len(expected) != len(got):
        raise FoldError(f"the folded model returns {len(got)} tensors, the original {len(expected)}")
    worst = 0.0
    for one, other in zip(expected, got, strict=True):
        if one.shape != other.shape:
            raise FoldError(f"the folded model returns shape {tuple(other.shape)}, the original {tuple(one.shape)}")
        worst = max(worst, _tensor_error(one, other))
    return worst


def _tensor_error(one: Tensor, other: Tensor) -> float:
    if one.numel() == 0:
        return 0.0
    wide = torch.complex128 if one.is_complex() else torch.float64
    left, right = one.detach().to(wide), other.detach().to(device=one.device, dtype=wide)
    if not torch.equal(left.isnan(), right.isnan()) or not torch.equal(left.isinf(), right.isinf()):
        return float("inf")
    finite = left.isfinite()
    difference = float(torch.where(finite, left - right, 0).abs().max())
    largest = float(torch.where(finite, left, 0).abs().max())
    return difference / largest if largest > 0 else (0.0 if difference == 0 else float("inf"))


def _unit_roundoff(model: nn.Module) -> float:
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} or {torch.float32}
    return max(float(np.ldexp(torch.finfo(d).eps, -1)) for d in dtypes)
