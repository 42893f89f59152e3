"""Measures the folded model as it will be deployed, by `runtime`, against the unfolded one's float64 outputs.

Used by `proof` after the algebra has been shown, and by `comparison`.
"""

from collections.abc import Mapping

import numpy as np
import onnx

from ...errors import FoldError
from .evaluator import Evaluator
from .probe import stored_form
from .protos import Values, coarsest_roundoff, unit_roundoff
from .runtime import CannotRunError, outputs_of


def deployed_errors(
    original: onnx.ModelProto,
    folded: onnx.ModelProto,
    feeds: Mapping[str, Values],
    truth: Mapping[str, Values],
    amplification: float,
) -> tuple[float, float, float]:
    """Return the folded model's error, the unfolded model's, and the bound for the first.

    The bound is four times the unfolded error, or what rounding the input and the parameters once may do by itself:
    16 u times the amplification, at least 64 u, u being the roundoff of the coarsest dtype of outputs and parameters.

    Args:
        original: the unfolded model.
        folded: the model that was made from it.
        feeds: inputs in float64.
        truth: the unfolded model's outputs in float64; outputs that are not in it are judged by onnxruntime's own.
        amplification: relative change of the outputs per relative change of the inputs.

    Raises:
        FoldError: onnxruntime is missing, runs only the unfolded model, or the bound is exceeded.
    """
    try:
        unfolded = outputs_of(original, stored_form(feeds, original))
    except CannotRunError as err:
        return _stored_in_float64(folded, feeds, truth, amplification, str(err))
    try:
        found = outputs_of(folded, stored_form(feeds, folded))
    except CannotRunError as err:
        raise FoldError(f"proof failed: onnxruntime runs the model but not the folded one: {err}") from err
    floats = [name for name, value in unfolded.items() if value.dtype.kind == "f"]
    expected = {name: np.asarray(truth.get(name, unfolded[name]), np.float64) for name in floats}
    error = max((_error(found[name], expected[name]) for name in floats), default=0.0)
    usual = max((_error(unfolded[name], expected[name]) for name in floats), default=0.0)
    unit = max((unit_roundoff(unfolded[name].dtype.name) for name in floats), default=0.0)
    unit = max(unit, coarsest_roundoff(folded))
    limit = max(4 * usual, unit * max(64.0, 16.0 * min(amplification, 1e4)))
    if not error <= limit:
        raise FoldError(
            f"proof failed: deployed error {error:.2e}, expected at most {limit:.2e} (unfolded {usual:.2e})"
        )
    return error, usual, limit


def _stored_in_float64(
    folded: onnx.ModelProto, feeds: Mapping[str, Values], truth: Mapping[str, Values], amplification: float, why: str
) -> tuple[float, float, float]:
    """Judge the stored parameters in float64 arithmetic, where onnxruntime cannot run even the unfolded model."""
    if not truth:
        raise FoldError(f"proof impossible: no output can be computed, in float64 or by onnxruntime: {why}")
    found = Evaluator(folded).run(feeds, truth)
    floats = [name for name, value in truth.items() if value.dtype.kind == "f"]
    error = max((_error(found[name], truth[name]) if name in found else np.inf for name in floats), default=0.0)
    coarsest = coarsest_roundoff(folded)
    limit = coarsest * max(64.0, 16.0 * min(amplification, 1e4))
    if not error <= limit:
        raise FoldError(f"proof failed: the stored parameters are off by {error:.2e}, expected at most {limit:.2e}")
    return error, 0.0, limit


def _error(found: Values, expected: Values) -> float:
    if found.shape != expected.shape:
        return float("inf")
    finite = np.isfinite(expected)
    largest = float(np.max(np.abs(expected[finite]), initial=0.0))
    difference = np.abs(np.asarray(found, np.float64) - expected)[finite]
    worst = float(np.max(difference, initial=0.0))
    return worst / largest if largest > 0 else worst
