"""Small networks in the form in which older or other exporters write them: names, sizes, operator sets, norms."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INFO = helper.make_tensor_value_info
CLASSES = 4


class _Graph:
    """Collects nodes and weights."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), list(outputs), **attributes))
        return outputs[0]

    def weight(self, name: str, *shape: int, scale: float = 0.3) -> str:
        return self.put(name, (self.rng.normal(size=shape) * scale).astype(np.float32))

    def put(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def norm(self, source: str, prefix: str, channels: int, outputs: Sequence[str], **attributes: object) -> str:
        self.put(f"{prefix}.weight", self.rng.uniform(0.5, 1.5, channels).astype(np.float32))
        self.weight(f"{prefix}.bias", channels)
        self.weight(f"{prefix}.running_mean", channels)
        self.put(f"{prefix}.running_var", self.rng.uniform(0.5, 1.5, channels).astype(np.float32))
        names = [f"{prefix}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        return self.node("BatchNormalization", [source, *names], outputs, epsilon=1e-5, **attributes)

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        opset: int,
        ir: int,
        *,
        lists_weights: bool = False,
    ) -> onnx.ModelProto:
        listed = [INFO(w.name, w.data_type, list(w.dims)) for w in self.weights] if lists_weights else []
        graph = helper.make_graph(self.nodes, "torch-jit-export", [*inputs, *listed], list(outputs), self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
        model.producer_name = "pytorch" if lists_weights else "exporter"
        return model


def old_pytorch(opset: int = 9, batch: int | str = "N") -> onnx.ModelProto:
    """PyTorch 1.0 to 1.5: numbered values, weights among the inputs, a mask of the dropout, a flatten by Shape.

    Args:
        opset: 9, 10 or 11; 11 pads by an input, the others by an attribute.
        batch: the first axis.
    """
    g = _Graph(1)
    if opset < 11:
        padded = g.node("Pad", ["input.1"], ["9"], mode="constant", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.0)
    else:
        pads = g.put("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        padded = g.node("Pad", ["input.1", pads], ["9"], mode="constant")
    conv = g.node("Conv", [padded, g.weight("conv1.weight", 6, 3, 3, 3)], ["10"], kernel_shape=[3, 3], group=1)
    relu = g.node("Relu", [g.norm(conv, "bn1", 6, ["11"], momentum=0.9)], ["12"])
    pooled = g.node("MaxPool", [relu], ["13"], kernel_shape=[2, 2], strides=[2, 2])
    shape = g.node("Shape", [pooled], ["14"])
    first = g.node("Gather", [shape, g.put("15", np.array(0, np.int64))], ["16"], axis=0)
    lists = [g.node("Unsqueeze", [first], ["17"], axes=[0]), g.put("18", np.array([-1], np.int64))]
    flat = g.node("Reshape", [pooled, g.node("Concat", lists, ["19"], axis=0)], ["20"])
    dropped = g.node("Dropout", [flat], ["21", "22"], ratio=0.5)
    names = [dropped, g.weight("fc.weight", CLASSES, 6 * 4 * 4), g.weight("fc.bias", CLASSES)]
    g.node("Gemm", names, ["23"], alpha=1.0, beta=1.0, transB=1)
    x, y = INFO("input.1", TensorProto.FLOAT, [batch, 3, 8, 8]), INFO("23", TensorProto.FLOAT, [batch, CLASSES])
    return g.model([x], [y], opset, 3 if opset == 9 else 4, lists_weights=True)


def tf2onnx(five_outputs: bool = False) -> onnx.ModelProto:
    """TensorFlow's: NHWC with a transposition around each convolution, `:0` in names, a free batch `unk__5`."""
    g = _Graph(2)
    turned = g.node("Transpose", ["input_1:0"], ["model/conv2d/Conv2D__6:0"], perm=[0, 3, 1, 2])
    conv = g.node("Conv", [turned, g.weight("model/conv2d/kernel", 6, 3, 3, 3)], ["conv:0"], auto_pad="SAME_UPPER")
    outputs = ["bn:0", "bn:1", "bn:2", "bn:3", "bn:4"] if five_outputs else ["bn:0"]
    relu = g.node("Relu", [g.norm(conv, "model/bn", 6, outputs)], ["relu:0"])
    back = g.node("Transpose", [relu], ["model/relu__8:0"], perm=[0, 2, 3, 1])
    flat = g.node("Reshape", [back, g.put("const__9", np.array([-1, 8 * 8 * 6], np.int64))], ["flat:0"])
    scores = g.node("MatMul", [flat, g.weight("model/dense/kernel", 8 * 8 * 6, CLASSES)], ["dense:0"])
    g.node("Softmax", [scores], ["Identity:0"], axis=1)
    x = INFO("input_1:0", TensorProto.FLOAT, ["unk__5", 8, 8, 3])
    return g.model([x], [INFO("Identity:0", TensorProto.FLOAT, ["unk__5", CLASSES])], 11, 6)


def paddle() -> onnx.ModelProto:
    """paddle2onnx's: -1 for a size that is free, constants as nodes, HardSwish by its parts, the batch free."""
    g = _Graph(3)
    conv = g.node("Conv", ["x", g.weight("conv2d_0.w_0", 6, 3, 3, 3)], ["conv2d_0.tmp_0"], pads=[1, 1, 1, 1])
    norm = g.norm(conv, "batch_norm_0", 6, ["batch_norm_0.tmp_2"], momentum=0.9)
    for name, value in (("three", 3.0), ("zero", 0.0), ("six", 6.0)):
        g.node("Constant", [], [name], value=numpy_helper.from_array(np.array(value, np.float32)))
    clipped = g.node("Clip", [g.node("Add", [norm, "three"], ["add"]), "zero", "six"], ["clip"])
    swish = g.node("Div", [g.node("Mul", [norm, clipped], ["mul"]), "six"], ["hardswish_0.tmp_0"])
    pooled = g.node("GlobalAveragePool", [swish], ["pool2d_0.tmp_0"])
    flat = g.node("Flatten", [pooled], ["flatten_0.tmp_0"], axis=1)
    scores = g.node("MatMul", [flat, g.weight("linear_0.w_0", 6, CLASSES)], ["linear_0.tmp_0"])
    g.node("Softmax", [scores], ["softmax_0.tmp_0"], axis=-1)
    x, y = INFO("x", TensorProto.FLOAT, [-1, 3, -1, -1]), INFO("softmax_0.tmp_0", TensorProto.FLOAT, [-1, CLASSES])
    return g.model([x], [y], 11, 7)


def five_output_norm(opset: int = 9, used: bool = False) -> onnx.ModelProto:
    """Norms that name the statistics of their batch, as PyTorch wrote them; `used`: somebody reads one of these."""
    g = _Graph(4)
    conv = g.node("Conv", ["x", g.weight("w", 6, 3, 3, 3)], ["c"])
    outputs = ["n", "bn.mean", "bn.var", "batch_norm_dead_output-23", "batch_norm_dead_output-24"]
    pooled = g.node("GlobalAveragePool", [g.norm(conv, "bn", 6, outputs)], ["pooled"])
    flat = g.node("Flatten", [pooled], ["flat"], axis=1)
    flat = g.node("Add", [flat, "batch_norm_dead_output-23"], ["sum"]) if used else flat
    g.node("MatMul", [flat, g.weight("head", 6, CLASSES)], ["y"])
    x, y = INFO("x", TensorProto.FLOAT, ["N", 3, 8, 8]), INFO("y", TensorProto.FLOAT, ["N", CLASSES])
    return g.model([x], [y], opset, 4)


def tied(dtype: type[np.generic] = np.float32) -> onnx.ModelProto:
    """One table that embeds tokens and, transposed, scores them; of float16 it is cast where it is used."""
    g = _Graph(5)
    table = g.put("table", g.rng.normal(size=(11, 4)).astype(dtype))
    rows = g.node("Gather", [table, "tokens"], ["embedded"])
    scored = g.node("MatMul", [rows, g.node("Transpose", [table], ["turned"], perm=[1, 0])], ["scores"])
    g.node("Cast", [scored], ["y"], to=TensorProto.FLOAT)
    x, y = INFO("tokens", TensorProto.INT64, ["N", 3]), INFO("y", TensorProto.FLOAT, ["N", 3, 11])
    return g.model([x], [y], 13, 8)


def bfloat16() -> onnx.ModelProto:
    """Weights in bfloat16, cast to float32 where they are used: what mixed precision leaves."""
    g = _Graph(6)
    g.weights.append(helper.make_tensor("w", TensorProto.BFLOAT16, [4, CLASSES], g.rng.normal(size=16).tolist()))
    wide = g.node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT)
    g.node("MatMul", ["x", wide], ["y"])
    x, y = INFO("x", TensorProto.FLOAT, ["N", 4]), INFO("y", TensorProto.FLOAT, ["N", CLASSES])
    return g.model([x], [y], 13, 8)


def mixed_batches() -> onnx.ModelProto:
    """Two inputs, one of a free batch and one whose batch is written as 1: exporters of pipelines leave such."""
    g = _Graph(7)
    g.node("Add", ["a", "b"], ["sum"])
    g.node("MatMul", ["sum", g.weight("w", 3, CLASSES)], ["y"])
    inputs = [INFO("a", TensorProto.FLOAT, [None, 3]), INFO("b", TensorProto.FLOAT, [1, 3])]
    return g.model(inputs, [INFO("y", TensorProto.FLOAT, [1, CLASSES])], 13, 8)
