"""Values of an ONNX graph that no input can change, worked out in float64.

Used by the modules that read norms and layers: a statistic may be an initializer, a Constant node, or a small
expression over them (`sqrt(var + eps)`, a transposed weight). It evaluates no data and changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto

from ..refusals import Refusal, RefusalCode
from .graph import OnnxGraph
from .protos import FLOAT_TYPES, as_float64, attributes, to_array

_WIDTH = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}  # bits of the fraction


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
    """Return what `value` is, or None when it depends on an input of the graph or on an operation not known here.

    Raises:
        Refusal: overridable when it depends on an initializer that callers may replace.
        FoldError: its data lies in an external file that was not loaded.
    """
    if value in graph.initializers:
        if graph.is_overridable(value):
            raise Refusal(RefusalCode.OVERRIDABLE, f"initializer {value!r} is also an input of the graph")
        return _initializer(graph, value)
    node = graph.producer(value)
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Constant":
        return _constant_node(node)
    if node.op_type == "Shape":
        return _shape(graph, node)
    if node.op_type == "CastLike":
        return _widened(read_constant(graph, node.input[0]), graph.dtype(node.input[1]))
    operation = _OPERATIONS.get(node.op_type)
    if operation is None:
        return None
    operands: list[Constant] = []
    for name in node.input:
        operand = read_constant(graph, name) if name else None
        if operand is None:
            return None
        operands.append(operand)
    return operation(node, operands) if operands else None


def integers_at(graph: OnnxGraph, node: NodeProto, index: int) -> list[int] | None:
    """Return input `index` of the node as ints, or None when it is missing or not constant."""
    if len(node.input) <= index or not node.input[index]:
        return None
    constant = read_constant(graph, node.input[index])
    return None if constant is None else constant.integers


def _initializer(graph: OnnxGraph, name: str) -> Constant:
    tensor = graph.initializers[name]
    dtype = FLOAT_TYPES.get(tensor.data_type)
    if name in graph.exact:
        return Constant(graph.exact[name], dtype)
    return Constant(to_array(tensor) if dtype is None else as_float64(tensor), dtype)


def _constant_node(node: NodeProto) -> Constant | None:
    fields = attributes(node)
    if "value" in fields:
        tensor: TensorProto = fields["value"]
        dtype = FLOAT_TYPES.get(tensor.data_type)
        return Constant(to_array(tensor) if dtype is None else as_float64(tensor), dtype)
    for name in ("value_float", "value_floats"):
        if name in fields:
            return Constant(np.asarray(fields[name], np.float64), "float32")
    for name in ("value_int", "value_ints"):
        if name in fields:
            return Constant(np.asarray(fields[name], np.int64), None)
    return None


def _arithmetic(function: Callable[..., Any]) -> Callable[[NodeProto, list[Constant]], Constant | None]:
    def evaluate(node: NodeProto, operands: list[Constant]) -> Constant | None:
        if any(operand.dtype is None for operand in operands):
            return None
        with np.errstate(all="ignore"):  # what comes out infinite is refused where it is used
            return Constant(np.asarray(function(*(o.values for o in operands)), np.float64), operands[0].dtype)

    return evaluate


def _shape(graph: OnnxGraph, node: NodeProto) -> Constant | None:
    """Return a shape that is all numbers; what has it need not be constant itself."""
    dims, fields = graph.shape(node.input[0]), attributes(node)
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        return None
    return Constant(np.asarray(dims, np.int64)[fields.get("start", 0) : fields.get("end", len(dims))], None)


def _cast(node: NodeProto, operands: list[Constant]) -> Constant | None:
    return _widened(operands[0], FLOAT_TYPES.get(attributes(node)["to"]))


def _widened(constant: Constant | None, target: str | None) -> Constant | None:
    """Widening changes no value; narrowing rounds, which the exact algebra must not skip, unless nothing is lost."""
    if constant is None or constant.dtype is None or target is None:
        return None
    if _WIDTH[target] < _WIDTH[constant.dtype] or {constant.dtype, target} == {"float16", "bfloat16"}:
        return Constant(constant.values, target) if not np.any(constant.values) else None
    return Constant(constant.values, target)


def _identity(node: NodeProto, operands: list[Constant]) -> Constant | None:
    return operands[0]


def _transpose(node: NodeProto, operands: list[Constant]) -> Constant | None:
    return Constant(operands[0].values.transpose(attributes(node).get("perm")), operands[0].dtype)


def _reshape(node: NodeProto, operands: list[Constant]) -> Constant | None:
    data, shape = operands[0].values, operands[1].integers
    keeps_zero = attributes(node).get("allowzero", 0)
    sizes = [data.shape[i] if size == 0 and not keeps_zero else size for i, size in enumerate(shape)]
    return Constant(data.reshape(sizes), operands[0].dtype)


def _flatten(node: NodeProto, operands: list[Constant]) -> Constant | None:
    data, axis = operands[0].values, attributes(node).get("axis", 1)
    rows = int(np.prod(data.shape[: axis % data.ndim if axis < 0 else axis]))
    return Constant(data.reshape(rows, -1), operands[0].dtype)


def _unsqueeze(node: NodeProto, operands: list[Constant]) -> Constant | None:
    axes = operands[1].integers if len(operands) > 1 else attributes(node).get("axes", [])
    return Constant(np.expand_dims(operands[0].values, tuple(axes)), operands[0].dtype)


def _squeeze(node: NodeProto, operands: list[Constant]) -> Constant | None:
    axes = operands[1].integers if len(operands) > 1 else attributes(node).get("axes")
    return Constant(np.squeeze(operands[0].values, None if axes is None else tuple(axes)), operands[0].dtype)


def _expand(node: NodeProto, operands: list[Constant]) -> Constant | None:
    data = operands[0].values
    shape = np.broadcast_shapes(data.shape, tuple(operands[1].integers))
    return Constant(np.broadcast_to(data, shape), operands[0].dtype)


def _constant_of_shape(node: NodeProto, operands: list[Constant]) -> Constant | None:
    filling = _constant_node(node) or Constant(np.zeros(1), "float32")
    return Constant(np.full(operands[0].integers, filling.values.reshape(-1)[0]), filling.dtype)


def _concat(node: NodeProto, operands: list[Constant]) -> Constant | None:
    return Constant(np.concatenate([o.values for o in operands], attributes(node)["axis"]), operands[0].dtype)


def _gather(node: NodeProto, operands: list[Constant]) -> Constant | None:
    indices = operands[1].values.astype(np.int64)
    return Constant(np.take(operands[0].values, indices, attributes(node).get("axis", 0)), operands[0].dtype)


_OPERATIONS: dict[str, Callable[[NodeProto, list[Constant]], Constant | None]] = {
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
    "Div": _arithmetic(np.divide),
    "Pow": _arithmetic(np.power),
    "Sqrt": _arithmetic(np.sqrt),
    "Reciprocal": _arithmetic(np.reciprocal),
    "Neg": _arithmetic(np.negative),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Gather": _gather,
    "Identity": _identity,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Expand": _expand,
}
