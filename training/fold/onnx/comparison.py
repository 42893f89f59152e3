"""Compares any two ONNX models that are said to compute the same, whoever folded them; no site needs to be known.

Beside `proof`, which knows what was folded where and asks more. It reads and changes no files.
"""

from collections.abc import Mapping

import onnx

from ...errors import FoldError
from ..core import Array
from ..report import Proof
from .deployed import deployed_errors
from .evaluator import Evaluator
from .probe import Prober, Shapes
from .proof import ALGEBRA_LIMIT, end_to_end, require_rounded_once
from .protos import check, coarsest_roundoff, with_free_sizes, with_output_shapes

_PARAMETER_FACTOR = 64.0  # without the exact parameters: how far their rounding may reach, in units of the roundoff


def compare_models(
    original: onnx.ModelProto,
    folded: onnx.ModelProto,
    exact: Mapping[str, Array] | None = None,
    shapes: Shapes | None = None,
) -> Proof:
    """Return how well two models agree on random inputs of the declared shapes.

    Args:
        original: weights in memory.
        folded: has the same inputs and outputs.
        exact: float64 values behind the folded model's rounded parameters, by name; without them the comparison can be
            no sharper than the rounding of the parameters.
        shapes: input -> its whole shape, for those whose free sizes are not to be chosen here.

    Raises:
        FoldError: the models differ by more than the stated limits, or cannot be compared.
    """
    original, folded = (with_output_shapes(with_free_sizes(model)) for model in (original, folded))
    check(original, "the original", full=False)
    check(folded, "the folded model", full=False)
    _require_same_interface(original, folded)
    require_rounded_once(folded, exact or {})
    before, after = Evaluator(original), Evaluator(folded, exact)
    outputs = [value.name for value in original.graph.output]
    probe = Prober(before, shapes).probe(outputs)
    feeds, truth = probe.feeds, {name: probe.values[name] for name in outputs if name in probe.values}
    algebra, amplification = end_to_end(before, after, feeds, truth)
    coarsest = coarsest_roundoff(folded)
    limit = amplification * (ALGEBRA_LIMIT if exact is not None else max(ALGEBRA_LIMIT, _PARAMETER_FACTOR * coarsest))
    if not algebra <= limit:
        raise FoldError(f"the models differ: by {algebra:.2e} of the largest output in float64, at most {limit:.2e}")
    return Proof(algebra, limit, amplification, *deployed_errors(original, folded, feeds, truth, amplification))


def _require_same_interface(original: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    """Raise FoldError unless both models have the same inputs for callers and the same outputs."""
    one, other = _interface(original), _interface(folded)
    if one != other:
        raise FoldError(f"the models differ: inputs and outputs are {other}, expected {one}")


def _interface(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    given = {tensor.name for tensor in model.graph.initializer}
    return [v.name for v in model.graph.input if v.name not in given], [v.name for v in model.graph.output]
