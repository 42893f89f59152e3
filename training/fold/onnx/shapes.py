"""Shapes and types of an ONNX model's values, as far as they follow from its inputs and its operations.

Second in the ONNX flow, after `protos`. They come from ONNX's own inference, on a skeleton without the weights. What a
file says of the values in between is not believed: it may be true at the sizes of the exporter alone, and no runtime
looks at it. So a fold rests on nothing that another size of the inputs could change.
"""

import contextlib
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from .operators import NEVER_CONSTANT
from .protos import Dims, Values, attributes, is_tensor_without_shape, operation, rebuilt, skeleton, subgraphs

_SMALL = 1024  # elements of a tensor that may be a shape, axes or indices


def infer(model: onnx.ModelProto) -> tuple[dict[str, Dims], dict[str, int]]:
    """Return shape and element type of each value of the main graph.

    A dimension is an int, or a name of its own ("value?axis") when it is free or nothing is known: two dimensions are
    equal only if these are. That two free sizes of the inputs are called alike says nothing: "?" is a usual name.
    """
    bare = _with_integers(_without_claims(skeleton(model)))
    inferred = shape_inference.infer_shapes(bare, strict_mode=False, data_prop=True)
    shapes: dict[str, Dims] = {}
    types: dict[str, int] = {}
    for value in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input):
        tensor = value.type.tensor_type
        types[value.name] = int(tensor.elem_type)
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(_dimension(d, value.name, i) for i, d in enumerate(tensor.shape.dim))
    for tensor in (*bare.graph.initializer, *model.graph.initializer):
        types[tensor.name], shapes[tensor.name] = int(tensor.data_type), tuple(tensor.dims)
    return shapes, types


def declared(value: onnx.ValueInfoProto) -> Dims:
    """Return the dimensions that a declaration states, () when it states none."""
    dims = value.type.tensor_type.shape.dim
    return tuple(_dimension(dim, value.name, axis) for axis, dim in enumerate(dims))


def with_output_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model`, or a copy with inferred shapes where its outputs have none: runtimes do not mind, ONNX does."""
    if not any(map(is_tensor_without_shape, model.graph.output)):
        return model
    shapes, _ = infer(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.output:
        if is_tensor_without_shape(value) and value.name in shapes:
            dims = [dim if isinstance(dim, int) or "?" not in dim else None for dim in shapes[value.name]]
            value.CopyFrom(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, dims))
    return copy


def _without_claims(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without the sizes of what known operations make, and each free size under a name of its own."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _forget_sizes(copy.graph, {(function.domain, function.name) for function in model.functions})
    for value in copy.graph.input:
        _name_free_sizes(value)
    if model.ir_version >= 4:  # callers may replace an initializer that is an input: a shape, an index
        replaceable = {value.name for value in copy.graph.input}
        kept = [tensor for tensor in copy.graph.initializer if tensor.name not in replaceable]
        del copy.graph.initializer[:]
        copy.graph.initializer.extend(kept)
    return copy


def _forget_sizes(graph: onnx.GraphProto, functions: set[tuple[str, str]]) -> None:
    unknown = {
        name
        for node in graph.node
        if not operation(node) and (node.domain, node.op_type) not in functions
        for name in node.output
    }
    kept = [value for value in graph.value_info if value.name in unknown]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for value in (*graph.output, *graph.value_info):
        if value.name in unknown:
            _name_free_sizes(value)
        elif value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for body in (body for node in graph.node for body in subgraphs(node)):
        _forget_sizes(body, functions)
        for value in body.input:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")


def _name_free_sizes(value: onnx.ValueInfoProto) -> None:
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if not dim.HasField("dim_value"):
            dim.dim_param = f"{value.name}?{axis}"


def _with_integers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` with the integers that operations make of constants as initializers: inference follows few."""
    known = {tensor.name: _read(tensor) for tensor in model.graph.initializer if _is_integer(tensor)}
    kept: list[NodeProto] = []
    made: dict[str, Values] = {}
    for node in model.graph.node:
        results = _integers_of(node, known, model)
        known |= results
        made |= results if node.op_type != "Constant" else {}
        if not results or node.op_type == "Constant":
            kept.append(node)
    if not made:
        return model
    tensors = [numpy_helper.from_array(np.require(values, requirements="C"), name) for name, values in made.items()]
    return rebuilt(model, nodes=kept, initializers=[*model.graph.initializer, *tensors])


def _integers_of(node: NodeProto, known: Mapping[str, Values], model: onnx.ModelProto) -> dict[str, Values]:
    """Return what `node` makes by name when it is a few integers that no input can change, nothing otherwise."""
    if operation(node) == "Constant":
        value = _integer_constant(node)
        return {} if value is None else {str(node.output[0]): value}
    reads = [name for name in node.input if name]
    if operation(node) in NEVER_CONSTANT or not reads or not known.keys() >= {*reads} or any(subgraphs(node)):
        return {}
    inputs = [helper.make_value_info(name, onnx.TypeProto()) for name in dict.fromkeys(reads)]
    outputs = [helper.make_value_info(name, onnx.TypeProto()) for name in node.output if name]
    single = helper.make_model(helper.make_graph([node], "node", inputs, outputs), opset_imports=model.opset_import)
    try:
        with np.errstate(all="ignore"), contextlib.redirect_stdout(None):
            results = ReferenceEvaluator(single).run(None, {name: known[name] for name in reads})
    except Exception:  # an operation that cannot be run here: inference may know it all the same
        return {}
    values = {value.name: np.asarray(result) for value, result in zip(outputs, results, strict=True)}
    return values if all(v.dtype.kind in "iub" and v.size <= _SMALL for v in values.values()) else {}


def _integer_constant(node: NodeProto) -> Values | None:
    value = next(iter(attributes(node).values()), None)
    if isinstance(value, TensorProto):
        return _read(value) if _is_integer(value) else None
    is_integer = isinstance(value, int | list) and np.asarray(value).dtype.kind == "i"
    return np.asarray(value, np.int64) if is_integer else None


def _is_integer(tensor: TensorProto) -> bool:
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type).kind if tensor.data_type else "f"
    is_here = tensor.data_location != TensorProto.EXTERNAL
    return kind in "iub" and is_here and int(np.prod(tensor.dims)) <= _SMALL


def _read(tensor: TensorProto) -> Values:
    return np.asarray(numpy_helper.to_array(tensor))


def _dimension(dim: onnx.TensorShapeProto.Dimension, value: str, axis: int) -> int | str:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return dim.dim_param if any(map(str.isalnum, dim.dim_param)) else f"{value}?{axis}"  # "?" names nothing
