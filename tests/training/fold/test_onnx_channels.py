"""Norms whose channels are permuted, picked, split or spread over positions on the way to their layer."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from foldserve.training.fold.onnx.api import fold_onnx
from foldserve.training.fold.onnx.exporter import export_module
from tests.support.onnx_cases import Net

torch.set_num_threads(1)


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(3)
    shapes = {value.name: [d if isinstance(d, int) else 3 for d in value.shape] for value in session.get_inputs()}
    return session.run(None, {name: rng.normal(0.3, 1, shape).astype("f") for name, shape in shapes.items()})


def require(model: onnx.ModelProto, folded: int, codes: set[str] | None = None) -> onnx.ModelProto:
    """So many norms fold, the others are refused with these codes, and onnxruntime sees no difference."""
    result = fold_onnx(model)
    assert (len(result.report.folded), {str(s.code) for s in result.report.refused}) == (folded, codes or set())
    for one, other in zip(run(model), run(result.model), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * np.abs(one).max())
    return result.model


def conv(net: Net, channels: int = 6, name: str = "w") -> str:
    return net.node("Conv", [net.input("x", "N", 4, 9, 9), net.constant(name, channels, 4, 3, 3)])


def put(net: Net, *values: int) -> str:
    return net.put(f"i{len(net.tensors)}", list(values), np.int64)


def shuffled(net: Net, x: str, groups: int, channels: int, size: int = 7) -> str:
    split = net.node("Reshape", [x, put(net, 0, groups, channels // groups, size, size)])
    return net.node(
        "Reshape", [net.node("Transpose", [split], perm=[0, 2, 1, 3, 4]), put(net, 0, channels, size, size)]
    )


WAYS: dict[str, Callable[[Net, str], str]] = {
    "shuffle": lambda net, x: shuffled(net, x, 2, 6),
    "shuffle twice": lambda net, x: shuffled(net, shuffled(net, x, 2, 6), 3, 6),
    "index": lambda net, x: net.node("Gather", [x, put(net, 3, 1, 0, 5, 4, 2)], axis=1),
    "negative index": lambda net, x: net.node("Gather", [x, put(net, -1, 0, -3, 2, 1, -2)], axis=-3),
    "flip": lambda net, x: net.node("Slice", [x, *(put(net, v) for v in (-1, -(2**62), 1, -1))]),
    "some": lambda net, x: net.node("Gather", [x, put(net, 4, 0, 2)], axis=1),
    "a half": lambda net, x: net.node("Slice", [x, *(put(net, v) for v in (1, 2**40, 1, 2))]),
    "other axis": lambda net, x: net.node("Gather", [x, put(net, 3, 3, 0)], axis=3),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_norm_after_picked_channels_goes_into_the_layer_before_them(way):
    """Each channel of a selection is a copy of one of its input: the layer takes the scale of that channel."""
    net = Net()
    x = WAYS[way](net, conv(net))
    net.output(net.norm(x, {"some": 3, "a half": 3}.get(way, 6), "y"), 4)
    require(net.model(), 1)


@pytest.mark.parametrize("way", WAYS)
def test_a_norm_before_picked_channels_goes_into_the_layer_after_them(way):
    """The same the other way round, where an activation keeps the norm from its own layer."""
    net = Net()
    x = net.norm(net.node("Relu", [conv(net)]), 6)
    x = WAYS[way](net, x)
    width = 3 if way == "other axis" else 2
    weight = net.constant("w2", 5, {"some": 3, "a half": 3}.get(way, 6), 2, width)
    net.output(net.node("Conv", [x, weight], "y"), 4)
    require(net.model(), 1)


def test_a_channel_that_is_picked_twice_has_one_scale_only():
    """Two norms' worth of one channel cannot go into one filter; forward they can."""
    net = Net()
    x = net.norm(net.node("Gather", [conv(net), put(net, 0, 1, 1, 2)], axis=1), 4, "y")
    net.output(x, 4)
    require(net.model(), 0, {"axis"})
    net = Net()
    x = net.node("Gather", [net.norm(net.node("Relu", [conv(net)]), 6), put(net, 0, 1, 1, 2)], axis=1)
    net.output(net.node("Conv", [x, net.constant("w2", 5, 4, 1, 1)], "y"), 4)
    require(net.model(), 1)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("parts", ["Split", "Slice"])
def test_a_norm_on_one_half_leaves_the_other_half_alone(parts, both):
    """What chunk exports to: the layer takes the norm for the channels of that half."""
    net = Net()
    x = conv(net)
    if parts == "Split":
        first = net.node("Split", [x, put(net, 2, 4)], n_outputs=2, axis=1)
        second = f"{first}_1"
    else:
        first = net.node("Slice", [x, *(put(net, v) for v in (0, 2, 1))])
        second = net.node("Slice", [x, *(put(net, v) for v in (2, 2**31, 1))])
    first = net.norm(first, 2)
    second = net.norm(second, 4) if both else net.node("Sigmoid", [second])
    net.output(net.node("Concat", [second, first], "y", axis=1), 4)
    require(net.model(), 2 if both else 1)


def test_halves_that_overlap_are_read_twice():
    """A channel that another reader sees unnormalised has to stay as it is."""
    net = Net()
    x = conv(net)
    first = net.norm(net.node("Slice", [x, *(put(net, v) for v in (0, 4, 1))]), 4)
    second = net.node("Slice", [x, *(put(net, v) for v in (3, 2**31, 1))])
    net.output(net.node("Concat", [first, second], "y", axis=1), 4)
    require(net.model(), 0, {"multi-use"})


def test_a_scalar_norm_on_one_half_scales_that_half_alone():
    """One number for every element is that of the half, not of the whole."""
    net = Net()
    first = net.node("Split", [conv(net), put(net, 2, 4)], n_outputs=2, axis=1)
    shifted = net.node("Sub", [first, net.put("mean", 0.7, np.float32)])
    net.node("Mul", [shifted, net.put("scale", -1.5, np.float32)], "y")
    net.output("y", 4)
    net.output(f"{first}_1", 4)
    require(net.model(), 1)


def test_a_split_of_positions_lets_no_norm_past_on_one_part():
    """Along the height both parts come from the same filters."""
    net = Net()
    first = net.node("Split", [conv(net), put(net, 3, 4)], n_outputs=2, axis=2)
    net.output(net.norm(first, 6, "y"), 4)
    net.output(f"{first}_1", 4)
    require(net.model(), 0, {"axis"})


@pytest.mark.parametrize("between", [False, True])
def test_channels_rolled_around_reach_their_layer_on_two_ways(between):
    """torch.roll exports to two slices and a Concat; a bias that both ways would take in is not taken in twice."""
    net = Net()
    x = conv(net)
    if between:
        x = net.node("Add", [x, net.constant("bias", 6, 1, 1)])
    tail = net.node("Slice", [x, *(put(net, v) for v in (4, 2**31, 1))])
    head = net.node("Slice", [x, *(put(net, v) for v in (0, 4, 1))])
    net.output(net.norm(net.node("Concat", [tail, head], axis=1), 6, "y"), 4)
    require(net.model(), 0 if between else 1, {"multi-use"} if between else None)


def test_a_split_forward_reaches_a_layer_on_each_way():
    """A norm before a Split goes into all layers after it; an unread part needs none."""
    net = Net()
    x = net.norm(net.node("Relu", [conv(net)]), 6)
    first = net.node("Split", [x, put(net, 2, 3, 1)], n_outputs=3, axis=1)
    one = net.node("Conv", [first, net.constant("w1", 5, 2, 1, 1)])
    other = net.node("Conv", [f"{first}_1", net.constant("w2", 5, 3, 1, 1)])
    net.output(net.node("Add", [one, other], "y"), 4)
    require(net.model(), 1)


@pytest.mark.parametrize("kind", ["view", "channel_shuffle", "index", "index_select", "flip", "chunk", "roll"])
def test_what_pytorch_exports_folds(kind):
    """Channel permutations and halves as torch.onnx.export writes them, with a free batch."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.part = nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.BatchNorm2d(4)
            self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 5, 6, 4]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            n, c, h, w = y.shape
            if kind == "chunk":
                one, other = y.chunk(2, 1)
                return torch.cat([one, self.part(other)], 1)
            ways = {
                "view": lambda: y.view(n, 2, 4, h, w).transpose(1, 2).reshape(n, c, h, w),
                "channel_shuffle": lambda: nn.functional.channel_shuffle(y, 2),
                "index": lambda: y[:, self.order],
                "index_select": lambda: y.index_select(1, self.order),
                "flip": lambda: y.flip(1),
                "roll": lambda: y.roll(3, 1),
            }
            return self.norm(ways[kind]())

    torch.manual_seed(0)
    network = Network().eval()
    for norm in (network.norm, network.part):
        nn.init.normal_(norm.weight)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    require(export_module(network, (torch.randn(2, 4, 8, 8),), optimize=kind == "roll"), 1)


def test_a_one_channel_norm_that_became_scalars_folds_or_is_reported():
    """Mul and Add of one number each, before a layer or between activations."""
    net = Net()
    x, scale, shift = net.input("x", "N", 1, 9, 9), net.put("s", 0.5, np.float32), net.put("t", -3.0, np.float32)
    scaled = net.node("Add", [net.node("Mul", [x, scale]), shift])
    net.output(net.node("Conv", [scaled, net.constant("w", 6, 1, 3, 3)], "y"), 4)
    require(net.model(), 1)
    net.nodes[-1] = onnx.helper.make_node("Conv", [scaled, "w"], ["y"], pads=[1, 1, 1, 1])
    require(net.model(), 0, {"pad"})
    net.nodes[-1] = onnx.helper.make_node("Relu", [scaled], ["y"])
    require(net.model(), 0, {"activation-between"})


@pytest.mark.parametrize("form", ["rows", "alike", "flattened", "differ"])
def test_norms_with_statistics_of_each_position(form):
    """spatial=0 is exact where all positions are alike, there is one, or they are the outputs of one layer."""
    net = Net(opset=7)
    statistics = net.statistics("bn", 6)
    for name in statistics if form != "rows" else []:
        across = np.linspace(1, 2, 49 if form == "differ" else 1).reshape(1, 7, 7) if form == "differ" else 1.0
        values = net.tensors[name].reshape(6, 1, 1) * across
        net.tensors[name] = np.ascontiguousarray(np.broadcast_to(values, (6, 7, 7)), np.float32)
    if form == "rows":
        x = net.node("Gemm", [net.input("x", "N", 5), net.constant("w", 5, 6), net.constant("b", 6)])
    elif form == "flattened":
        for name in statistics:
            net.tensors[name] = net.tensors[name] * np.linspace(1, 2, 49, dtype=np.float32).reshape(1, 7, 7)
        x = net.node("Gemm", [net.input("x", "N", 5), net.constant("w", 5, 6 * 49), net.constant("b", 6 * 49)])
        x = net.node("Reshape", [x, put(net, -1, 6, 7, 7)])
    else:
        x = conv(net)
    net.output(net.node("BatchNormalization", [x, *statistics], "y", spatial=0), 2 if form == "rows" else 4)
    model = net.model(ir_version=6)
    folded = require(model, 0 if form == "differ" else 1, {"spatial"} if form == "differ" else None)
    assert all(np.isfinite(numpy_helper.to_array(tensor)).all() for tensor in folded.graph.initializer)
