"""ONNX cases about other scopes: norms in the bodies of If, Loop and Scan, and in local functions."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.support.onnx_cases.net import Case, Net


def _if_node(net: Net, then: list[NodeProto], other: list[NodeProto], out: str) -> None:
    bodies = []
    for label, nodes in (("then", then), ("else", other)):
        inner = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["N", 6, 7, 7])
        bodies.append(helper.make_graph(nodes, label, [], [inner]))
    net.inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    net.nodes.append(
        helper.make_node("If", ["flag"], [out], name="branch", then_branch=bodies[0], else_branch=bodies[1])
    )


def _inside_if() -> onnx.ModelProto:
    net = Net()
    x, w, stats = net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3), net.statistics("bn", 6)
    bodies = [
        [
            helper.make_node("Conv", [x, w], [f"c{i}"], name=f"conv{i}"),
            helper.make_node("BatchNormalization", [f"c{i}", *stats], [f"b{i}"], name=f"norm{i}"),
        ]
        for i in range(2)
    ]
    _if_node(net, bodies[0], bodies[1], "y")
    net.output("y", 4)
    return net.model()


def _captured_by_if() -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)], "c")
    stats = net.statistics("bn", 6)
    then = [helper.make_node("BatchNormalization", [c, *stats], ["b"], name="norm")]
    other = [helper.make_node("Relu", [c], ["r"], name="relu")]
    _if_node(net, then, other, "y")
    net.output("y", 4)
    return net.model()


def _local_function() -> onnx.ModelProto:
    net = Net(extra_opsets=(("local", 1),))
    x, w, stats = net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3), net.statistics("bn", 6)
    net.nodes.append(helper.make_node("ConvNorm", [x, w, *stats], ["y"], name="call", domain="local"))
    net.output("y", 4)
    model = net.model()
    names = ["a", "w", "s", "b", "m", "v"]
    body = [
        helper.make_node("Conv", ["a", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", *names[2:]], ["o"]),
    ]
    model.functions.append(helper.make_function("local", "ConvNorm", names, ["o"], body, [helper.make_opsetid("", 20)]))
    return model


def _pair(i: int, x: str, w: str, stats: list[str]) -> list[NodeProto]:
    """A Conv and its norm, as nodes of a body."""
    return [
        helper.make_node("Conv", [x, w], [f"c{i}"], name=f"conv{i}"),
        helper.make_node("BatchNormalization", [f"c{i}", *stats], [f"b{i}"], name=f"norm{i}"),
    ]


def _if_in_if(opset: int) -> onnx.ModelProto:
    """Conv and norm two bodies deep; the inner branch reads weights of the main graph."""
    net = Net(opset=opset)
    x, w, stats = net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3), net.statistics("bn", 6)
    deep = Net(opset=opset)
    _if_node(deep, _pair(0, x, w, stats), _pair(1, x, w, stats), "inner")
    _if_node(net, deep.nodes, [*_pair(2, x, w, stats), helper.make_node("Relu", ["b2"], ["r"])], "y")
    net.output("y", 4)
    return net.model()


def _if_with_own_weights() -> onnx.ModelProto:
    """Weights and statistics are initializers of the body itself."""
    net = Net()
    x, w, stats = net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3), net.statistics("bn", 6)
    _if_node(net, _pair(0, x, w, stats), [helper.make_node("Conv", [x, "v"], ["r"], name="plain")], "y")
    body = next(attribute.g for attribute in net.nodes[0].attribute if attribute.name == "then_branch")
    body.initializer.extend(numpy_helper.from_array(net.tensors.pop(name), name) for name in (w, *stats))
    net.constant("v", 6, 4, 3, 3)
    net.output("y", 4)
    return net.model()


def _loop(carried: bool) -> onnx.ModelProto:
    """A Loop that applies Conv and norm three times; `carried`: the norm reads the state itself."""
    net = Net()
    x, w, stats = net.input("x", "N", 6, 9, 9), net.constant("w", 6, 6, 3, 3, scale=0.1), net.statistics("bn", 6)
    kinds = (("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("state", TensorProto.FLOAT, ["N", 6, 9, 9]))
    inputs = [helper.make_tensor_value_info(*kind) for kind in kinds]
    pads = {"pads": [1] * 4}
    if carried:
        nodes = [
            helper.make_node("Conv", ["state", w], ["c"], **pads),
            helper.make_node("BatchNormalization", ["state", *stats], ["n"], name="norm"),
            helper.make_node("Max", ["n", "c"], ["next"]),
        ]
    else:
        nodes = [
            helper.make_node("Conv", ["state", w], ["c"], **pads),
            helper.make_node("BatchNormalization", ["c", *stats], ["n"], name="norm"),
            helper.make_node("Tanh", ["n"], ["next"]),
        ]
    nodes.append(helper.make_node("Identity", ["go"], ["again"]))
    outputs = [
        helper.make_tensor_value_info("again", TensorProto.BOOL, []),
        helper.make_tensor_value_info("next", TensorProto.FLOAT, ["N", 6, 9, 9]),
    ]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    count, go = net.put("count", 3, np.int64), net.put("true", True, np.bool_)
    net.nodes.append(helper.make_node("Loop", [count, go, x], ["y"], name="loop", body=body))
    net.output("y", 4)
    return net.model()


def _scan() -> onnx.ModelProto:
    """A Scan over time steps, each through a linear layer and a hand-written norm."""
    net = Net()
    x, w, stats = net.input("x", 7, "N", 5), net.constant("w", 5, 6), net.statistics("bn", 6)
    net.put("deviation", np.sqrt(net.tensors.pop(stats[3])))  # type: ignore[call-overload]
    nodes = [
        helper.make_node("MatMul", ["step", w], ["m"]),
        helper.make_node("Sub", ["m", stats[2]], ["s"], name="centre"),
        helper.make_node("Div", ["s", "deviation"], ["d"]),
        helper.make_node("Mul", ["d", stats[0]], ["g"]),
        helper.make_node("Add", ["g", stats[1]], ["out"]),
    ]
    body = helper.make_graph(
        nodes,
        "body",
        [helper.make_tensor_value_info("step", TensorProto.FLOAT, ["N", 5])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 6])],
    )
    net.nodes.append(helper.make_node("Scan", [x], ["y"], name="scan", body=body, num_scan_inputs=1))
    net.output("y", 3)
    return net.model()


def _function(body: list[NodeProto], calls: int = 1, opset: int = 20) -> onnx.ModelProto:
    """A local function of (a, w, scale, bias, mean, variance), called one or more times with weights of its own."""
    net = Net(opset=opset, extra_opsets=(("local", 1),))
    value = net.input("x", "N", 6, 9, 9)
    for i in range(calls):
        out = "y" if i == calls - 1 else f"h{i}"
        inputs = [value, net.constant(f"w{i}", 6, 6, 3, 3, scale=0.2), *net.statistics(f"bn{i}", 6)]
        net.nodes.append(helper.make_node("ConvNorm", inputs, [out], name=f"call{i}", domain="local"))
        value = out
    net.output("y", 4)
    model = net.model()
    names = ["a", "w", "s", "b", "m", "v"]
    function = helper.make_function("local", "ConvNorm", names, ["o"], body, [helper.make_opsetid("", opset)])
    model.functions.append(function)
    return model


def _function_body(between: str = "", first: bool = False) -> list[NodeProto]:
    norm = ["s", "b", "m", "v"]
    if first:
        return [
            helper.make_node("BatchNormalization", ["a", *norm], ["n"]),
            helper.make_node("Conv", ["n", "w"], ["o"], pads=[1] * 4),
        ]
    way = [helper.make_node(between, ["c"], ["t"])] if between else []
    return [
        helper.make_node("Conv", ["a", "w"], ["c"]),
        *way,
        helper.make_node("BatchNormalization", ["t" if between else "c", *norm], ["o"]),
    ]


def bodies() -> Iterator[Case]:
    """The cases of this file, in the order of the table."""
    yield Case("inside If, outer weights", _inside_if)
    yield Case("inside If in If", lambda: _if_in_if(20))
    yield Case("inside If, weights of the body", _if_with_own_weights)
    yield Case("inside If, opset 11", lambda: _if_in_if(11))
    yield Case("Conv output captured by If", _captured_by_if, "subgraph", 1)
    yield Case("inside Loop", lambda: _loop(False))
    yield Case("norm of the state of a Loop", lambda: _loop(True), "subgraph", 1)
    yield Case("by hand, inside Scan", _scan)
    yield Case("Conv in a local function", _local_function)
    yield Case("local function called twice", lambda: _function(_function_body(), 2))
    yield Case("local function, opset 11", lambda: _function(_function_body(), 2, opset=11))
    yield Case("Relu between, in a local function", lambda: _function(_function_body("Relu")), "subgraph", 1)
    yield Case("norm -> padded Conv in a local function", lambda: _function(_function_body(first=True)), "subgraph", 1)
