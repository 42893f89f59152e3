"""A served graph as onnxruntime runs it on the CPU, at each level of its rewriting; what every proof asks.

It gives the outputs and judges none: `parity` and `publish.proof` compare them with the oracle.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from .errors import VerifyError

Array = NDArray[Any]

# Both levels are compared: with optimisations the runtime rewrites the graph before it runs it.
RUNTIME_LEVELS: Mapping[str, onnxruntime.GraphOptimizationLevel] = {
    "onnxruntime, optimisations off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "onnxruntime, default": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
# As in the service: this pass folds once more, by rules that have changed answers.
_DISABLED_OPTIMIZERS = ["MatMul_BatchNormalization_Fusion"]
_ELEMENTS_AT_ONCE = 2**19  # of the inputs of one run: three pictures of 224 x 224, for the sake of memory


class Session:
    """A served graph as onnxruntime runs it on the CPU.

    Args:
        model: content of model.onnx.
        level: how much the runtime rewrites.

    Raises:
        VerifyError: the runtime cannot load it.
    """

    def __init__(
        self,
        model: bytes,
        level: onnxruntime.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"], disabled_optimizers=_DISABLED_OPTIMIZERS
            )
        except Exception as err:  # onnxruntime's errors share no base below Exception
            raise VerifyError(f"onnxruntime cannot load the graph: {_first_line(err)}") from err
        self.inputs = [given.name for given in self._session.get_inputs()]
        firsts = [given.shape[0] for given in self._session.get_inputs() if given.shape]
        self.fixed_rows = next((rows for rows in firsts if isinstance(rows, int) and rows > 0), None)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name; the rows go through in parts, of the one size that a fixed batch takes.

        Raises:
            VerifyError: the runtime cannot run it.
        """
        names = [output.name for output in self._session.get_outputs()]
        rows = len(next(iter(feeds.values())))
        try:
            parts = [self._session.run(names, dict(part)) for part in chunks(feeds, self.fixed_rows)]
        except Exception as err:  # onnxruntime's errors share no base below Exception
            raise VerifyError(f"onnxruntime cannot run the graph: {_first_line(err)}") from err
        return {
            name: np.concatenate(arrays)[:rows] for name, arrays in zip(names, zip(*parts, strict=True), strict=True)
        }


def chunks(feeds: Mapping[str, Array], fixed: int | None = None) -> Iterator[Mapping[str, Array]]:
    """Yield the rows in parts small enough for one run, of exactly `fixed` rows where a network takes no others."""
    rows = len(next(iter(feeds.values())))
    elements = max(1, sum(array[:1].size for array in feeds.values()))
    size = fixed or max(1, min(rows, _ELEMENTS_AT_ONCE // elements))
    for start in range(0, rows, size):
        part = {name: array[start : start + size] for name, array in feeds.items()}
        yield part if fixed is None else {name: _padded(array, fixed) for name, array in part.items()}


def _padded(array: Array, rows: int) -> Array:
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)]) if len(array) < rows else array


def _first_line(err: Exception) -> str:
    return (str(err).strip().splitlines() or [type(err).__name__])[0]
