"""Measures the folded model as it will be deployed: stored dtypes, onnxruntime on the CPU, all optimisations off.

Used by `proof` after the algebra has been shown. Optimisations are off because some of them are themselves wrong
on models that still have a norm, and the model is what is judged here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...errors import FoldError
from .evaluator import Evaluator, Values
from .probe import stored_form
from .protos import to_array

_LARGE = 2**14  # elements
_ROUNDOFF = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}


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
        unfolded = _run(original, feeds)
    except _CannotRunError as err:
        return _stored_in_float64(folded, feeds, truth, amplification, str(err))
    try:
        found = _run(folded, feeds)
    except _CannotRunError as err:
        raise FoldError(f"proof failed: onnxruntime runs the model but not the folded one: {err}") from err
    floats = [name for name, value in unfolded.items() if value.dtype.kind == "f"]
    expected = {name: np.asarray(truth.get(name, unfolded[name]), np.float64) for name in floats}
    error = max((_error(found[name], expected[name]) for name in floats), default=0.0)
    usual = max((_error(unfolded[name], expected[name]) for name in floats), default=0.0)
    unit = max((_ROUNDOFF[unfolded[name].dtype.name] for name in floats), default=0.0)
    unit = max(unit, *(unit_roundoff(tensor.data_type) for tensor in folded.graph.initializer), 0.0)
    limit = max(4 * usual, unit * max(64.0, 16.0 * min(amplification, 1e4)))
    if not error <= limit:
        raise FoldError(
            f"proof failed: deployed error {error:.2e}, expected at most {limit:.2e} (unfolded {usual:.2e})"
        )
    return error, usual, limit


class _CannotRunError(Exception):
    """onnxruntime has no kernel, or no room, for a model."""


def _run(model: onnx.ModelProto, feeds: Mapping[str, Values]) -> dict[str, Values]:
    try:
        import onnxruntime as ort
    except ImportError as err:
        raise FoldError("proof impossible: onnxruntime is not installed; install the extra 'cpu' or 'gpu'") from err
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # one run: nothing to keep memory for
    options.add_session_config_entry("session.disable_prepacking", "1")
    values = stored_form(feeds, model)
    large = large_initializers(model)
    try:
        try:
            weights = {tensor.name: to_array(tensor) for tensor in large}
            return _session_outputs(ort, fed_with(model, large), options, {**values, **weights})
        except Exception:  # an operation that wants its weights as constants
            return _session_outputs(ort, model, options, values)
    except Exception as err:  # onnxruntime's own exceptions share no public base
        raise _CannotRunError(str(err).splitlines()[0]) from err


def _session_outputs(ort: Any, model: onnx.ModelProto, options: Any, feeds: Mapping[str, Values]) -> dict[str, Values]:
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    results = session.run(names, dict(feeds))
    return {name: value for name, value in zip(names, results, strict=True) if isinstance(value, np.ndarray)}


def large_initializers(model: onnx.ModelProto) -> list[TensorProto]:
    """Return the initializers that are worth handing over as inputs, of the float types that numpy knows."""
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    return [t for t in model.graph.initializer if t.data_type in kinds and int(np.prod(t.dims)) > _LARGE]


def fed_with(model: onnx.ModelProto, tensors: list[TensorProto]) -> onnx.ModelProto:
    """Return `model` with `tensors` as inputs: a session would hold them twice more than the arrays that are fed."""
    names = {tensor.name for tensor in tensors}
    graph = model.graph
    inputs = [value for value in graph.input if value.name not in names]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors]
    kept = [tensor for tensor in graph.initializer if tensor.name not in names]
    bare = helper.make_graph(graph.node, graph.name, inputs, graph.output, kept, value_info=graph.value_info)
    bare.sparse_initializer.extend(graph.sparse_initializer)
    result = helper.make_model(bare, opset_imports=model.opset_import, functions=model.functions)
    result.ir_version = model.ir_version
    return result


def _stored_in_float64(
    folded: onnx.ModelProto, feeds: Mapping[str, Values], truth: Mapping[str, Values], amplification: float, why: str
) -> tuple[float, float, float]:
    """Judge the stored parameters in float64 arithmetic, where onnxruntime cannot run even the unfolded model."""
    if not truth:
        raise FoldError(f"proof impossible: no output can be computed, in float64 or by onnxruntime: {why}")
    found = Evaluator(folded).run(feeds, truth)
    floats = [name for name, value in truth.items() if value.dtype.kind == "f"]
    error = max((_error(found[name], truth[name]) if name in found else np.inf for name in floats), default=0.0)
    coarsest = max((unit_roundoff(tensor.data_type) for tensor in folded.graph.initializer), default=0.0)
    limit = coarsest * max(64.0, 16.0 * min(amplification, 1e4))
    if not error <= limit:
        raise FoldError(f"proof failed: the stored parameters are off by {error:.2e}, expected at most {limit:.2e}")
    return error, 0.0, limit


def unit_roundoff(kind: int) -> float:
    """Return the unit roundoff of an ONNX float type, 0 for any other."""
    return {1: 2.0**-24, 10: 2.0**-11, 11: 2.0**-53, 16: 2.0**-8}.get(kind, 0.0)


def _error(found: Values, expected: Values) -> float:
    if found.shape != expected.shape:
        return float("inf")
    finite = np.isfinite(expected)
    largest = float(np.max(np.abs(expected[finite]), initial=0.0))
    difference = np.abs(np.asarray(found, np.float64) - expected)[finite]
    worst = float(np.max(difference, initial=0.0))
    return worst / largest if largest > 0 else worst
