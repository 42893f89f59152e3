"""Facts about an ONNX model that can be read without changing it: names, attributes, values, captures of subgraphs.

First in the ONNX flow; `shapes` and `graph` build on it. A skeleton is the model without its weights, so that a large
one is not serialised for a check.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from ...errors import FoldError
from ..rounding import BFLOAT16

Dims = tuple[int | str, ...]
Values = npt.NDArray[Any]

FLOAT_TYPES = {
    int(TensorProto.FLOAT16): "float16",
    int(TensorProto.BFLOAT16): BFLOAT16,
    int(TensorProto.FLOAT): "float32",
    int(TensorProto.DOUBLE): "float64",
}
FRACTION_BITS = {"float16": 10, BFLOAT16: 7, "float32": 23, "float64": 52}
TYPE_NUMBERS = {name: number for number, name in FLOAT_TYPES.items()}
_CHECKED_WHOLE = 2**22  # numbers; the check of a larger model would hold it twice more
_LONGEST_LINE = 500
_SMALL = 1024  # initializers up to this many elements may be shapes or axes, which inference wants to see


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set, 0 when the model imports none."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return int(versions[0]) if versions else 0


def with_free_sizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model`, or a copy in which negative sizes, as paddle2onnx writes them, are sizes without a number.

    Runtimes take both alike; ONNX's inference reckons with the negative numbers.
    """
    if not any(dim.dim_value < 0 for value in _declarations(model.graph) for dim in value.type.tensor_type.shape.dim):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in _declarations(copy.graph):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.ClearField("dim_value")
    return copy


def check(model: onnx.ModelProto, what: str, *, full: bool = True) -> None:
    """Run ONNX's check, with the types and shapes of every node when `full`; of a large model without its weights.

    An output whose rank cannot be known, such as that of a Reshape by an input, has no shape: runtimes do not mind, and
    the rest of the model is checked.

    Raises:
        FoldError: naming what ONNX objects to.
    """
    _require_known_types(model, what)
    large = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer) > _CHECKED_WHOLE
    model = _without_outputs_of_unknown_rank(model)
    try:
        onnx.checker.check_model(skeleton(model) if full and large else model, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as err:
        raise FoldError(f"{what} is not valid ONNX: {first_line(err)}; expected one that passes onnx.checker") from err


def _require_known_types(model: onnx.ModelProto, what: str) -> None:
    """Raise FoldError where a type has a number that ONNX does not know: its own check does not look."""
    tensors = [(tensor.name, tensor.data_type) for tensor in model.graph.initializer]
    tensors += [(value.name, value.type.tensor_type.elem_type) for value in _declarations(model.graph)]
    for name, number in tensors:
        if number not in TensorProto.DataType.values():
            raise FoldError(f"{what} is not valid ONNX: {name!r} has the data type {number}, which ONNX does not know")


def check_folded(folded: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Run ONNX's full check on a folded model; only the plain one where it objects to the original as well.

    ONNX cannot infer the shapes of some valid models, such as those with a MeanVarianceNormalization.

    Raises:
        FoldError: naming what ONNX objects to.
    """
    try:
        check(folded, "the folded model")
    except FoldError:
        try:
            check(original, "the original")
        except FoldError:
            check(folded, "the folded model", full=False)
        else:
            raise


def names_of(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield every name that is taken anywhere in `graph` and its subgraphs: values, nodes, initializers."""
    for node in graph.node:
        yield node.name
        yield from node.input
        yield from node.output
        for body in subgraphs(node):
            yield from names_of(body)
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name
    for tensor in graph.initializer:
        yield tensor.name
    for sparse in graph.sparse_initializer:
        yield sparse.values.name


def subgraphs(node: NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the bodies that a node such as If, Loop or Scan carries."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def captures(node: NodeProto) -> set[str]:
    """Return the names that the node's bodies read from outside themselves."""
    return {name for body in subgraphs(node) for name in free_names(body)}


def free_names(body: onnx.GraphProto) -> set[str]:
    """Return the names that `body` reads from outside itself, the bodies in it included."""
    own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    own |= {name for node in body.node for name in node.output}
    read = {name for node in body.node for name in node.input if name} | {value.name for value in body.output}
    for node in body.node:
        read |= captures(node)
    return read - own


def operation(node: NodeProto) -> str:
    """Return the operator's name in ONNX's own domain, "" for one of any other domain."""
    return str(node.op_type) if node.domain in ("", "ai.onnx") else ""


def label(node: NodeProto) -> str:
    """Return what the report calls a node: its name, else that of its first output."""
    return str(node.name or node.output[0])


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return the node's attributes as Python values; a float has its float32 value exactly."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def first_line(err: Exception) -> str:
    """Return what an exception says first; ONNX's own carry the whole model along."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[0].removesuffix(", proto is")[:_LONGEST_LINE] if lines else type(err).__name__


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Give the node's attribute `name` the value `value`, replacing the one it has."""
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    fresh = [AttributeProto.FromString(attribute.SerializeToString()) for attribute in kept]
    del node.attribute[:]
    node.attribute.extend([*fresh, helper.make_attribute(name, value)])


def to_array(tensor: TensorProto) -> Values:
    """Return the tensor's values.

    Raises:
        FoldError: its data lies in another file, which was not read.
    """
    if tensor.data_location == TensorProto.EXTERNAL:
        raise FoldError(
            f"initializer {tensor.name!r}: its data is in an external file; load the model with its external data"
        )
    return np.asarray(numpy_helper.to_array(tensor))


def to_tensor(name: str, rounded: Values, dtype: str) -> TensorProto:
    """Return `rounded`, values of `dtype` as `round_once` gives them, as a tensor with raw little-endian bytes."""
    if dtype != BFLOAT16:
        return numpy_helper.from_array(np.ascontiguousarray(rounded), name)
    bits = (np.ascontiguousarray(rounded, "<f4").view("<u4") >> 16).astype("<u2")
    return helper.make_tensor(name, TensorProto.BFLOAT16, rounded.shape, bits.tobytes(), raw=True)


def widened(values: Values) -> Values:
    """Return floats as float64, which holds each float type exactly, and anything else as it is."""
    is_float = values.dtype.kind == "f" or values.dtype.name == BFLOAT16
    return np.asarray(values, np.float64) if is_float else values


def boxed(value: Any) -> Values:
    """Return a sequence of tensors as one object, anything else as an array: sequences must not be stacked."""
    if not isinstance(value, list):
        return np.asarray(value)
    box = np.empty((), object)
    box[()] = value
    return box


def is_boxed(value: Values) -> bool:
    """Return whether a value is a sequence that was boxed, and not text, which numpy holds as objects too."""
    return value.dtype == object and not value.ndim and isinstance(value.item(), list)


def unit_roundoff(dtype: str | None) -> float:
    """Return the largest relative error of one rounding to a float dtype, 0 for what is no float."""
    return 2.0 ** -(FRACTION_BITS[dtype] + 1) if dtype in FRACTION_BITS else 0.0


def coarsest_roundoff(model: onnx.ModelProto) -> float:
    """Return the largest unit roundoff of the dtypes of the model's parameters."""
    return max((unit_roundoff(FLOAT_TYPES.get(tensor.data_type)) for tensor in model.graph.initializer), default=0.0)


def rebuilt(
    model: onnx.ModelProto,
    *,
    nodes: Sequence[NodeProto] | None = None,
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    initializers: Sequence[TensorProto] | None = None,
) -> onnx.ModelProto:
    """Return a new model with other parts of the main graph in place of those that are given."""
    graph = model.graph
    bare = helper.make_graph(
        graph.node if nodes is None else nodes,
        graph.name or "graph",
        graph.input if inputs is None else inputs,
        graph.output if outputs is None else outputs,
        graph.initializer if initializers is None else initializers,
        value_info=graph.value_info,
    )
    bare.sparse_initializer.extend(graph.sparse_initializer)
    result = helper.make_model(bare, opset_imports=model.opset_import, functions=model.functions)
    result.ir_version = model.ir_version
    return result


def without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the model without the initializers of its graph: a message keeps the room of what left it."""
    copy = onnx.ModelProto()
    _copy_fields(model, copy, "graph")
    _copy_fields(model.graph, copy.graph, "initializer")
    return copy


def _copy_fields(source: Any, copy: Any, left_out: str) -> None:
    """Copy the fields of a protobuf message, all but one."""
    for field, value in source.ListFields():
        if field.name == left_out:
            continue
        if field.message_type is None and isinstance(value, str | bytes | int | float):
            setattr(copy, field.name, value)
        else:
            getattr(copy, field.name).MergeFrom(value)


def with_initializers_as_inputs(model: onnx.ModelProto, tensors: list[TensorProto]) -> onnx.ModelProto:
    """Return `model` with `tensors`, some of its initializers, as inputs of the same name and type."""
    names = {tensor.name for tensor in tensors}
    inputs = [value for value in model.graph.input if value.name not in names]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors]
    return rebuilt(model, inputs=inputs, initializers=[t for t in model.graph.initializer if t.name not in names])


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without the data of its large initializers."""
    large = [tensor for tensor in model.graph.initializer if int(np.prod(tensor.dims)) > _SMALL]
    return with_initializers_as_inputs(model, large)


def _declarations(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """Yield every declaration of a type in `graph` and its bodies."""
    yield from (*graph.input, *graph.output, *graph.value_info)
    for node in graph.node:
        for body in subgraphs(node):
            yield from _declarations(body)


def _without_outputs_of_unknown_rank(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model`, or one that gives the number of elements in place of each output without a shape."""
    unknown = [value.name for value in model.graph.output if is_tensor_without_shape(value)]
    if not unknown:
        return model
    sizes = {name: f"{name}_size_of_unknown_rank" for name in unknown}
    nodes = [helper.make_node("Size", [name], [size]) for name, size in sizes.items()]
    outputs = [value for value in model.graph.output if value.name not in sizes]
    outputs += [helper.make_tensor_value_info(size, TensorProto.INT64, []) for size in sizes.values()]
    return rebuilt(model, nodes=[*model.graph.node, *nodes], outputs=outputs)


def is_tensor_without_shape(value: onnx.ValueInfoProto) -> bool:
    """True for a tensor of which not even the rank is declared."""
    return value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")
