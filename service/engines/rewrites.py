"""Other graphs for the same function, in which a CPU's vector units find more to do.

onnxruntime computes convolutions in blocks of 8 or 16 channels. A convolution with 6 channels fills a part of a block,
and the pooling after it, which knows only whole blocks, runs one number at a time. Each rewrite returns a new graph or
None where it changes nothing; whether it pays is measured elsewhere. Exact but for the order of float additions.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from .graph import Floats, Graph, Node

Rewrite = Callable[[bytes], bytes | None]

# Functions of one number. Each is finite at 0, which is what a channel of zero weights gives them.
_POINTWISE = {
    "Abs", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish", "Relu", "Selu",
    "Sigmoid", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
}  # fmt: skip
_OLDEST_OPSET = 13  # older ones write some of these operators in another way
_BLOCK = 16  # channels in the widest block there is; a multiple of it is full on every machine


def split_pooling(data: bytes) -> bytes | None:
    """Let a convolution compute the members of each average pool as channels of their own.

    With kernel k, stride s and pools of p, `pool(f(conv(x)))` becomes `mean(f(conv'(x)))`: conv' has kernel
    k + s (p - 1), stride s p, and for each of the p * p places of a pool a copy of the weights, moved to that place;
    the mean is a convolution of 1 x 1. 6 half-empty channels and pools of 2 x 2 become 24 channels on a quarter of
    the places.

    Args:
        data: a model file.

    Returns:
        Another model file, or None when no pool can be split.
    """
    return _everywhere(data, _split_one)


def fill_blocks(data: bytes, *, channels: int, is_cut: bool) -> bytes | None:
    """Add channels of zero weights to each convolution before a pooling until it has whole blocks.

    Args:
        data: a model file.
        channels: in a block: 8 with AVX2, 16 with AVX-512.
        is_cut: take the new channels out again after the pooling; else the next convolution multiplies them by zero.

    Returns:
        Another model file, or None when there is nothing to fill.
    """
    return _everywhere(data, partial(_fill_one, block=channels, is_cut=is_cut))


def _everywhere(data: bytes, change: Callable[[Graph, Node], bool]) -> bytes | None:
    """Apply a change to every convolution that reads float32 weights; None when it changed none."""
    graph = Graph.parse(data)
    if graph.opset < _OLDEST_OPSET or any(node.holds_graphs for node in graph.nodes):
        return None
    changed = [change(graph, node) for node in list(graph.nodes) if node.op == "Conv"]
    if not any(changed):
        return None
    graph.drop_unused_weights()
    return graph.encode()


def _split_one(graph: Graph, conv: Node) -> bool:
    weights, pool = _weights(graph, conv), _pool_after(graph, conv)
    if weights is None or pool is None or pool.op != "AveragePool" or not _is_splittable(conv, pool):
        return False
    kernel, bias = weights
    channels, places = len(kernel), pool.integers("kernel_shape", ())
    if channels % _BLOCK == 0:
        return False
    strides = conv.integers("strides", (1, 1))
    moved = _moved(kernel, strides, places)
    count = places[0] * places[1]
    _set_weights(graph, conv, "split", moved, np.tile(bias, count))
    conv.set_integers("kernel_shape", moved.shape[2:])
    conv.set_integers("strides", (strides[0] * places[0], strides[1] * places[1]))
    average = np.tile(np.eye(channels, dtype=np.float32) / np.float32(count), (1, count))[:, :, None, None]
    name = graph.add_floats(f"{pool.outputs[0]}.mean", average)
    mean = Node.new("Conv", name, [pool.inputs[0], name], pool.outputs, kernel_shape=(1, 1))
    graph.nodes[graph.nodes.index(pool)] = mean
    return True


def _moved(kernel: Floats, strides: tuple[int, ...], places: tuple[int, ...]) -> Floats:
    """Copies of a kernel (M, C, kH, kW), one for each place of a pool, on canvases that span the pool."""
    count, (height, width) = len(kernel), kernel.shape[2:]
    reach = [stride * (place - 1) for stride, place in zip(strides, places, strict=True)]
    moved = np.zeros((places[0] * places[1] * count, kernel.shape[1], height + reach[0], width + reach[1]), np.float32)
    for row in range(places[0]):
        for column in range(places[1]):
            start = (row * places[1] + column) * count
            top, left = row * strides[0], column * strides[1]
            moved[start : start + count, :, top : top + height, left : left + width] = kernel
    return moved


def _is_splittable(conv: Node, pool: Node) -> bool:
    """Whether pools lie side by side, none of them over an edge, and the convolution says where its windows are."""
    places = pool.integers("kernel_shape", ())
    return (
        len(places) == 2
        and pool.integers("strides", (1, 1)) == places
        and set(pool.integers("pads", (0,))) == {0}
        and pool.integer("ceil_mode", 0) == 0
        and set(pool.integers("dilations", (1,))) == {1}
        and set(conv.integers("dilations", (1,))) == {1}
        and {node.text("auto_pad", "NOTSET") for node in (conv, pool)} == {"NOTSET"}
    )


def _fill_one(graph: Graph, conv: Node, block: int, is_cut: bool) -> bool:
    weights, pool = _weights(graph, conv), _pool_after(graph, conv)
    if weights is None or pool is None or len(weights[0]) % block == 0:
        return False
    kernel, bias = weights
    channels, added = len(kernel), -len(kernel) % block
    if is_cut:
        _cut_after(graph, pool, channels)
    elif not _ignore_after(graph, pool, channels, added):
        return False
    _set_weights(graph, conv, "filled", np.pad(kernel, ((0, added), (0, 0), (0, 0), (0, 0))), np.pad(bias, (0, added)))
    return True


def _cut_after(graph: Graph, pool: Node, channels: int) -> None:
    """Take all but the first `channels` channels out after a pooling."""
    (output,) = pool.outputs
    bounds = (("start", 0), ("end", channels), ("axis", 1))
    names = [graph.add_integers(f"{output}.{bound}", [value]) for bound, value in bounds]
    pool.outputs = [graph.free_name(f"{output}.wide")]
    cut = Node.new("Slice", f"{output}.cut", [*pool.outputs, *names], [output])
    graph.nodes.insert(graph.nodes.index(pool) + 1, cut)


def _ignore_after(graph: Graph, pool: Node, channels: int, added: int) -> bool:
    """Give the convolution after a pooling zero weights for the added channels; False when there is none."""
    consumer = graph.only_consumer(pool)
    weights = _weights(graph, consumer) if consumer is not None and consumer.op == "Conv" else None
    if consumer is None or weights is None or weights[0].shape[1] != channels:
        return False
    kernel = np.pad(weights[0], ((0, 0), (0, added), (0, 0), (0, 0)))
    consumer.inputs = [
        consumer.inputs[0],
        graph.add_floats(f"{consumer.inputs[1]}.wider", kernel),
        *consumer.inputs[2:],
    ]
    return True


def _set_weights(graph: Graph, conv: Node, suffix: str, kernel: Floats, bias: Floats) -> None:
    data, name = conv.inputs[:2]
    names = [graph.add_floats(f"{name}.{suffix}", kernel), graph.add_floats(f"{name}.{suffix}_bias", bias)]
    conv.inputs = [data, *names]


def _weights(graph: Graph, conv: Node) -> tuple[Floats, Floats] | None:
    """Kernel (M, C, kH, kW) and bias (M,) of a plain two-dimensional convolution whose weights are constants."""
    kernel = graph.floats(conv.inputs[1])
    if kernel is None or kernel.ndim != 4 or conv.integer("group", 1) != 1:
        return None
    has_bias = len(conv.inputs) > 2 and conv.inputs[2] != ""
    bias = graph.floats(conv.inputs[2]) if has_bias else np.zeros(len(kernel), np.float32)
    return None if bias is None else (kernel, bias)


def _pool_after(graph: Graph, conv: Node) -> Node | None:
    """The pooling after a convolution and its activations, if nothing else reads anything between the two."""
    node = graph.only_consumer(conv)
    while node is not None and node.op in _POINTWISE and not any(node.inputs[1:]):
        node = graph.only_consumer(node)
    if node is None or node.op not in ("AveragePool", "MaxPool") or len(node.outputs) != 1:
        return None
    return node
