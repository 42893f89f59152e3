"""Random ONNX graphs for folding: norms and layers among shape arithmetic, views, branches and computed weights.

A graph grows node by node from a seed; a step stays when onnxruntime runs it on the example. Sizes may be free or
declared, operator sets old or new.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from tests.support.onnx_cases.net import Net

OPSETS = (13, 14, 15, 17, 18, 20, 22, 24)
Feeds = dict[str, np.ndarray]


@dataclass
class Growing:
    """A graph that grows.

    Attributes:
        rng: the choices.
        net: the nodes so far.
        x: the example.
        values: name -> shape on the example, of every value with four axes.
        weights: names of the convolution weights, for a second use.
        steps: what was added, for messages.
    """

    rng: random.Random
    net: Net
    x: np.ndarray
    values: dict[str, tuple[int, ...]] = field(default_factory=dict)
    weights: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def fresh(self, prefix: str) -> str:
        """A name that nothing has yet."""
        return f"{prefix}{len(self.net.tensors)}_{len(self.net.nodes)}"

    def put(self, values: object, dtype: type = np.float32) -> str:
        """An initializer, or a Constant node, with these values."""
        name, array = self.fresh("k"), np.asarray(values, dtype)
        if self.rng.random() < 0.3:
            return self.net.node("Constant", [], name, value=onnx.numpy_helper.from_array(array))
        return self.net.put(name, array)

    def ints(self, *values: int) -> str:
        return self.put(values, np.int64)

    def random(self, *shape: int, scale: float = 1.0) -> str:
        return self.put(self.net.rng.normal(0, scale, shape))

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        return self.net.node(op, list(inputs), **attributes)

    def size(self, x: str, axis: int) -> str:
        """One size of a value, as a tensor of one number."""
        return self.node("Gather", self.node("Shape", x), self.ints(axis), axis=0)


def _conv(g: Growing, x: str) -> str:
    channels, rng = g.values[x][1], g.rng
    out, kernel, group = rng.choice([2, 4, 6]), rng.choice([1, 1, 2, 3, 3]), rng.choice([1, 1, 2, channels])
    group = group if channels % group == out % group == 0 else 1
    pad = rng.choice([0, 0, 1])
    weight = _weight(g, out, channels // group, kernel)
    inputs = [x, weight, *([g.random(out)] if rng.random() < 0.5 else [])]
    if pad and rng.random() < 0.3:
        return g.node("Conv", *inputs, auto_pad="SAME_UPPER", group=group, strides=[rng.choice([1, 2])] * 2)
    return g.node("Conv", *inputs, pads=[pad, pad, rng.choice([pad, 1]), pad], group=group, strides=[1, 1])


def _weight(g: Growing, *shape: int) -> str:
    """A weight: stored, used a second time, or computed from constants; the kernel is square."""
    shape = (*shape, shape[-1])
    scale = float(np.prod(shape[1:])) ** -0.5
    kind = g.rng.randrange(6)
    if kind == 0:
        same = [name for name in g.weights if g.net.tensors[name].shape == shape]
        if same:
            return g.rng.choice(same)
    if kind == 1:
        return g.node("Transpose", g.random(*shape[::-1], scale=scale), perm=[3, 2, 1, 0])
    if kind == 2:
        return g.node("Mul", g.random(*shape, scale=scale), g.random(shape[0], 1, 1, 1))
    name = g.net.put(g.fresh("w"), g.net.rng.normal(0, scale, shape).astype(np.float32))
    g.weights.append(name)
    return name


def _deconv(g: Growing, x: str) -> str:
    weight = _weight(g, g.values[x][1], g.rng.choice([2, 4]), 3)
    return g.node("ConvTranspose", x, weight, strides=[g.rng.choice([1, 2])] * 2)


def _norm(g: Growing, x: str) -> str:
    return g.net.norm(x, g.values[x][1], prefix=g.fresh("bn"))


def _by_hand(g: Growing, x: str) -> str:
    shape = (g.values[x][1], 1, 1)
    shape = shape if g.rng.random() < 0.5 else (1, *shape)
    x = g.node("Sub", x, g.random(*shape))
    x = g.node("Div", x, g.put(g.net.rng.uniform(0.5, 2, shape)))
    return g.node("Add", g.node("Mul", g.random(*shape), x), g.random(*shape))


def _scalar(g: Growing, x: str) -> str:
    return g.node("Add", g.node("Mul", x, g.put(g.rng.choice([0.5, -1.5]))), g.put([0.25]))


def _tokens(g: Growing, x: str) -> str:
    """Rows of (N, H * W, C) through a MatMul and a norm over their flattened form, and back."""
    channels, out = g.values[x][1], g.rng.choice([2, 4])
    flat = g.node("Reshape", x, g.ints(0, channels, -1))
    rows = g.node("MatMul", g.node("Transpose", flat, perm=[0, 2, 1]), g.random(channels, out, scale=0.5))
    rows = g.node("Add", rows, g.random(out)) if g.rng.random() < 0.5 else rows
    y = g.net.norm(g.node("Reshape", rows, g.ints(-1, out)), out, prefix=g.fresh("bn"))
    sizes = g.node("Concat", g.size(x, 0), g.size(x, 2), g.size(x, 3), g.ints(out), axis=0)
    return g.node("Transpose", g.node("Reshape", y, sizes), perm=[0, 3, 1, 2])


def _channels_last(g: Growing, x: str) -> str:
    channels, out = g.values[x][1], g.rng.choice([2, 4])
    y = g.node("MatMul", g.node("Transpose", x, perm=[0, 2, 3, 1]), g.random(channels, out, scale=0.5))
    return g.node("Transpose", y, perm=[0, 3, 1, 2])


def _view(g: Growing, x: str) -> str:
    """To (N, C, H * W) and back, by sizes that the graph computes."""
    flat = g.node("Reshape", x, g.node("Concat", g.size(x, 0), g.size(x, 1), g.ints(-1), axis=0))
    flat = g.net.norm(flat, g.values[x][1], prefix=g.fresh("bn")) if g.rng.random() < 0.5 else flat
    return g.node("Reshape", flat, g.node("Shape", x))


def _shuffle(g: Growing, x: str) -> str:
    channels = g.values[x][1]
    h, w = g.size(x, 2), g.size(x, 3)
    y = g.node("Reshape", x, g.node("Concat", g.ints(-1, 2, channels // 2), h, w, axis=0))
    y = g.node("Transpose", y, perm=[0, 2, 1, 3, 4])
    return g.node("Reshape", y, g.node("Concat", g.ints(-1, channels), h, w, axis=0))


def _gather(g: Growing, x: str) -> str:
    order = list(range(g.values[x][1]))
    g.rng.shuffle(order)
    return g.node("Gather", x, g.ints(*order), axis=1)


def _swap(g: Growing, x: str) -> str:
    half = g.values[x][1] // 2
    one = g.net.node("Split", [x, g.ints(half, g.values[x][1] - half)], axis=1, n_outputs=2)
    other = f"{one}_1"
    one = g.net.norm(one, half, prefix=g.fresh("bn")) if g.rng.random() < 0.5 else one
    return g.node("Concat", other, one, axis=1)


def _resize(g: Growing, x: str) -> str:
    """Resize to half the height and twice the width, as computed from the shape."""
    double = g.node("Mul", g.size(x, 3), g.ints(2))
    sizes = g.node("Concat", g.size(x, 0), g.size(x, 1), g.node("Div", g.size(x, 2), g.ints(2)), double, axis=0)
    return g.node("Resize", x, "", "", sizes, mode=g.rng.choice(["nearest", "linear"]))


def _mean(g: Growing, x: str) -> str:
    """The difference from half a mean that divides by sizes of the input; of the whole it would be 0 on a 1 x 1 map."""
    total = g.node("ReduceSum", x, g.ints(2, 3), keepdims=1)
    count = g.node("Cast", g.node("Mul", g.size(x, 2), g.size(x, 3)), to=onnx.TensorProto.FLOAT)
    return g.node("Sub", x, g.node("Mul", g.node("Div", total, count), g.put(0.5)))


def _crop(g: Growing, x: str) -> str:
    end = g.node("Sub", g.size(x, 3), g.ints(1))
    return g.node("Slice", x, g.ints(1), end, g.ints(3))


def _odd_pad(g: Growing, x: str) -> str:
    """Pad by one where the width is odd, then convolve."""
    odd = g.node("Mod", g.size(x, 3), g.ints(2))
    padded = g.node("Pad", x, g.node("Concat", g.ints(0, 0, 0, 0, 0, 0, 0), odd, axis=0))
    return g.node("Conv", padded, _weight(g, 4, g.values[x][1], 3))


def _branch(g: Growing, x: str) -> str:
    """One of two bodies, chosen by whether the width is even; each reads x and weights from outside."""
    channels = g.values[x][1]
    even = g.node("Equal", g.node("Mod", g.size(x, 3), g.ints(2)), g.ints(0))
    condition = g.node("Squeeze", even)
    weights = [g.net.constant(g.fresh("w"), channels, channels, 1, 1, scale=0.5) for _ in range(2)]
    bodies = []
    for number, weight in enumerate(weights):
        mark, names = g.fresh(f"b{number}_"), g.net.statistics(g.fresh(f"bn{number}_"), channels)
        nodes = [helper.make_node("Conv", [x, weight], [f"{mark}c"], name=f"{mark}conv")]
        last = f"{mark}c"
        if number or g.rng.random() < 0.5:
            nodes.append(helper.make_node("Relu", [last], [f"{mark}r"], name=f"{mark}relu"))
            last = f"{mark}r"
        nodes.append(helper.make_node("BatchNormalization", [last, *names], [f"{mark}y"], name=f"{mark}norm"))
        info = helper.make_tensor_value_info(f"{mark}y", onnx.TensorProto.FLOAT, [None] * 4)
        bodies.append(helper.make_graph(nodes, mark, [], [info]))
    return g.node("If", condition, then_branch=bodies[0], else_branch=bodies[1])


def _squeeze(g: Growing, x: str) -> str:
    y = g.node("Conv", g.node("GlobalAveragePool", x), _weight(g, g.values[x][1], g.values[x][1], 1))
    return g.node("Mul", x, g.node("Sigmoid", _norm_of(g, y, g.values[x][1])))


def _norm_of(g: Growing, x: str, channels: int) -> str:
    return g.net.norm(x, channels, prefix=g.fresh("bn"))


def _like_shape(g: Growing, x: str) -> str:
    """Add a constant of the value's own shape."""
    number = onnx.numpy_helper.from_array(np.array([0.5], np.float32))
    return g.node("Add", x, g.node("ConstantOfShape", g.node("Shape", x), value=number))


def _other(g: Growing, x: str) -> str | None:
    same = [name for name, shape in g.values.items() if shape[0] == g.values[x][0] and shape[2:] == g.values[x][2:]]
    return g.rng.choice(same) if same else None


def _sum(g: Growing, x: str) -> str:
    other = _other(g, x) or x
    return g.node(g.rng.choice(["Add", "Sub"]), x, other)


def _concat(g: Growing, x: str) -> str:
    return g.node("Concat", x, _other(g, x) or x, axis=1)


def _pool(op: str, **attributes: object) -> Callable[[Growing, str], str]:
    return lambda g, x: g.node(op, x, **attributes)


def _clip(g: Growing, x: str) -> str:
    return g.node("Clip", x, g.put(0.0), g.put(6.0))


def _pad(g: Growing, x: str) -> str:
    return g.node("Pad", x, g.ints(0, 0, 1, 1, 0, 0, 1, 0), mode=g.rng.choice(["constant", "reflect", "edge"]))


def _again_shaped(g: Growing, x: str) -> str:
    """An axis more, and taken away again."""
    return g.node("Squeeze", g.node("Unsqueeze", x, g.ints(2)), g.ints(2))


def _weighted_norm(g: Growing, x: str) -> str:
    """A convolution with weight normalisation computed in the graph, and a norm."""
    channels = g.values[x][1]
    v = g.random(4, channels, 3, 3)
    length = g.node("Sqrt", g.node("ReduceSum", g.node("Mul", v, v), g.ints(1, 2, 3), keepdims=1))
    weight = g.node("Mul", g.node("Div", v, length), g.random(4, 1, 1, 1))
    return _norm_of(g, g.node("Conv", x, weight), 4)


_KERNEL = {"kernel_shape": [2, 2], "strides": [1, 1]}
STEPS: dict[str, Callable[[Growing, str], str]] = {
    "conv": _conv,
    "norm": _norm,
    "deconv": _deconv,
    "by hand": _by_hand,
    "scalar": _scalar,
    "tokens": _tokens,
    "last": _channels_last,
    "view": _view,
    "shuffle": _shuffle,
    "gather": _gather,
    "swap": _swap,
    "resize": _resize,
    "mean": _mean,
    "crop": _crop,
    "odd pad": _odd_pad,
    "branch": _branch,
    "squeeze": _squeeze,
    "like": _like_shape,
    "sum": _sum,
    "concat": _concat,
    "clip": _clip,
    "pad": _pad,
    "unsqueeze": _again_shaped,
    "weight norm": _weighted_norm,
    "relu": _pool("Relu"),
    "leaky": _pool("LeakyRelu", alpha=0.1),
    "identity": _pool("Identity"),
    "dropout": _pool("Dropout"),
    "average": _pool("AveragePool", **_KERNEL),
    "padded average": _pool("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    "max": _pool("MaxPool", **_KERNEL),
    "transpose": _pool("Transpose", perm=[0, 1, 3, 2]),
    "flat": _pool("DepthToSpace", blocksize=2),
}
KINDS = [*["conv"] * 12, *["norm"] * 14, *STEPS, *["sum"] * 2]


def random_graph(seed: int) -> tuple[onnx.ModelProto, list[Feeds], str]:
    """Return a model, its inputs at two sizes and batches as far as it declares them free, and its steps as text.

    Args:
        seed: the same model and inputs for the same seed.
    """
    rng = random.Random(seed)
    shape = [rng.randint(2, 3), rng.choice([2, 4]), rng.randint(8, 16), rng.randint(8, 16)]
    free = rng.choice([(0,), (0, 2, 3), (0, 2, 3), ()])
    net = Net(opset=rng.choice(OPSETS), rng=np.random.default_rng(seed))
    net.input("x", *["NCHW"[i] if i in free else size for i, size in enumerate(shape)])
    x = net.rng.normal(0.5, 1, shape).astype(np.float32)
    g = Growing(rng, net, x, {"x": tuple(shape)})
    for _ in range(rng.randint(4, 14)):
        names = list(g.values)
        _grow(g, rng.choice(KINDS), names[-1] if rng.random() < 0.85 else rng.choice(names))
    net.output(list(g.values)[-1] if len(g.values) > 1 else net.node("Identity", ["x"]), 4)
    other = [rng.randint(1, 4), shape[1], rng.randint(8, 19), rng.randint(8, 19)]
    other = [size if i in free else shape[i] for i, size in enumerate(other)]
    feeds = [{"x": x}] + ([{"x": net.rng.normal(0.5, 1, other).astype(np.float32)}] if free else [])
    return net.model(), feeds, f"opset {net.opset}, free {free}: " + " ".join(g.steps)


def _grow(g: Growing, kind: str, x: str) -> None:
    """Add one step when it runs on the example and its value has a useful size."""
    nodes, tensors, weights = list(g.net.nodes), dict(g.net.tensors), list(g.weights)
    try:
        name = STEPS[kind](g, x)
        shape = _shape_of(g, name)
    except Exception:  # onnxruntime's exceptions share no base; a step that does not run is left out
        shape = ()
    if len(shape) == 4 and min(shape) > 0 and np.prod(shape) <= 20_000:
        g.values[name] = shape
        g.steps.append(f"{kind}({x})")
        return
    g.net.nodes, g.net.tensors, g.weights = nodes, tensors, weights


def _shape_of(g: Growing, name: str) -> tuple[int, ...]:
    g.net.outputs = [(name, 4)]
    model = g.net.model()
    g.net.outputs = []
    return tuple(run(model, {"x": g.x})[0].shape)


def run(model: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray]:
    """What onnxruntime gives without optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, feeds)
