"""Values of an ONNX graph that no input can change, worked out in float64.

Used by the modules that read norms and layers: a statistic may be an initializer, a Constant node, or what any chain of
operations makes of them (`sqrt(var + eps)`, the norm of a weight, a transposed one). It evaluates no data and changes
nothing; `OnnxGraph` knows which values are constant, `evaluator` runs the operations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto

from ..refusals import Refusal, RefusalCode
from ..rounding import BFLOAT16, round_once
from .evaluator import run_node
from .graph import OnnxGraph
from .operators import DISCONTINUOUS, SHAPE_ONLY
from .protos import FLOAT_TYPES, operation, to_array, widened

_WIDENING = {(a, b) for a in ("float16", BFLOAT16, "float32") for b in ("float32", "float64")}
_CACHED = 2**14  # elements; larger results would keep a second copy of the weights


@dataclass(frozen=True)
class Constant:
    """A value known before the model runs.

    Attributes:
        values: float64 for floats, which it holds exactly; the tensor's own dtype otherwise.
        dtype: the float dtype it has in the graph, None when it is no float.
    """

    values: npt.NDArray[Any]
    dtype: str | None

    @property
    def integers(self) -> list[int]:
        """The values as Python ints, for shapes and axes."""
        return [int(v) for v in self.values.reshape(-1)]


def read_constant(graph: OnnxGraph, value: str) -> Constant | None:
    """Return what `value` is, or None when it depends on an input of the graph or cannot be worked out exactly.

    Raises:
        Refusal: overridable when it depends on an initializer that callers may replace.
        FoldError: its data lies in an external file that was not loaded.
    """
    found: dict[str, Constant | None] = {}
    pending = [value]  # no recursion: a chain of operations on constants may be of any length
    while pending:
        name = pending[-1]
        operands = [] if name in found else _operands(graph, name)
        missing = next((one for one in operands if one not in found), None)
        if missing is not None and all(found[one] is not None for one in operands if one in found):
            pending.append(missing)
            continue
        if name not in found:
            found[name] = _read(graph, name, found)
        pending.pop()
    return found[value]


def _operands(graph: OnnxGraph, value: str) -> list[str]:
    """Return the constants that have to be known before this one is worked out."""
    node = graph.producer(value)
    if value not in graph.constants or value in graph.initializers or value in graph.known or node is None:
        return []
    if operation(node) in SHAPE_ONLY:
        return []
    return [str(name) for name in (node.input[:1] if operation(node) == "CastLike" else node.input) if name]


def _read(graph: OnnxGraph, value: str, operands: Mapping[str, Constant | None]) -> Constant | None:
    """Return what `value` is, from its operands that are known."""
    if value not in graph.constants:
        return None
    if value in graph.initializers:
        if graph.is_overridable(value):
            raise Refusal(RefusalCode.OVERRIDABLE, f"initializer {value!r} is also an input of the graph")
        return _initializer(graph, value)
    node = graph.producer(value)
    if node is None:
        return None
    constant: Constant | None = graph.known[value] if value in graph.known else _computed(graph, node, value, operands)
    if constant is None or constant.values.size <= _CACHED:
        graph.known[value] = constant
    return constant


def integers_at(graph: OnnxGraph, node: NodeProto, index: int) -> list[int] | None:
    """Return input `index` of the node as ints, or None when it is missing or not constant."""
    if len(node.input) <= index or not node.input[index]:
        return None
    constant = read_constant(graph, node.input[index])
    return None if constant is None else constant.integers


def _initializer(graph: OnnxGraph, name: str) -> Constant:
    tensor: TensorProto = graph.initializers[name]
    dtype = FLOAT_TYPES.get(tensor.data_type)
    return Constant(graph.exact[name] if name in graph.exact else widened(to_array(tensor)), dtype)


def _computed(graph: OnnxGraph, node: NodeProto, value: str, known: Mapping[str, Constant | None]) -> Constant | None:
    """Return what `node` makes of constants; of a CastLike's second input only the type matters."""
    if operation(node) in SHAPE_ONLY:
        numbers = np.array(graph.numbers_of_shape(node), np.int64)
        return Constant(numbers if node.op_type == "Shape" else numbers.prod(), None)
    operands: dict[str, Constant] = {}
    for i, name in enumerate(node.input):
        is_type = operation(node) == "CastLike" and i == 1
        operand = Constant(np.zeros(()), None) if is_type else known.get(name)
        if name and operand is None:
            return None
        if operand is not None:
            operands[name] = operand
    floats = {operand.dtype for operand in operands.values()} - {None}
    if floats and node.op_type in DISCONTINUOUS:
        return None
    try:
        results = run_node(node, {name: operand.values for name, operand in operands.items()}, graph.model)
    except Exception:  # an operation that cannot be run here: its result is not known
        return None
    values = widened(np.asarray(results[list(node.output).index(value)]))
    dtype = graph.dtype(value) or (next(iter(floats)) if len(floats) == 1 and "Cast" not in node.op_type else None)
    if values.dtype.kind == "f" or floats:
        is_known = values.dtype == np.float64 and dtype is not None
        if not is_known or (operation(node) in ("Cast", "CastLike") and not _is_lossless(operands, values, str(dtype))):
            return None
    return Constant(values, dtype)


def _is_lossless(operands: dict[str, Constant], values: npt.NDArray[Any], dtype: str) -> bool:
    """Widening changes no value; narrowing rounds, which the exact algebra must not skip, unless nothing is lost."""
    source = next(iter(operands.values())).dtype
    if source == dtype or (source, dtype) in _WIDENING:
        return True
    try:
        return bool(np.array_equal(round_once(values, dtype), values))
    except Refusal:
        return False
