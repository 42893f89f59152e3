"""Operators in the place of ONNX's reference implementation where that is wrong, in bodies and functions too.

Used by `evaluator`, by `kernels` where the graph itself holds them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_loop
from onnx.reference.ops.aionnxml import op_svm_classifier

from .protos import Values


def batch_norm(inputs: Sequence[Values | None], fields: dict[str, Any]) -> Values | None:
    """Return the normalisation by given statistics, None in training mode; ONNX's own takes opset 9 to 13 for that."""
    x, gamma, beta, mean, var = (np.asarray(v) for v in inputs)
    if fields.get("training_mode", 0):
        return None
    shape = (1, *mean.shape) + (1,) * (x.ndim - 1 - mean.ndim)  # with spatial=0 each position has its own statistics
    deviation = np.sqrt(var + fields.get("epsilon", float(np.float32(1e-5))))
    result = np.subtract(x, mean.reshape(shape), dtype=np.result_type(x, mean, var, gamma, beta))
    result /= deviation.reshape(shape)
    result *= gamma.reshape(shape)
    result += beta.reshape(shape)
    return np.asarray(result)


class BatchNormalization(OpRun):
    """The same normalisation inside bodies and functions, which ONNX's reference runs by itself."""

    op_domain = ""

    def _run(self, *inputs: Values, **fields: Any) -> tuple[Values]:
        result = batch_norm(inputs, fields)
        if result is None:
            raise NotImplementedError("BatchNormalization in training mode")
        return (result,)


class Loop(op_loop.Loop):
    """A Loop whose condition may be left out, and whose results of each step are stacked; ONNX's own does neither."""

    op_domain = ""

    def _run(self: Any, *inputs: Any, context: Any = None, body: Any = None, **passed: Any) -> Any:
        steps, condition, *carried = inputs
        goes_on, step = condition is None or bool(condition), 0
        results: list[list[Values]] = [[] for _ in range(self.K)]
        names = self.body.input_names
        while goes_on and (steps is None or step < int(steps)):
            given = {**(context or {}), names[0]: np.array(step, np.int64), names[1]: np.array(True)}
            outputs = self._run_body(given | dict(zip(names[2:], carried, strict=True)), **passed)
            goes_on, carried = bool(outputs[0]), [*outputs[1 : 1 + self.N]]
            for result, value in zip(results, outputs[1 + self.N :], strict=True):
                result.append(value)
            step += 1
        if not step and results:
            raise NotImplementedError("a Loop of no steps, the shape of whose results is not known")
        return (*carried, *map(np.stack, results))


class SVMClassifier(op_svm_classifier.SVMClassifier):
    """ONNX's own but for probabilities of three classes and more, where that sums what should stand side by side."""

    op_domain = "ai.onnx.ml"

    def _probabilities(self, scores: Values, class_count_: int) -> Values:
        pairs = np.zeros((class_count_, class_count_))
        stated: Any = self._svm.atts
        above = np.triu_indices(class_count_, 1)
        for score, a, b, i, j in zip(scores, stated.prob_a, stated.prob_b, *above, strict=True):
            pairs[i, j] = np.clip(1 / (1 + np.exp(float(a) * score + float(b))), 1e-7, 1 - 1e-7)
            pairs[j, i] = 1 - pairs[i, j]
        return _coupled(pairs)


def _coupled(pairs: Values) -> Values:
    """Return probabilities (C,) of classes from those of pairs: `pairs[i, j]` of i where it is i or j.

    Source: Wu, Lin and Weng 2004, Probability Estimates for Multi-class Classification by Pairwise Coupling, algorithm
    2, with the end that LIBSVM has (multiclass_probability in its svm.cpp).
    """
    classes = len(pairs)
    matrix = -pairs.T * pairs
    np.fill_diagonal(matrix, (pairs**2).sum(axis=0))
    found = np.full(classes, 1 / classes)
    for _ in range(max(100, classes)):
        gradient = matrix @ found
        whole = float(found @ gradient)
        if np.abs(gradient - whole).max() < 0.005 / classes:
            break
        for t in range(classes):
            step = (whole - gradient[t]) / matrix[t, t]
            found[t] += step
            whole = (whole + step * (step * matrix[t, t] + 2 * gradient[t])) / (1 + step) ** 2
            gradient = (gradient + step * matrix[t]) / (1 + step)
            found /= 1 + step
    return found


REFERENCE_OPERATIONS: list[type[OpRun]] = [
    BatchNormalization,
    Loop,
    SVMClassifier,
]  # in place of ONNX's own, in bodies as well
