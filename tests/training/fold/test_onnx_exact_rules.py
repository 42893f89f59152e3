"""DepthToSpace, SpaceToDepth, Einsum, Mean and Expand between a layer and its norm: folded where that is exact.

Everything is float64, so that onnxruntime tells an exact rule from one that is nearly right.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import NodeProto, helper, numpy_helper

from foldserve.training.fold.onnx import axes, producers
from foldserve.training.fold.onnx.api import fold_onnx
from foldserve.training.fold.onnx.kernels import KERNELS
from tests.support.onnx_cases import Net

torch.set_num_threads(1)

SIZES = ((1, 3, 6, 12), (3, 3, 12, 6))
Between = Callable[[Net, str], str]


def ints(net: Net, *values: int) -> str:
    return net.put(f"i{len(net.tensors)}", values, np.int64)


def layer(net: Net, x: str, inside: int, outside: int) -> str:
    """A 1 x 1 convolution as a MatMul, of which the runtime has one in float64."""
    weight = net.constant(f"w{len(net.tensors)}", inside, outside)
    last = net.node("MatMul", [net.node("Transpose", [x], perm=[0, 2, 3, 1]), weight])
    return net.node("Transpose", [last], perm=[0, 3, 1, 2])


def behind_a_layer(between: Between, outside: int, channels: int, *, alike: bool = False) -> onnx.ModelProto:
    """layer -> between -> norm, at free sizes."""
    net = Net(opset=18, dtype=np.float64)
    x = net.input("x", "N", 3, "H", "W")
    net.norm(between(net, layer(net, x, 3, outside)), channels, "y", prefix="bn")
    if alike:
        for name in ("bn_scale", "bn_bias", "bn_mean", "bn_var"):
            net.tensors[name] = np.full_like(net.tensors[name], net.tensors[name][0])
    net.output("y", 4)
    return net.model()


def before_a_layer(between: Between, inside: int, *, alike: bool = False, first: Between = lambda net, x: x) -> Any:
    """norm -> between -> layer, at free sizes."""
    net = Net(opset=18, dtype=np.float64)
    source = first(net, net.input("x", "N", 3, "H", "W"))
    channels = 3 if source == "x" else 12
    normed = net.norm(source, channels, prefix="bn")
    if alike:
        for name in ("bn_scale", "bn_bias", "bn_mean", "bn_var"):
            values = net.tensors[name].reshape(4, -1)
            net.tensors[name] = np.repeat(values[:1], 4, 0).reshape(-1)
    net.node("Identity", [layer(net, between(net, normed), inside, 5)], "y")
    net.output("y", 4)
    return net.model()


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        with_means_written_out(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


def with_means_written_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """A mean as a sum over a number: the runtime has no Mean in float64."""
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Mean":
            total, number = f"{node.output[0]}_total", f"{node.output[0]}_number"
            value = numpy_helper.from_array(np.float64(len(node.input)), number)
            nodes.append(helper.make_node("Sum", node.input, [total]))
            nodes.append(helper.make_node("Constant", [], [number], value=value))
            node = helper.make_node("Div", [total, number], node.output)
        nodes.append(node)
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def require_same(model: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    for shape in SIZES:
        x = np.random.default_rng(0).normal(size=shape)
        expected = run(model, x)
        np.testing.assert_allclose(run(folded, x), expected, rtol=0, atol=1e-12 * float(np.abs(expected).max()))


def op(kind: str, **attributes: object) -> Between:
    return lambda net, x: net.node(kind, [x], **attributes)


def einsum(*equations: str) -> Between:
    def between(net: Net, x: str) -> str:
        for equation in equations:
            x = net.node("Einsum", [x], equation=equation)
        return x

    return between


def with_other_layers(kind: str, count: int, *, reduced: bool = False) -> Between:
    def between(net: Net, x: str) -> str:
        others = [layer(net, "x", 3, 4) for _ in range(count)]
        if reduced:
            others = [net.node("ReduceMean", [other, ints(net, 2, 3)], keepdims=1) for other in others]
        return net.node(kind, [x, *others])

    return between


def expanded(net: Net, x: str) -> str:
    """From (C, 1, 1) to (2, C, 4, 5)."""
    mean = net.node("ReduceMean", [x, ints(net, 0, 2, 3)], keepdims=1)
    return net.node("Expand", [net.node("Squeeze", [mean, ints(net, 0)]), ints(net, 2, 4, 4, 5)])


def expanded_to(net: Net, x: str) -> str:
    return net.node("Expand", [net.node("ReduceMean", [x, ints(net, 2, 3)], keepdims=1), ints(net, 4, 5)])


def expanded_like(net: Net, x: str) -> str:
    sizes = net.node("Slice", [net.node("Shape", ["x"]), ints(net, 2), ints(net, 4)])
    return net.node("Expand", [net.node("ReduceMean", [x, ints(net, 2, 3)], keepdims=1), sizes])


FOLDED: dict[str, Callable[[], onnx.ModelProto]] = {
    "DepthToSpace": lambda: behind_a_layer(op("DepthToSpace", blocksize=2), 8, 2),
    "DepthToSpace, columns first": lambda: behind_a_layer(op("DepthToSpace", blocksize=2, mode="CRD"), 8, 2),
    "DepthToSpace of nine": lambda: behind_a_layer(op("DepthToSpace", blocksize=3, mode="DCR"), 18, 2),
    "DepthToSpace of a norm that is alike": lambda: before_a_layer(
        op("DepthToSpace", blocksize=2), 3, alike=True, first=op("SpaceToDepth", blocksize=2)
    ),
    "SpaceToDepth": lambda: before_a_layer(op("SpaceToDepth", blocksize=2), 12),
    "SpaceToDepth of nine": lambda: before_a_layer(op("SpaceToDepth", blocksize=3), 27),
    "SpaceToDepth before a norm that is alike": lambda: behind_a_layer(
        op("SpaceToDepth", blocksize=2), 2, 8, alike=True
    ),
    "Einsum": lambda: behind_a_layer(einsum("nchw->ncwh"), 4, 4),
    "Einsum, there and back": lambda: behind_a_layer(einsum("nchw->whcn", "abcd -> dcba", "nchw->nchw"), 4, 4),
    "Einsum with dots": lambda: before_a_layer(einsum("...hw->...wh"), 3),
    "Einsum without an arrow": lambda: before_a_layer(einsum("badc", "badc"), 3),
    "Mean": lambda: behind_a_layer(with_other_layers("Mean", 1), 4, 4),
    "Mean of three": lambda: behind_a_layer(with_other_layers("Mean", 2), 4, 4),
    "Mean of other sizes": lambda: behind_a_layer(with_other_layers("Mean", 1, reduced=True), 4, 4),
    "Mean of one": lambda: before_a_layer(op("Mean"), 3),
    "Expand to more axes": lambda: behind_a_layer(expanded, 4, 4),
    "Expand by fewer axes": lambda: behind_a_layer(expanded_to, 4, 4),
    "Expand like another": lambda: behind_a_layer(expanded_like, 4, 4),
}


def by_a_scalar(between: Between) -> onnx.ModelProto:
    """layer -> between -> the same scale and shift for all."""
    net = Net(opset=18, dtype=np.float64)
    x = between(net, layer(net, net.input("x", "N", 3, "H", "W"), 3, 4))
    net.node("Mul", [net.node("Sub", [x, net.put("mean", 0.3, np.float64)]), net.put("scale", 1.7, np.float64)], "y")
    net.output("y", 4)
    return net.model()


def with_constant(net: Net, x: str) -> str:
    return net.node("Mean", [x, net.constant("c", 1, 4, 1, 1)])


def twice(net: Net, x: str) -> str:
    return net.node("Mean", [x, x])


def squared(net: Net, x: str) -> str:
    return net.node("Einsum", [x, x], equation="nchw,nchw->nchw")


def from_one_channel(net: Net, x: str) -> str:
    return net.node("Expand", [net.node("ReduceMean", [x, ints(net, 1)], keepdims=1), ints(net, 1, 4, 1, 1)])


def row_sums(net: Net, x: str) -> str:
    return net.node("Unsqueeze", [net.node("Einsum", [x], equation="nchw->nch"), ints(net, 3)])


def diagonal(net: Net, x: str) -> str:
    square = net.node("Slice", [x, ints(net, 0, 0), ints(net, 4, 4), ints(net, 2, 3)])
    return net.node("Einsum", [square], equation="ncii->nci")


def to_blocks(net: Net, x: str) -> str:
    return net.node("SpaceToDepth", [x], blocksize=2)


LEFT: dict[str, tuple[str, Callable[[], onnx.ModelProto]]] = {
    "DepthToSpace": ("axis", lambda: before_a_layer(op("DepthToSpace", blocksize=2), 3, first=to_blocks)),
    "SpaceToDepth": ("axis", lambda: behind_a_layer(to_blocks, 2, 8)),
    "Einsum that sums": ("unknown-op", lambda: behind_a_layer(row_sums, 4, 4)),
    "Einsum that sums, by a scalar": ("unknown-op", lambda: by_a_scalar(row_sums)),
    "Einsum of a diagonal, by a scalar": ("unknown-op", lambda: by_a_scalar(diagonal)),
    "Einsum of a product, by a scalar": ("unknown-op", lambda: by_a_scalar(squared)),
    "Einsum of two": (
        "unknown-op",
        lambda: before_a_layer(lambda net, x: net.node("Einsum", [x, "x"], equation="nchw,nchw->nchw"), 3),
    ),
    "Mean with a constant": ("axis", lambda: behind_a_layer(with_constant, 4, 4)),
    "Mean of the same": ("multi-use", lambda: behind_a_layer(twice, 4, 4)),
    "Mean behind the norm": ("unknown-op", lambda: before_a_layer(lambda net, x: net.node("Mean", [x, "x"]), 3)),
    "Expand of one channel": ("axis", lambda: behind_a_layer(from_one_channel, 4, 4)),
}


@pytest.mark.parametrize("name", FOLDED)
def test_a_norm_is_folded_where_that_is_exact(name: str) -> None:
    """None is left, and onnxruntime gives the same in float64 at two sizes and batches."""
    model = FOLDED[name]()
    result = fold_onnx(model)
    assert [site.code for site in result.report.refused] == [], result.report.table()
    assert len(result.report.folded) == 1
    require_same(model, result.model)


@pytest.mark.parametrize("name", LEFT)
def test_a_norm_stays_with_the_reason_where_it_is_not(name: str) -> None:
    """The code says what stands in the way, and the model computes what it did."""
    code, build = LEFT[name]
    model = build()
    result = fold_onnx(model)
    assert [site.code for site in result.report.refused] == [code], result.report.table()
    require_same(model, result.model)


def other_mode(real: Callable[..., Any]) -> Callable[..., Any]:
    def mutant(node: NodeProto, *args: Any, **more: Any) -> Any:
        is_crd = any(attribute.s == b"CRD" for attribute in node.attribute)
        turned = helper.make_node(node.op_type, node.input, node.output, blocksize=2, mode="DCR" if is_crd else "CRD")
        return real(turned, *args, **more)

    return mutant


MUTANTS: dict[str, tuple[Any, str, Callable[[Any], Any], str]] = {
    "DepthToSpace, the other mode": (axes, "_across_blocks", other_mode, "DepthToSpace"),
    "columns first, the other mode": (axes, "_across_blocks", other_mode, "DepthToSpace, columns first"),
    "SpaceToDepth, the other mode": (axes, "_across_blocks", other_mode, "SpaceToDepth"),
    "Einsum as if the order were kept": (
        axes,
        "_order_of_einsum",
        lambda real: lambda node, rank: [0, 1, 2, 3],
        "Einsum, once only",
    ),
    "Mean as a sum": (producers, "_MEANS", lambda real: frozenset(), "Mean"),
    "Mean of three as a sum": (producers, "_MEANS", lambda real: frozenset(), "Mean of three"),
    "Expand counted from the front": (
        axes,
        "_across_expand",
        lambda real: lambda node, a, b, c: c,
        "Expand to more axes",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistaken_rule_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is folded by it: the proof of the site says no, or no layer has channels there."""
    module, attribute, mutate, case = MUTANTS[name]
    monkeypatch.setattr(producers, "_SUMS", producers._SUMS | producers._MEANS)
    monkeypatch.setattr(module, attribute, mutate(getattr(module, attribute)))
    model = behind_a_layer(einsum("nchw->cnhw"), 4, 3) if case == "Einsum, once only" else FOLDED[case]()
    result = fold_onnx(model)
    assert not result.report.folded
    assert len(result.report.refused) == 1


@pytest.mark.parametrize("sizes", [False, True])
@pytest.mark.parametrize("transform", ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("how", ["linear", "round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_resizing_in_float64_is_that_of_the_runtime(how: str, transform: str, sizes: bool) -> None:
    """Larger and smaller, by whole and by odd factors, with the halves on the side where the runtime has them."""
    mode = {"mode": "linear"} if how == "linear" else {"mode": "nearest", "nearest_mode": how}
    fields: dict[str, str] = {"coordinate_transformation_mode": transform, **mode}
    for shape, to in (((6, 9), (2, 1.5)), ((7, 10), (0.5, 3)), ((5, 4), (1 / 3, 0.7)), ((1, 3), (2.3, 1))):
        x = np.random.default_rng(0).normal(size=(2, 3, *shape)).astype(np.float32)
        scales, target = np.float32([1, 1, *to]), np.int64([2, 3, shape[0] * 2 + 1, max(1, shape[1] // 2)])
        given = target if sizes else scales
        inputs = ["x", "", "", "to"] if sizes else ["x", "", "to"]
        graph = helper.make_graph(
            [helper.make_node("Resize", inputs, ["y"], **fields)],
            "resize",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [numpy_helper.from_array(given, "to")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        values = [x.astype(float), None, None, given] if sizes else [x.astype(float), None, given.astype(float)]
        got = KERNELS["Resize"](values, {name: value.encode() for name, value in fields.items()})
        assert got is not None
        np.testing.assert_allclose(got, run(model, x), atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing_of_opset_10_is_that_of_the_runtime(mode: str) -> None:
    """Without a choice of coordinates, which the reference does not run at all."""
    for to in ((2, 1.5), (0.5, 3), (1 / 3, 0.7)):
        x, scales = np.random.default_rng(0).normal(size=(2, 3, 7, 10)).astype(np.float32), np.float32([1, 1, *to])
        graph = helper.make_graph(
            [helper.make_node("Resize", ["x", "to"], ["y"], mode=mode)],
            "resize",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [numpy_helper.from_array(scales, "to")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=5)
        got = KERNELS["Resize"]([x.astype(float), scales.astype(float)], {"mode": mode.encode()})
        assert got is not None
        np.testing.assert_allclose(got, run(model, x), atol=1e-5)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(("size", "kernel", "stride", "pad"), [(8, 2, 2, 0), (9, 3, 2, 1), (7, 3, 4, 0), (8, 3, 2, 0)])
def test_windows_that_cover_the_input_need_no_partial_one(
    op: str, size: int, kernel: int, stride: int, pad: int
) -> None:
    """`ceil_mode` adds nothing to them, against the runtime; where it adds a window, the reference runs it, slowly."""
    x = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    fields = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "ceil_mode": 1}
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], **fields)],
        "pool",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    got = KERNELS[op]([x.astype(float)], fields)
    assert (got is None) == ((size, kernel) == (8, 3))
    if got is not None:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        np.testing.assert_allclose(got, run(model, x), atol=1e-5)
