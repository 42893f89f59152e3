"""Small ONNX models around one norm each, with the verdict that exact algebra gives: folded, or why not.

Read by `benchmarks/folding.py`, which runs them through every tool, and by the tests, which hold our own fold to the
verdicts. The models are built from nothing but numpy; channels have scales of both signs, means far from zero and
variances over several decades, so that no mistake is small.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

FOLD = "fold"
N = 2


@dataclass
class Net:
    """A model under construction: nodes in order, initializers, graph inputs and outputs."""

    opset: int = 20
    dtype: type[np.floating] = np.float32
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    outputs: list[tuple[str, int | None]] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))
    extra_opsets: tuple[tuple[str, int], ...] = ()

    def input(self, name: str, *dims: int | str) -> str:
        """Declare a graph input and return its name."""
        self.inputs.append(helper.make_tensor_value_info(name, _type(self.dtype), list(dims)))
        return name

    def constant(self, name: str, *shape: int, scale: float = 1.0) -> str:
        """Add a random initializer and return its name."""
        return self.put(name, self.rng.normal(0, scale, shape).astype(self.dtype))

    def put(self, name: str, values: npt.ArrayLike, dtype: type | None = None) -> str:
        """Add an initializer with these values and return its name."""
        self.tensors[name] = np.asarray(values, dtype)
        return name

    def node(self, op: str, inputs: list[str], output: str = "", n_outputs: int = 1, **attributes: object) -> str:
        """Add a node and return the name of its first output."""
        output = output or f"{op.lower()}{len(self.nodes)}"
        outputs = [output] + [f"{output}_{i}" for i in range(1, n_outputs)]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{op}_{len(self.nodes)}", **attributes))
        return output

    def statistics(self, prefix: str, channels: int, dtype: type[np.floating] | None = None) -> list[str]:
        """Scale of both signs, bias, mean and variance of a norm, as initializers."""
        kind = dtype or self.dtype
        gamma = self.rng.uniform(0.5, 1.5, channels) * self.rng.choice([-1, 1], channels)
        gamma[0], gamma[-1] = -abs(gamma[0]), abs(gamma[-1])
        values = [gamma, self.rng.normal(0, 1, channels), self.rng.normal(0, 2, channels)]
        values.append(10.0 ** self.rng.uniform(-1, 1, channels))
        names = [f"{prefix}_{part}" for part in ("scale", "bias", "mean", "var")]
        kinds = [self.dtype, self.dtype, kind, kind]
        for name, value, one in zip(names, values, kinds, strict=True):
            self.tensors[name] = value.astype(one)
        return names

    def norm(self, x: str, channels: int, output: str = "", prefix: str = "", **attributes: object) -> str:
        """Add a BatchNormalization with random statistics and return its output."""
        prefix = prefix or f"bn{len(self.nodes)}"
        return self.node("BatchNormalization", [x, *self.statistics(prefix, channels)], output, **attributes)

    def output(self, name: str, rank: int | None = None) -> None:
        """Declare a graph output; `rank` serves where inference cannot tell it."""
        self.outputs.append((name, rank))

    def model(self, ir_version: int = 10) -> onnx.ModelProto:
        """The finished model; output shapes are filled in by ONNX's inference."""
        kind = _type(self.dtype)
        tensors = [numpy_helper.from_array(values, name) for name, values in self.tensors.items()]
        outputs = [helper.make_tensor_value_info(name, kind, None) for name, _ in self.outputs]
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, v) for d, v in self.extra_opsets)]
        graph = helper.make_graph(self.nodes, "case", self.inputs, outputs, tensors)
        model = helper.make_model(graph, opset_imports=opsets, producer_name="folding-cases")
        model.ir_version = ir_version
        inferred = {v.name: v for v in onnx.shape_inference.infer_shapes(model).graph.output}
        for value, (name, rank) in zip(model.graph.output, self.outputs, strict=True):
            shape = inferred[name].type.tensor_type
            dims = [d.dim_value or d.dim_param or None for d in shape.shape.dim] if shape.HasField("shape") else None
            dims = dims if dims is not None else [None] * (rank or 0)
            value.CopyFrom(helper.make_tensor_value_info(name, kind, dims))
        return model


@dataclass(frozen=True)
class Case:
    """One model and the verdict that is right for it.

    Attributes:
        name: unique, and short enough for a table.
        build: makes the model.
        verdict: "fold", or the code of the refusal that our fold has to give.
        left: how many BatchNormalization nodes a right fold leaves.
        tolerance: of outputs against the float64 oracle, relative to the largest.
    """

    name: str
    build: Callable[[], onnx.ModelProto]
    verdict: str = FOLD
    left: int = 0
    tolerance: float = 1e-4


def cases() -> list[Case]:
    """Every case, in the order of the tables."""
    return [*_convolutions(), *_matrices(), *_axes(), *_neighbours(), *_between(), *_forward(), *_forms(), *_dialects()]


def _type(dtype: type) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _conv(
    rank: int = 2,
    groups: int = 1,
    inside: int = 4,
    outside: int = 6,
    bias: bool = True,
    transposed: bool = False,
    opset: int = 20,
    padding: int = 1,
    kernel: int = 3,
    ir_version: int = 10,
) -> onnx.ModelProto:
    net = Net(opset=opset)
    x = net.input("x", "N", inside, *[9] * rank)
    shape = (inside, outside // groups) if transposed else (outside, inside // groups)
    parameters = [net.constant("w", *shape, *[kernel] * rank)] + ([net.constant("b", outside)] if bias else [])
    op = "ConvTranspose" if transposed else "Conv"
    c = net.node(op, [x, *parameters], group=groups, pads=[padding] * 2 * rank, kernel_shape=[kernel] * rank)
    net.output(net.norm(c, outside, "y"), rank + 2)
    return net.model(ir_version)


def _convolutions() -> Iterator[Case]:
    for rank in (1, 2, 3):
        yield Case(f"Conv{rank}d", lambda rank=rank: _conv(rank))
        yield Case(f"ConvTranspose{rank}d", lambda rank=rank: _conv(rank, transposed=True))
    yield Case("Conv without bias", lambda: _conv(bias=False))
    yield Case("Conv grouped", lambda: _conv(groups=2))
    yield Case("Conv depthwise", lambda: _conv(groups=4, outside=4))
    yield Case("Conv 1x1 with padding", lambda: _conv(kernel=1))
    yield Case("ConvTranspose square", lambda: _conv(inside=4, outside=4, transposed=True))
    yield Case("ConvTranspose grouped", lambda: _conv(groups=2, transposed=True))
    yield Case("ConvTranspose grouped square", lambda: _conv(inside=4, outside=4, groups=2, transposed=True))
    yield Case("ConvTranspose depthwise", lambda: _conv(inside=4, outside=4, groups=4, transposed=True))
    yield Case("Conv with empty bias input", _empty_bias)
    yield Case("Conv strided and dilated", _strided)
    yield Case("Conv same padding", lambda: _attributes(auto_pad="SAME_UPPER", strides=[2, 2]))


def _attributes(**attributes: object) -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)], **attributes)
    net.output(net.norm(c, 6, "y"))
    return net.model()


def _strided() -> onnx.ModelProto:
    return _attributes(strides=[2, 1], dilations=[1, 2], pads=[0, 1, 2, 3])


def _empty_bias() -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3), ""])
    net.output(net.norm(c, 6, "y"))
    return net.model()


def _gemm(
    c_shape: tuple[int, ...] | None = None, rows: int | str = "N", opset: int = 20, **attributes: object
) -> onnx.ModelProto:
    net = Net(opset=opset)
    a = net.input("x", *((5, rows) if attributes.get("transA") else (rows, 5)))
    b = net.constant("w", *((4, 5) if attributes.get("transB") else (5, 4)))
    more = [] if c_shape is None else [net.constant("c", *c_shape)]
    net.output(net.norm(net.node("Gemm", [a, b, *more], **attributes), 4, "y"))
    return net.model()


def _gemm_constant_rows() -> onnx.ModelProto:
    net = Net()
    g = net.node("Gemm", [net.constant("w", 4, 5), net.input("x", 5, 4)])
    net.output(net.norm(g, 4, "y"))
    return net.model()


def _matmul(*x: int | str, bias: bool = False, norm: bool = True) -> onnx.ModelProto:
    net = Net()
    product = net.node("MatMul", [net.input("x", *x), net.constant("w", int(x[-1]), 6)])
    product = net.node("Add", [net.constant("b", 6), product]) if bias else product
    net.output(net.norm(product, 6 if len(x) == 2 else int(x[1]), "y"))
    return net.model()


def _matmul_left() -> onnx.ModelProto:
    net = Net()
    product = net.node("MatMul", [net.constant("w", 6, 5), net.input("x", "N", 5, 7)])
    net.output(net.norm(product, 6, "y"))
    return net.model()


def _matrices() -> Iterator[Case]:
    yield Case("Gemm", lambda: _gemm((4,)))
    yield Case("Gemm without C", lambda: _gemm())
    yield Case("Gemm transA", lambda: _gemm((4,), transA=1))
    yield Case("Gemm transB", lambda: _gemm((4,), transB=1))
    yield Case("Gemm alpha and beta", lambda: _gemm((4,), alpha=0.5, beta=-2.0))
    yield Case("Gemm beta 0", lambda: _gemm((4,), beta=0.0))
    yield Case("Gemm C scalar", lambda: _gemm(()))
    yield Case("Gemm C (1,)", lambda: _gemm((1,)))
    yield Case("Gemm C (1, N)", lambda: _gemm((1, 4)))
    yield Case("Gemm C (M, 1)", lambda: _gemm((3, 1), rows=3), "axis", 1)
    yield Case("Gemm C (M, N)", lambda: _gemm((3, 4), rows=3, beta=2.0), "axis", 1)
    yield Case("Gemm C (N, N) square", lambda: _gemm((4, 4), rows=4), "axis", 1)
    yield Case("Gemm opset 9", lambda: _gemm((4,), opset=9))
    yield Case("Gemm with constant A", _gemm_constant_rows, "axis", 1)
    yield Case("MatMul 2-D", lambda: _matmul("N", 5))
    yield Case("MatMul + Add", lambda: _matmul("N", 5, bias=True))
    yield Case("MatMul 3-D, norm on axis 1", lambda: _matmul("N", 7, 5), "axis", 1)
    yield Case("MatMul 3-D, sizes coincide", lambda: _matmul("N", 6, 5), "axis", 1)
    yield Case("MatMul with constant left side", _matmul_left)


def _matmul_transposed(rows: int) -> onnx.ModelProto:
    net = Net()
    product = net.node("MatMul", [net.input("x", rows, 5), net.constant("w", 5, 6)])
    net.output(net.norm(net.node("Transpose", [product], perm=[1, 0]), rows, "y"))
    return net.model()


def _matmul_reshaped() -> onnx.ModelProto:
    net = Net()
    product = net.node("MatMul", [net.input("x", 6, 5), net.constant("w", 5, 6)])
    split = net.node("Reshape", [product, net.put("shape", [-1, 6, 2], np.int64)])
    net.output(net.norm(split, 6, "y"))
    return net.model()


def _linear_3d_transposed() -> onnx.ModelProto:
    """What `bn(linear(x).transpose(1, 2)).transpose(1, 2)` exports to."""
    net = Net()
    product = net.node("MatMul", [net.input("x", "N", 6, 5), net.constant("w", 5, 6)])
    product = net.node("Add", [product, net.constant("b", 6)])
    turned = net.node("Transpose", [product], perm=[0, 2, 1])
    net.output(net.node("Transpose", [net.norm(turned, 6)], "y", perm=[0, 2, 1]))
    return net.model()


def _linear_flattened() -> onnx.ModelProto:
    """What `bn(linear(x).flatten(0, 1)).reshape_as(x)` exports to."""
    net = Net()
    product = net.node("MatMul", [net.input("x", "N", 7, 5), net.constant("w", 5, 6)])
    flat = net.node("Reshape", [product, net.put("flat", [-1, 6], np.int64)])
    net.output(net.node("Reshape", [net.norm(flat, 6), net.put("back", [-1, 7, 6], np.int64)], "y"))
    return net.model()


def _linear_to_map() -> onnx.ModelProto:
    """A linear layer whose output is read as a map of channels, as in a DCGAN generator."""
    net = Net()
    g = net.node("Gemm", [net.input("x", "N", 5), net.constant("w", 5, 24), net.constant("b", 24)])
    net.output(net.norm(net.node("Reshape", [g, net.put("shape", [-1, 6, 2, 2], np.int64)]), 6, "y"))
    return net.model()


def _conv_flattened(size: int) -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 3, size + 2, size + 2), net.constant("w", 4, 3, 3, 3)])
    net.output(net.norm(net.node("Flatten", [c]), 4 * size * size, "y"))
    return net.model()


def _conv_through_axes() -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 3, 9), net.constant("w", 4, 3, 3)])
    wide = net.node("Unsqueeze", [c, net.put("axes", [3], np.int64)])
    turned = net.node("Transpose", [wide], perm=[2, 3, 0, 1])  # (L, 1, N, C)
    back = net.node("Transpose", [turned], perm=[2, 3, 0, 1])
    net.output(net.norm(net.node("Squeeze", [back, "axes"]), 4, "y"))
    return net.model()


def _axes() -> Iterator[Case]:
    yield Case("MatMul -> Transpose, square", lambda: _matmul_transposed(6), "axis", 1)
    yield Case("MatMul -> Transpose, not square", lambda: _matmul_transposed(3), "axis", 1)
    yield Case("MatMul -> Reshape that splits rows", _matmul_reshaped, "axis", 1)
    yield Case("Linear 3-D -> Transpose -> norm", _linear_3d_transposed)
    yield Case("Linear 3-D -> flatten -> norm", _linear_flattened)
    yield Case("Linear -> view as channels", _linear_to_map)
    yield Case("Conv -> Flatten, map 1x1", lambda: _conv_flattened(1))
    yield Case("Conv -> Flatten, map 2x2", lambda: _conv_flattened(2), "axis", 1)
    yield Case("Conv -> Unsqueeze, Transpose, Squeeze", _conv_through_axes)


def _with_second_reader(kind: str) -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)], "c")
    net.output(net.norm(c, 6, "y"))
    net.output(c if kind == "output" else net.node("Relu", [c], "other"))
    return net.model()


def _shared_weight(second_norm: bool, shared_bias: bool = False) -> onnx.ModelProto:
    net = Net()
    parameters = [net.constant("w", 6, 4, 3, 3)] + ([net.constant("b", 6)] if shared_bias else [])
    first = net.node("Conv", [net.input("x", "N", 4, 9, 9), *parameters])
    second = net.node("Conv", [net.input("z", "N", 4, 9, 9), *parameters])
    net.output(net.norm(first, 6, "y"))
    net.output(net.norm(second, 6, "y2") if second_norm else net.node("Relu", [second], "y2"))
    return net.model()


def _weight_is_statistic() -> onnx.ModelProto:
    net = Net()
    stats = net.statistics("bn", 6)
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3), stats[1]])
    net.output(net.node("BatchNormalization", [c, *stats], "y"))
    return net.model()


def _overridable(name: str) -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    net.output(net.norm(c, 6, "y", prefix="bn"))
    shape = net.tensors[name].shape
    net.input(name, *shape)
    return net.model()


def _clash() -> onnx.ModelProto:
    net = Net()
    x = net.input("w_bias", "N", 4, 9, 9)
    c = net.node("Conv", [x, net.constant("w", 6, 4, 3, 3)])
    net.output(net.norm(c, 6, "y"))
    net.output(net.node("Relu", [x], "z"))
    return net.model()


def _clash_parameter() -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    y = net.norm(c, 6)
    net.output(net.node("Conv", [net.node("Relu", [y]), net.constant("w_bias", 3, 6, 1, 1)], "y"))
    return net.model()


def _computed_statistics() -> onnx.ModelProto:
    net = Net(opset=20)
    c = net.node("Conv", [net.input("x", 3, 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    axes = net.put("axes", [0, 2, 3], np.int64)
    mean = net.node("ReduceMean", [c, axes], keepdims=0)
    stats = net.statistics("bn", 6)
    net.output(net.node("BatchNormalization", [c, stats[0], stats[1], mean, stats[3]], "y"))
    return net.model()


def _neighbours() -> Iterator[Case]:
    yield Case("Conv output read twice", lambda: _with_second_reader("relu"), "multi-use", 1)
    yield Case("Conv output is a graph output", lambda: _with_second_reader("output"), "graph-output", 1)
    yield Case("weight shared, two norms", lambda: _shared_weight(True))
    yield Case("weight shared, one norm", lambda: _shared_weight(False))
    yield Case("weight and bias shared, one norm", lambda: _shared_weight(False, shared_bias=True))
    yield Case("bias shared with the norm's own", _weight_is_statistic)
    yield Case("overridable weight", lambda: _overridable("w"), "overridable", 1)
    yield Case("overridable variance", lambda: _overridable("bn_var"), "overridable", 1)
    yield Case("name w_bias is an input", _clash)
    yield Case("name w_bias is a parameter", _clash_parameter)
    yield Case("statistics of the batch", _computed_statistics, "batch-stats", 1)
    yield Case("inside If, outer weights", _inside_if, "subgraph", 2)
    yield Case("Conv output captured by If", _captured_by_if, "subgraph", 1)
    yield Case("Conv in a local function", _local_function, "subgraph", 1)


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


def _between_nodes(op: str, positive: bool = False, **attributes: object) -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 10, 10), net.constant("w", 6, 4, 3, 3), net.constant("b", 6)])
    extra = [net.put(f"p{i}", v) for i, v in enumerate(attributes.pop("extra", []))]  # type: ignore[arg-type, var-annotated]
    y = net.norm(net.node(op, [c, *extra], **attributes), 6, "y", prefix="bn")
    if positive:
        net.tensors["bn_scale"] = np.abs(net.tensors["bn_scale"])  # type: ignore[type-var]
    net.output(y)
    return net.model()


def _norm_twice(between: str = "") -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    first = net.norm(c, 6)
    first = net.node(between, [first]) if between else first
    net.output(net.norm(first, 6, "y"))
    return net.model()


def _joined(op: str, second: str) -> onnx.ModelProto:
    net = Net()
    x = net.input("x", "N", 6, 9, 9)
    one = net.node("Conv", [x, net.constant("w1", 6, 6, 3, 3), net.constant("b1", 6)], pads=[1] * 4)
    two = x
    if second != "identity":
        two = net.node("Conv", [x, net.constant("w2", 6, 6, 1, 1), net.constant("b2", 6)])
    if second == "relu":
        two = net.node("Relu", [two])
    attributes = {"axis": 1} if op == "Concat" else {}
    net.output(net.norm(net.node(op, [one, two], **attributes), 12 if op == "Concat" else 6, "y"))
    return net.model()


def _between() -> Iterator[Case]:
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    padded = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    yield Case("norm twice", _norm_twice)
    yield Case("norm, Dropout, norm", lambda: _norm_twice("Dropout"))
    yield Case("Identity between", lambda: _between_nodes("Identity"))
    yield Case("Dropout between", lambda: _between_nodes("Dropout"))
    yield Case("AveragePool between", lambda: _between_nodes("AveragePool", **pool))
    yield Case("AveragePool, padding not counted", lambda: _between_nodes("AveragePool", **padded))
    yield Case(
        "AveragePool, padding counted", lambda: _between_nodes("AveragePool", count_include_pad=1, **padded), "pool", 1
    )
    yield Case("GlobalAveragePool between", lambda: _between_nodes("GlobalAveragePool"))
    yield Case("MaxPool, scales positive", lambda: _between_nodes("MaxPool", positive=True, **pool))
    yield Case("MaxPool, scales of both signs", lambda: _between_nodes("MaxPool", **pool), "sign", 1)
    yield Case("LpPool between", lambda: _between_nodes("LpPool", **pool), "pool", 1)
    sizes = {"extra": [np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)]}
    yield Case("Resize nearest between", lambda: _between_nodes("Resize", mode="nearest", **sizes))
    yield Case("Resize linear between", lambda: _between_nodes("Resize", mode="linear", **sizes))
    pads = {"extra": [np.array([0, 0, 1, 1, 0, 0, 1, 1])]}
    yield Case("Pad reflect between", lambda: _between_nodes("Pad", mode="reflect", **pads))
    yield Case("Pad with zeros between", lambda: _between_nodes("Pad", mode="constant", **pads), "pad", 1)
    crop = {"extra": [np.array([1, 1]), np.array([5, 6]), np.array([2, 3])]}
    yield Case("crop between", lambda: _between_nodes("Slice", **crop))
    for op in ("Relu", "Sigmoid", "LeakyRelu"):
        yield Case(f"{op} between", lambda op=op: _between_nodes(op), "activation-between", 1)
    yield Case("Concat of two Convs", lambda: _joined("Concat", "conv"))
    yield Case("Concat of Conv and input", lambda: _joined("Concat", "identity"), "no-producer", 1)
    yield Case("Concat of Conv and Relu", lambda: _joined("Concat", "relu"), "activation-between", 1)
    yield Case("Sum of two Convs", lambda: _joined("Add", "conv"))
    yield Case("difference of two Convs", lambda: _joined("Sub", "conv"))
    yield Case("residual identity", lambda: _joined("Add", "identity"), "no-producer", 1)


def _norm_first(consumer: str, way: str = "", **attributes: object) -> onnx.ModelProto:
    net = Net()
    x = net.input("x", "N", 4, 9, 9)
    if consumer in ("Conv", "ConvTranspose"):
        groups = int(attributes.get("group", 1))  # type: ignore[call-overload]
        h = net.norm(x, 4, prefix="bn")
        if way == "no shift":
            stats = net.tensors
            stats["bn_bias"], stats["bn_mean"] = stats["bn_bias"] * 0, stats["bn_mean"] * 0  # type: ignore[operator]
        elif way:
            extra = [net.put("pads", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)] if way == "Pad" else []
            h = net.node(way, [h, *extra], **({"mode": "reflect"} if way == "Pad" else {}))
        shape = (4, 6) if consumer == "ConvTranspose" else (6, 4 // groups)
        net.output(net.node(consumer, [h, net.constant("w", *shape, 3, 3), net.constant("b", 6)], "y", **attributes))
        return net.model()
    net = Net()
    if way == "Flatten":
        h = net.node("Flatten", [net.norm(net.input("x", "N", 3, 2, 2), 3)])
        width = 12
    else:
        width = 5
        h = net.norm(net.input("x", "N", width), width)
        h = net.node(way, [h]) if way else h
    more = [net.constant("c", 4)] if consumer == "Gemm" else []
    shape = (4, width) if attributes.get("transB") else (width, 4)
    net.output(net.node(consumer, [h, net.constant("w", *shape), *more], "y", **attributes))
    return net.model()


def _norm_norm_conv() -> onnx.ModelProto:
    net = Net()
    h = net.node("Dropout", [net.norm(net.input("x", "N", 4, 9, 9), 4)])
    net.output(net.node("Conv", [net.norm(h, 4), net.constant("w", 6, 4, 3, 3)], "y"))
    return net.model()


def _norm_read_twice() -> onnx.ModelProto:
    net = Net()
    h = net.norm(net.input("x", "N", 4, 9, 9), 4)
    net.output(net.node("Conv", [h, net.constant("w", 6, 4, 3, 3)], "y"))
    net.output(net.node("Relu", [h], "z"))
    return net.model()


def _forward() -> Iterator[Case]:
    yield Case("norm -> Conv", lambda: _norm_first("Conv"))
    yield Case("norm -> Conv grouped", lambda: _norm_first("Conv", group=2))
    yield Case("norm -> Conv with zero padding", lambda: _norm_first("Conv", pads=[1] * 4), "pad", 1)
    yield Case("norm -> Conv same padding", lambda: _norm_first("Conv", auto_pad="SAME_LOWER"), "pad", 1)
    yield Case("norm without shift -> padded Conv", lambda: _norm_first("Conv", "no shift", pads=[1] * 4))
    yield Case("norm -> Pad reflect -> Conv", lambda: _norm_first("Conv", "Pad"))
    yield Case("norm -> Relu -> Conv", lambda: _norm_first("Conv", "Relu"), "activation-between", 1)
    yield Case("norm -> ConvTranspose", lambda: _norm_first("ConvTranspose"), "pad", 1)
    yield Case("norm -> Gemm", lambda: _norm_first("Gemm"))
    yield Case("norm -> Gemm alpha, beta, transB", lambda: _norm_first("Gemm", alpha=0.5, beta=3.0, transB=1))
    yield Case("norm -> Dropout -> MatMul", lambda: _norm_first("MatMul", "Dropout"))
    yield Case("norm -> Flatten -> Gemm", lambda: _norm_first("Gemm", "Flatten"))
    yield Case("norm, Dropout, norm -> Conv", _norm_norm_conv)
    yield Case("norm read twice, then Conv", _norm_read_twice, "multi-use", 1)
    yield Case("norm alone", _alone, "no-producer", 1)


def _alone() -> onnx.ModelProto:
    net = Net()
    net.output(net.norm(net.input("x", "N", 4, 9, 9), 4, "y"))
    return net.model()


def _by_hand(form: str, shape: tuple[int, ...] = (1, 6, 1, 1), linear: bool = False) -> onnx.ModelProto:
    """A hand-written norm as it is exported: (x - mean) / sqrt(var + eps) * gamma + beta."""
    net = Net()
    if linear:
        h = net.node("Gemm", [net.input("x", "N", 5), net.constant("w", 5, 6), net.constant("b", 6)])
    else:
        h = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3), net.constant("b", 6)])
    gamma, beta, mean, var = net.statistics("bn", 6)
    for name in (gamma, beta, mean, var):
        net.tensors[name] = net.tensors[name].reshape(shape)
    eps = net.put("eps", 1e-5, np.float32)
    if form == "scale and shift":
        net.output(net.node("Add", [net.node("Mul", [gamma, h]), beta], "y"))
        return net.model()
    h = net.node("Sub", [h, mean])
    deviation = net.node("Sqrt", [net.node("Add", [var, eps])])
    if form == "reciprocal":
        h = net.node("Mul", [h, net.node("Reciprocal", [deviation])])
    else:
        h = net.node("Div", [h, deviation])
    net.output(net.node("Add", [net.node("Mul", [gamma, h]), beta], "y"))
    return net.model()


def _per_pixel() -> onnx.ModelProto:
    net = Net()
    h = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    h = net.node("Sub", [h, net.constant("mean", 1, 6, 7, 7)])
    net.output(net.norm(net.node("Mul", [h, net.constant("scale", 1, 1, 7, 7)]), 6, "y"))
    return net.model()


def _along_width() -> onnx.ModelProto:
    """A statistic of shape (7,) runs over the width of a map of 7 channels, not over its channels."""
    net = Net()
    h = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 7, 4, 3, 3)])
    h = net.node("Sub", [h, net.constant("mean", 7)])
    net.output(net.node("Mul", [h, net.constant("scale", 7)], "y"))
    return net.model()


def _normalised_input(padding: int) -> onnx.ModelProto:
    net = Net()
    h = net.node("Div", [net.input("x", "N", 3, 9, 9), net.put("full", 255.0, np.float32)])
    h = net.node("Sub", [h, net.put("mean", np.array([0.48, 0.45, 0.4]).reshape(3, 1, 1), np.float32)])
    h = net.node("Div", [h, net.put("deviation", np.array([0.22, 0.23, 0.24]).reshape(1, 3, 1, 1), np.float32)])
    net.output(net.node("Conv", [h, net.constant("w", 6, 3, 3, 3)], "y", pads=[padding] * 4))
    return net.model()


def _constant_nodes() -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    stats = net.statistics("bn", 6)
    for name in [*stats, "w"]:
        tensor = numpy_helper.from_array(net.tensors.pop(name), name)
        net.nodes.insert(0, helper.make_node("Constant", [], [name], name=f"{name}_node", value=tensor))
    net.output(net.node("BatchNormalization", [c, *stats], "y"))
    return net.model()


def _zero_bias_from_shape() -> onnx.ModelProto:
    """What PyTorch's exporter writes for a convolution without bias, before it optimises."""
    net = Net()
    x, w = net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)
    zero = net.node("CastLike", [net.put("zero", 0.0, np.float32), x])
    bias = net.node("Expand", [zero, net.node("Shape", [w], start=0, end=1)])
    net.output(net.norm(net.node("Conv", [x, w, bias]), 6, "y"))
    return net.model()


def _transposed_weight() -> onnx.ModelProto:
    net = Net()
    w = net.node("Transpose", [net.constant("w", 6, 5)], perm=[1, 0])
    net.output(net.norm(net.node("MatMul", [net.input("x", "N", 5), w]), 6, "y"))
    return net.model()


def _statistics(**changes: float) -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    net.output(net.norm(c, 6, "y", prefix="bn"))
    for name, value in changes.items():
        net.tensors[f"bn_{name}"][2] = value  # type: ignore[index]
    return net.model()


def _forms() -> Iterator[Case]:
    yield Case("by hand: Sub, Div, Mul, Add", lambda: _by_hand("divide"))
    yield Case("by hand: (C, 1, 1)", lambda: _by_hand("divide", (6, 1, 1)))
    yield Case("by hand: reciprocal deviation", lambda: _by_hand("reciprocal"))
    yield Case("by hand: after Gemm", lambda: _by_hand("divide", (1, 6), linear=True))
    yield Case("by hand: Mul, Add", lambda: _by_hand("scale and shift"))
    yield Case("by hand: per pixel, then norm", _per_pixel, "unknown-op", 1)
    yield Case("by hand: along the width", _along_width, "axis", 0)
    yield Case("normalised input -> Conv", lambda: _normalised_input(0))
    yield Case("normalised input -> padded Conv", lambda: _normalised_input(1), "pad", 0)
    yield Case("parameters are Constant nodes", _constant_nodes)
    yield Case("weight behind a Transpose", _transposed_weight)
    yield Case("bias of zeros from the weight's shape", _zero_bias_from_shape)
    yield Case("scale 0 in one channel", lambda: _statistics(scale=0.0))
    yield Case("variance 0 in one channel", lambda: _statistics(var=0.0))
    yield Case("mean 1e6 in one channel", lambda: _statistics(mean=1e6))
    yield Case("NaN in one channel", lambda: _statistics(mean=np.nan), "non-finite", 1)
    yield Case("negative variance", lambda: _statistics(var=-1.0), "zero-denominator", 1)
    yield Case("overflow", lambda: _statistics(scale=3e38, var=1e-9), "overflow", 1)


def _half(mixed: bool) -> onnx.ModelProto:
    net = Net(opset=15, dtype=np.float16)
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3, scale=0.2)])
    stats = net.statistics("bn", 6, np.float32 if mixed else np.float16)
    net.output(net.node("BatchNormalization", [c, *stats], "y"))
    return net.model()


def _training(opset: int, outputs: int, **attributes: object) -> onnx.ModelProto:
    net = Net(opset=opset)
    c = net.node("Conv", [net.input("x", 3, 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    stats = net.statistics("bn", 6)
    net.output(net.node("BatchNormalization", [c, *stats], "y", n_outputs=outputs, **attributes), 4)
    return net.model()


def _spatial() -> onnx.ModelProto:
    net = Net(opset=7)
    c = net.node("Conv", [net.input("x", "N", 4, 5, 5), net.constant("w", 6, 4, 3, 3)])
    stats = net.statistics("bn", 6)
    for name in stats:
        net.tensors[name] = np.ascontiguousarray(np.broadcast_to(net.tensors[name].reshape(6, 1, 1), (6, 3, 3)))
    net.output(net.node("BatchNormalization", [c, *stats], "y", spatial=0), 4)
    return net.model(ir_version=6)


def _quantised(where: str) -> onnx.ModelProto:
    net = Net(opset=13)
    x = net.input("x", "N", 4, 9, 9)
    scale, zero = net.put("q_scale", 0.05, np.float32), net.put("q_zero", 0, np.int8)
    if where == "weight":
        values = net.rng.integers(-127, 127, (6, 4, 3, 3)).astype(np.int8)
        w = net.node("DequantizeLinear", [net.put("w", values), scale, zero])
    else:
        w = net.constant("w", 6, 4, 3, 3)
    c = net.node("Conv", [x, w])
    if where == "between":
        c = net.node("DequantizeLinear", [net.node("QuantizeLinear", [c, scale, zero]), scale, zero])
    net.output(net.norm(c, 6, "y"))
    return net.model()


def _custom_domain() -> onnx.ModelProto:
    net = Net(extra_opsets=(("com.microsoft", 1),))
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    gelu = net.node("Gelu", [c], domain="com.microsoft")
    net.output(net.norm(gelu, 6, "y"), 4)
    return net.model()


def _epsilon(value: float | None) -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    net.output(net.norm(c, 6, "y", **({} if value is None else {"epsilon": value})))
    return net.model()


def _cast_between() -> onnx.ModelProto:
    net = Net()
    c = net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant("w", 6, 4, 3, 3)])
    wide = net.node("Cast", [net.node("Cast", [c], to=TensorProto.FLOAT16)], to=TensorProto.FLOAT)
    net.output(net.norm(wide, 6, "y"))
    return net.model()


def _dialects() -> Iterator[Case]:
    yield Case("float16 everywhere", lambda: _half(False), tolerance=2e-2)
    yield Case("float16 with float32 statistics", lambda: _half(True), tolerance=2e-2)
    yield Case("Cast between", _cast_between, "dtype", 1, tolerance=2e-2)
    for opset in (7, 9, 14, 15, 22, 24):
        ir_version = 3 if opset == 7 else 10
        yield Case(
            f"opset {opset}", lambda o=opset, i=ir_version: _conv_ir3(o) if i == 3 else _conv(opset=o, ir_version=i)
        )
    yield Case("training_mode, 3 outputs", lambda: _training(14, 3, training_mode=1), "training-mode", 1)
    yield Case("training_mode, 1 output", lambda: _training(14, 1, training_mode=1), "training-mode", 1)
    yield Case("opset 9 with 5 outputs", lambda: _training(9, 5), "training-mode", 1)
    yield Case("opset 7 with spatial=0", _spatial, "spatial", 1)
    yield Case("epsilon missing", lambda: _epsilon(None))
    yield Case("epsilon 1e-3", lambda: _epsilon(1e-3))
    yield Case("quantised weight", lambda: _quantised("weight"), "quantised", 1)
    yield Case("Q/DQ between", lambda: _quantised("between"), "quantised", 1, tolerance=5e-2)
    yield Case("custom operator between", _custom_domain, "unknown-op", 1)


def _conv_ir3(opset: int) -> onnx.ModelProto:
    """IR 3 lists every initializer among the graph's inputs, where it is still no input of the caller's."""
    model = _conv(opset=opset, ir_version=3)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return model
