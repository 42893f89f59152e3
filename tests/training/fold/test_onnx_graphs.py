"""Random small networks: whatever their shape, each norm is folded or refused, and the numbers stay."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foldserve.training.fold.onnx.api import fold_onnx
from tests.support.onnx_cases import Net

torch.set_num_threads(1)

OPERATIONS = (
    "conv",
    "grouped",
    "padded",
    "deconv",
    "norm",
    "norm",
    "relu",
    "dropout",
    "identity",
    "average",
    "maximum",
    "transpose",
    "flatten",
    "resize",
    "pad",
    "hand",
    "branch",
    "concat",
    "sum",
    "output",
    "twice",
)


def draw_network(choices: list[str], seed: int) -> onnx.ModelProto:
    """A network of `choices`, one operation after the other, on a map of (N, C, 6, 6) or whatever comes of it."""
    net = Net(rng=np.random.default_rng(seed))
    value, channels = net.input("x", "N", 4, 6, 6), 4
    earlier: list[tuple[str, int]] = [(value, channels)]
    declared: set[str] = set()
    for i, choice in enumerate(choices):
        if choice in ("conv", "grouped", "padded", "deconv"):
            groups, kernel, pads = (2, 1, 0) if choice == "grouped" else (1, 3, 1)
            shape = (channels, 4) if choice == "deconv" else (4, channels // groups)
            op = "ConvTranspose" if choice == "deconv" else "Conv"
            weight = net.constant(f"w{i}", *shape, kernel, kernel, scale=0.3)
            value, channels = net.node(op, [value, weight], group=groups, pads=[pads] * 4), 4
        elif choice == "norm":
            value = net.norm(value, channels)
        elif choice == "hand":
            shape = (1, channels, 1, 1)
            value = net.node("Sub", [value, net.constant(f"m{i}", *shape)])
            value = net.node("Div", [value, net.put(f"d{i}", net.rng.uniform(0.5, 2, shape), np.float32)])
            value = net.node("Add", [value, net.constant(f"b{i}", *shape)])
        elif choice in ("relu", "dropout", "identity"):
            value = net.node(choice.capitalize(), [value])
        elif choice in ("average", "maximum"):
            op = "AveragePool" if choice == "average" else "MaxPool"
            value = net.node(op, [value], kernel_shape=[3, 3], pads=[1] * 4)
        elif choice == "transpose":
            value = net.node("Transpose", [value], perm=[0, 1, 3, 2])
        elif choice == "flatten":
            flat = net.node("Flatten", [value])
            value = net.node("Reshape", [flat, net.put(f"s{i}", [-1, channels, 6, 6], np.int64)])
        elif choice == "resize":
            scales = net.put(f"r{i}", [1, 1, 1, 1], np.float32)
            value = net.node("Resize", [value, "", scales], mode="linear")
        elif choice == "pad":
            around = net.put(f"p{i}", [0, 0, 1, 1, 0, 0, -1, -1], np.int64)
            value = net.node("Pad", [value, around], mode="reflect")
        elif choice == "branch":
            earlier.append((value, channels))
        elif choice in ("concat", "sum"):
            other, width = earlier[-1]
            if choice == "concat" and channels + width <= 16:
                value, channels = net.node("Concat", [value, other], axis=1), channels + width
            elif choice == "sum" and width == channels:
                value = net.node("Add", [value, other])
        elif choice == "output" and value not in declared and value != "x":
            net.output(value)
            declared.add(value)
        elif choice == "twice":
            value = net.node("Add", [value, net.node("Relu", [value])])
    net.output(net.node("Relu", [value], "last"))
    return net.model()


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(0.3, 1.5, (3, 4, 6, 6)).astype(np.float32)
    return session.run(None, {"x": x})


@settings(max_examples=60, deadline=None, derandomize=True)
@given(choices=st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=9), seed=st.integers(0, 2**16))
def test_random_network_keeps_its_numbers_and_accounts_for_every_norm(choices, seed):
    """Folded and unfolded agree in onnxruntime, and each BatchNormalization is gone or refused with a reason."""
    model = draw_network(choices, seed)
    folded = fold_onnx(model)
    onnx.checker.check_model(folded.model, full_check=True)
    left = sum(node.op_type == "BatchNormalization" for node in folded.model.graph.node)
    assert left == sum(site.kind == "batch_norm" for site in folded.report.refused)
    for one, other in zip(run(model), run(folded.model), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=2e-5 * max(1e-3, float(np.abs(one).max())))


@pytest.mark.parametrize("seed", range(3))
def test_permuting_channels_commutes_with_folding(seed):
    """Folding a network whose channels were renamed gives the renamed folded network, bit for bit."""
    order = np.random.default_rng(seed).permutation(4)
    plain = draw_network(["conv", "norm"], seed)
    permuted = onnx.ModelProto()
    permuted.CopyFrom(plain)
    for tensor in permuted.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values[order]), tensor.name))
    for one, other in zip(
        fold_onnx(plain).model.graph.initializer, fold_onnx(permuted).model.graph.initializer, strict=True
    ):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(one)[order], onnx.numpy_helper.to_array(other))
