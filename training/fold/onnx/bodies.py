"""Lifts the body of an If, Loop or Scan out as a model of its own, and puts the folded one back.

Used by `scopes`. What the body reads from outside becomes an input of that model, or a constant of it where no
input can change it; the new weights go into the outer graph, from where every body may read them.
"""

import onnx
from onnx import NodeProto, helper

from .graph import OnnxGraph
from .protos import FLOAT_TYPES, free_names, subgraphs
from .shapes import with_output_shapes


def lift(graph: OnnxGraph, body: onnx.GraphProto) -> onnx.ModelProto:
    """Return `body` as a model that computes the same from what it reads outside.

    Args:
        graph: the graph that holds the node of the body.
        body: stays as it is.
    """
    outside, constants = sorted(free_names(body)), _constant_part(graph, free_names(body))
    made = {name for node in constants for name in node.output}
    tensors = {n for n in (*outside, *(i for node in constants for i in node.input)) if n in graph.initializers}
    inputs = [*body.input, *(graph.value_info(n) for n in outside if n not in made | tensors)]
    inputs += [graph.value_info(n) for n in sorted(tensors) if graph.is_overridable(n)]
    initializers = [*body.initializer, *(graph.initializers[n] for n in sorted(tensors))]
    lifted = helper.make_graph(
        [*constants, *body.node], body.name or "body", inputs, body.output, initializers, value_info=body.value_info
    )
    lifted.sparse_initializer.extend(body.sparse_initializer)
    model = helper.make_model(lifted, opset_imports=graph.model.opset_import, functions=graph.model.functions)
    model.ir_version = max(4, graph.model.ir_version)  # before 4, initializers would have to be inputs
    return with_output_shapes(model)


def lower(graph: OnnxGraph, body: onnx.GraphProto, inner: OnnxGraph) -> None:
    """Write the folded `inner`, made from `lift(graph, body)` and finished, back into `body`.

    Args:
        graph: takes the new weights, under fresh names.
        body: is edited in place.
        inner: the folded graph.
    """
    lifted = inner.model.graph
    own = {tensor.name for tensor in body.initializer}
    kept = [tensor for tensor in lifted.initializer if tensor.name in own and tensor.name not in inner.exact]
    outside = free_names(body)
    renames = {name: _move(graph, inner, name) for name in inner.initializers if name in inner.exact}
    known = own | set(graph.initializers) | set(renames)
    for tensor in lifted.initializer:
        if tensor.name not in known:
            values = onnx.numpy_helper.to_array(tensor)
            renames[tensor.name] = graph.put_integers(tensor.name, [int(v) for v in values.reshape(-1)])
    constants = {name for node in _constant_part(graph, outside) for name in node.output}
    nodes = [node for node in lifted.node if not set(node.output) & constants]
    for node in nodes:
        _rename_inputs(node, renames)
    made = {name for node in nodes for name in node.output}
    infos = [info for info in body.value_info if info.name in made]
    _replace(body.node, nodes)
    _replace(body.initializer, kept)
    _replace(body.value_info, infos)
    graph.reindex()


def _constant_part(graph: OnnxGraph, names: set[str]) -> list[NodeProto]:
    """Return the outer nodes that make those of `names` that no input can change, in order; a Shape may read data."""
    constant = graph.constant_values(with_shapes=False)
    wanted: set[int] = set()
    pending = [name for name in names if name in constant]
    while pending:
        node = graph.producer(pending.pop())
        if node is not None and id(node) not in wanted:
            wanted.add(id(node))
            pending += [name for name in node.input if name]
    return [node for node in graph.nodes if id(node) in wanted]


def _move(graph: OnnxGraph, inner: OnnxGraph, name: str) -> str:
    """Store a folded parameter of the body in the outer graph and return its name there."""
    fresh = graph.fresh(name)
    graph.store(fresh, inner.exact[name], FLOAT_TYPES[inner.initializers[name].data_type])
    return fresh


def _rename_inputs(node: NodeProto, renames: dict[str, str]) -> None:
    for i, name in enumerate(node.input):
        node.input[i] = renames.get(name, name)
    for body in subgraphs(node):
        for inner in body.node:
            _rename_inputs(inner, renames)


def _replace(field: object, items: list[object]) -> None:
    """Give a repeated protobuf field other contents."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]  # type: ignore[attr-defined]
    del field[:]  # type: ignore[attr-defined]
    field.extend(copies)  # type: ignore[attr-defined]
