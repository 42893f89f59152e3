"""Random operations of an ONNX graph, so that two models can be compared on the same draws.

Used by `evaluator`, which draws the numbers, and by `model_proof`, which hands them to the runtime as inputs: no two
sessions draw alike. What cannot be written as a plain draw stays, and makes its results unknown.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from ..rounding import BFLOAT16, round_once
from .operators import RANDOM
from .protos import TYPE_NUMBERS, Values, attributes, operation, rebuilt, subgraphs
from .shapes import infer

PLAIN_DRAWS = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"})


def with_plain_draws(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model`, or a copy in which Dropout in training mode and Bernoulli are written with uniform numbers."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {
        n.output[0]: a.t for n in model.graph.node for a in n.attribute if n.op_type == "Constant" and a.name == "value"
    }
    replacements = {i: nodes for i, node in enumerate(model.graph.node) if (nodes := _plainly(node, model, constants))}
    if not replacements:
        return model
    return rebuilt(model, nodes=[one for i, node in enumerate(model.graph.node) for one in replacements.get(i, [node])])


def draws_of(model: onnx.ModelProto) -> list[str]:
    """Return the values that are plain draws in the main graph, in the graph's order."""
    return [str(node.output[0]) for node in model.graph.node if operation(node) in PLAIN_DRAWS]


def draws_unseen(node: NodeProto) -> bool:
    """True when the node, or one in its bodies, draws numbers that cannot be handed over."""
    inside = any(
        draws_unseen(inner) or operation(inner) in PLAIN_DRAWS for body in subgraphs(node) for inner in body.node
    )
    return inside or (operation(node) in RANDOM and operation(node) not in PLAIN_DRAWS)


def draw(node: NodeProto, like: Values | None, number: int) -> Values:
    """Return the numbers of one plain draw, float64 that every float type holds.

    Args:
        node: the draw.
        like: what it takes its shape from, None when that is an attribute.
        number: which draw of the graph it is; equal numbers give equal draws.
    """
    fields, rng = attributes(node), np.random.default_rng([number, 11])
    shape = tuple(fields["shape"]) if like is None else like.shape
    if "Normal" in node.op_type:
        values = rng.normal(fields.get("mean", 0.0), fields.get("scale", 1.0), shape)
    else:
        values = rng.uniform(fields.get("low", 0.0), fields.get("high", 1.0), shape)
    return np.asarray(round_once(np.asarray(values), BFLOAT16), np.float64)


def with_draws_as_inputs(model: onnx.ModelProto, draws: Mapping[str, Values]) -> onnx.ModelProto:
    """Return `model` with its plain draws as inputs of these shapes; `model` itself when there are none."""
    if not draws:
        return model
    _, types = infer(model)
    inputs = [helper.make_tensor_value_info(name, types[name], list(value.shape)) for name, value in draws.items()]
    nodes = [node for node in model.graph.node if operation(node) not in PLAIN_DRAWS]
    return rebuilt(model, nodes=nodes, inputs=[*model.graph.input, *inputs])


def _plainly(node: NodeProto, model: onnx.ModelProto, constants: Mapping[str, onnx.TensorProto]) -> list[NodeProto]:
    """Return nodes that compute the same from uniform numbers; nothing when `node` draws none, or cannot be written."""
    name, source = str(node.output[0]), str(node.input[0]) if node.input else ""
    uniform, chosen = f"{name}_uniform", f"{name}_chosen"
    if operation(node) == "Bernoulli":
        kind = attributes(node).get("dtype") or infer(model)[1].get(source, TYPE_NUMBERS["float32"])
        return [
            helper.make_node("RandomUniformLike", [source], [uniform]),
            helper.make_node("Less", [uniform, source], [chosen]),
            helper.make_node("Cast", [chosen], [name], to=kind),
        ]
    is_training = len(node.input) > 2 and node.input[2] in constants and numpy_helper.to_array(constants[node.input[2]])
    if operation(node) != "Dropout" or not is_training or any(node.output[1:]):
        return []
    ratio = float(numpy_helper.to_array(constants[node.input[1]])) if node.input[1] in constants else 0.5
    kind = infer(model)[1].get(source, TYPE_NUMBERS["float32"])
    rate = [
        helper.make_tensor(f"{name}_{part}", kind, [], [value])
        for part, value in (("ratio", ratio), ("kept", 1 - ratio))
    ]
    return [
        helper.make_node("Constant", [], [rate[0].name], value=rate[0]),
        helper.make_node("Constant", [], [rate[1].name], value=rate[1]),
        helper.make_node("RandomUniformLike", [source], [uniform]),
        helper.make_node("Less", [rate[0].name, uniform], [chosen]),
        helper.make_node("Cast", [chosen], [f"{name}_mask"], to=kind),
        helper.make_node("Mul", [source, f"{name}_mask"], [f"{name}_masked"]),
        helper.make_node("Div", [f"{name}_masked", rate[1].name], [name]),
    ]
