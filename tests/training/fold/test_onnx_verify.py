"""The comparison of two ONNX models is able to say no, and says so where there is nothing to compare."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from foldserve.training.errors import CannotJudge, FoldError
from foldserve.training.fold.onnx.api import fold_onnx, verify_onnx
from tests.support.onnx_cases import Net

torch.set_num_threads(1)


def network(
    end: Callable[[Net, str], str], seed: int = 0, dims: tuple[int | str, ...] = ("N", 3, 8, 8)
) -> onnx.ModelProto:
    """A convolution, its norm, and what `end` makes of that."""
    net = Net(rng=np.random.default_rng(seed))
    c = net.node("Conv", [net.input("x", *dims), net.constant("w", 4, 3, 3, 3)])
    last = end(net, net.norm(c, 4, prefix="bn"))
    net.node("Identity", [last], "y")
    net.output("y", 4)
    return net.model()


def put(net: Net, values: object, dtype: type = np.float32) -> str:
    return net.put(f"c{len(net.tensors)}", values, dtype)


def with_noise(net: Net, x: str) -> str:
    return net.node("Add", [x, net.node("RandomNormalLike", [x])])


def with_dropout(net: Net, x: str) -> str:
    return net.node("Dropout", [x, put(net, 0.3), put(net, True, np.bool_)])


def with_samples(net: Net, x: str) -> str:
    return net.node("Add", [net.node("Bernoulli", [net.node("Sigmoid", [x])]), x])


def with_uniform_of_one_shape(net: Net, x: str) -> str:
    return net.node("Mul", [x, net.node("RandomUniform", [], shape=[1, 4, 6, 6], low=0.5, high=1.5)])


ENDS: dict[str, Callable[[Net, str], str]] = {
    "plain": lambda net, x: net.node("Tanh", [x]),
    "noise": with_noise,
    "dropout in training mode": with_dropout,
    "samples": with_samples,
    "uniform": with_uniform_of_one_shape,
    "relu that is all zero": lambda net, x: net.node("Relu", [net.node("Sub", [x, put(net, 1e4)])]),
    "sigmoid that is all one": lambda net, x: net.node("Sigmoid", [net.node("Add", [x, put(net, 400.0)])]),
    "sigmoid that is all zero": lambda net, x: net.node("Sigmoid", [net.node("Sub", [x, put(net, 400.0)])]),
    "softmax of one class": lambda net, x: net.node("Softmax", [net.node("Mul", [x, put(net, 1e4)])], axis=1),
    "clip": lambda net, x: net.node("Clip", [x, put(net, 1e6), put(net, 2e6)]),
    "one channel of 1e12": lambda net, x: net.node("Concat", [x, net.node("Add", [x, put(net, 1e12)])], axis=1),
    "last axis of 1e12": lambda net, x: net.node(
        "Transpose", [net.node("Concat", [x, net.node("Add", [x, put(net, 1e12)])], axis=1)], perm=[0, 2, 3, 1]
    ),
    "argmax": lambda net, x: net.node("Cast", [net.node("ArgMax", [x], axis=1)], to=TensorProto.FLOAT),
}


@pytest.mark.parametrize("end", ENDS)
def test_two_different_networks_never_pass(end):
    """Whatever hides it: noise, a tail that saturates, a channel that is larger than all others."""
    one, other = network(ENDS[end]), network(ENDS[end], seed=1)
    with pytest.raises((FoldError, CannotJudge)):
        verify_onnx(one, other)


@pytest.mark.parametrize("end", ENDS)
def test_a_right_fold_passes_behind_every_end(end):
    """The same draws for both models, and the values before the tail, make a right fold provable."""
    model = network(ENDS[end])
    folded = fold_onnx(model)
    assert len(folded.report.folded) == 1
    proof = verify_onnx(model, folded)
    assert proof.algebra_error <= proof.algebra_limit < 1e-3
    assert proof.deployed_error <= proof.deployed_limit <= 1e-3
    assert verify_onnx(model, folded.model).algebra_error < 1e-4


NO_EVIDENCE: dict[str, Callable[[Net, str], str]] = {
    "not a number": lambda net, x: net.node("Mul", [x, put(net, np.nan)]),
    "all zero": lambda net, x: net.node("Conv", [x, put(net, np.zeros((2, 4, 1, 1)))]),
    "all equal": lambda net, x: net.node("Conv", [x, put(net, np.zeros((2, 4, 1, 1))), put(net, [3.0, 3.0])]),
    "random alone": lambda net, x: net.node("RandomNormalLike", [x]),
    "empty": lambda net, x: net.node("Slice", [x, *(put(net, [v], np.int64) for v in (2, 2, 1))]),
}


@pytest.mark.parametrize("end", NO_EVIDENCE)
def test_outputs_that_could_not_differ_are_no_evidence(end):
    """Nothing passes by them, whether the networks are equal or not; a fold is proved by what stands before."""
    model = network(NO_EVIDENCE[end])
    for other in (model, network(NO_EVIDENCE[end], seed=1)):
        with pytest.raises(CannotJudge):
            verify_onnx(model, other)
    report = fold_onnx(model).report
    assert len(report.folded) == 1
    assert report.proof is not None
    assert report.proof.algebra_error < 1e-12


def test_an_empty_batch_is_no_evidence():
    """A model whose batch is declared to be of no rows computes nothing."""
    model = network(ENDS["plain"], dims=(0, 3, 8, 8))
    with pytest.raises(CannotJudge, match="empty"):
        verify_onnx(model, model)


def test_draws_that_cannot_be_handed_over_are_named():
    """Inside a body the runtime draws by itself: the node is said, and the fold before it is proved without it."""
    net = Net()
    c = net.node("Conv", [net.input("x", 2, 3, 8, 8), net.constant("w", 4, 3, 3, 3)])
    n = net.norm(c, 4, "n")
    draw = helper.make_node("RandomNormalLike", [n], ["e"], name="inner_draw")
    result = helper.make_tensor_value_info("e", TensorProto.FLOAT, [2, 4, 6, 6])
    bodies = [helper.make_graph([draw], f"{name}_branch", [], [result]) for name in ("then", "else")]
    bodies[1].node[0].output[0] = bodies[1].output[0].name = "e2"
    noise = net.node("If", [put(net, True, np.bool_)], then_branch=bodies[0], else_branch=bodies[1])
    net.output(net.node("Add", [n, noise], "y"), 4)
    model = net.model()
    with pytest.raises(CannotJudge, match="draws random numbers") as caught:
        verify_onnx(model, model)
    assert caught.value.node == model.graph.node[2].name
    report = fold_onnx(model).report
    assert len(report.folded) == 1
    assert report.proof is not None


def test_models_that_draw_in_other_places_differ():
    """Noise that one model has and the other has not is a difference."""
    with pytest.raises(FoldError):
        verify_onnx(network(ENDS["noise"]), network(lambda net, x: x))


@pytest.mark.parametrize("factor", [1 + 1e-4, 1 + 2e-3, -1.0])
def test_one_filter_that_is_off_is_seen_beside_large_ones(factor):
    """A channel is held to its own scale: of sixteen, the smallest cannot hide behind the largest."""

    def build(factor: float) -> onnx.ModelProto:
        net = Net()
        weight = net.rng.normal(size=(16, 3, 3, 3)) * 10.0 ** np.linspace(-6, 6, 16)[:, None, None, None]
        weight[0] *= factor
        net.output(net.node("Conv", [net.input("x", "N", 3, 8, 8), net.put("w", weight, np.float32)], "y"), 4)
        return net.model()

    assert verify_onnx(build(1.0), build(1.0)).algebra_error == 0
    with pytest.raises((FoldError, CannotJudge)):
        verify_onnx(build(1.0), build(factor))


def test_a_network_that_amplifies_without_bound_is_not_passed():
    """A limit that grows with the amplification is capped: what differs by more cannot be judged, or is wrong."""

    def chaos(net: Net, x: str) -> str:
        for _ in range(12):
            x = net.node("Sin", [net.node("Mul", [x, put(net, 30.0)])])
        return x

    for other in (network(chaos), network(chaos, seed=1)):
        with pytest.raises(CannotJudge, match="which rounding could explain"):
            verify_onnx(network(chaos), other)


def test_the_sizes_that_ran_are_said():
    """A free batch and free sizes are proved at two sizes, of which one is odd and no square; what is fixed at one."""
    proof = fold_onnx(network(ENDS["plain"], dims=("N", 3, "h", "w"))).report.proof
    assert proof is not None
    assert proof.sizes == ("x 2x3x12x12", "x 3x3x17x19")
    proof = fold_onnx(network(ENDS["plain"], dims=(2, 3, 8, 8))).report.proof
    assert proof is not None
    assert proof.sizes == ("x 2x3x8x8",)


def info(name: str, kind: int = TensorProto.FLOAT, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def by_if(net: Net, x: str, few: str, factor: str) -> str:
    bodies = [
        helper.make_graph([helper.make_node("Identity", [x], ["kept"])], "then", [], [info("kept")]),
        helper.make_graph([helper.make_node("Mul", [x, factor], ["changed"])], "else", [], [info("changed")]),
    ]
    return net.node("If", [net.node("Squeeze", [few])], then_branch=bodies[0], else_branch=bodies[1])


def by_nested_if(net: Net, x: str, few: str, factor: str) -> str:
    """The outer condition holds for the example; inside it, the sum of the values decides."""
    inner = [
        helper.make_graph([helper.make_node("Identity", [x], ["kept"])], "then", [], [info("kept")]),
        helper.make_graph([helper.make_node("Mul", [x, factor], ["changed"])], "else", [], [info("changed")]),
    ]
    nodes = [
        helper.make_node("ReduceMax", [x], ["most"], keepdims=0),
        helper.make_node("Less", ["most", put(net, 1e6)], ["is_less"]),
        helper.make_node("If", ["is_less"], ["inner"], name="inner_if", then_branch=inner[0], else_branch=inner[1]),
    ]
    outer = [helper.make_graph(nodes, "then", [], [info("inner")])]
    outer.append(helper.make_graph([helper.make_node("Neg", [x], ["negated"])], "else", [], [info("negated")]))
    return net.node("If", [net.node("Squeeze", [few])], then_branch=outer[0], else_branch=outer[1])


def by_where(net: Net, x: str, few: str, factor: str) -> str:
    return net.node("Mul", [x, net.node("Where", [few, put(net, [1.0]), factor])])


def by_cast(net: Net, x: str, few: str, factor: str) -> str:
    many = net.node("Sub", [put(net, [1.0]), net.node("Cast", [few], to=TensorProto.FLOAT)])
    return net.node("Add", [x, net.node("Mul", [many, factor])])


def by_loop(net: Net, x: str, few: str, factor: str) -> str:
    """As many steps as there are rows beyond the number that `few` compares with; no condition is given."""
    size, limit = net.nodes[-1].input
    more = net.node("Max", [net.node("Sub", [size, limit]), put(net, [0], np.int64)])
    nodes = [helper.make_node("Add", ["v", factor], ["more"]), helper.make_node("Identity", ["on"], ["still_on"])]
    inputs = [info("step", TensorProto.INT64, []), info("on", TensorProto.BOOL, []), info("v")]
    body = helper.make_graph(nodes, "body", inputs, [info("still_on", TensorProto.BOOL, []), info("more")])
    return net.node("Loop", [net.node("Squeeze", [more]), "", x], body=body)


TURNS: dict[str, Callable[[Net, str, str, str], str]] = {
    "if": by_if,
    "if within an if": by_nested_if,
    "where": by_where,
    "cast": by_cast,
    "loop": by_loop,
}


def turning(turn: str, factor: float, axis: int, limit: int) -> onnx.ModelProto:
    """A network that multiplies or shifts by `factor` once a size has reached `limit`."""
    net = Net(opset=17)
    c = net.node("Conv", [net.input("x", "N", 3, "H", "W"), net.constant("w", 4, 3, 3, 3)])
    size = net.node("Gather", [net.node("Shape", ["x"]), put(net, [axis], np.int64)], axis=0)
    few = net.node("Less", [size, put(net, [limit], np.int64)])
    net.node("Identity", [TURNS[turn](net, c, few, put(net, [factor]))], "y")
    net.output("y", 4)
    return net.model()


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize(("axis", "limit"), [(0, 7), (2, 40), (3, 300)])
def test_networks_that_differ_from_a_size_on_never_pass(turn, axis, limit):
    """No usual size shows it: the sizes are looked for at which a decision turns, and a branch is taken by force."""
    model = turning(turn, 2.0, axis, limit)
    assert verify_onnx(model, model).algebra_error == 0
    with pytest.raises(FoldError, match="does not compute what the original computes"):
        verify_onnx(model, turning(turn, 3.0, axis, limit))


@pytest.mark.parametrize("turn", ["where", "cast", "loop"])
def test_a_decision_that_no_size_turns_cannot_be_judged(turn):
    """From a batch of 4000 rows of this size on: too much to be tried, so nothing passes."""
    with pytest.raises(CannotJudge, match="always in the same way at the sizes that were tried"):
        verify_onnx(turning(turn, 2.0, 2, 4000), turning(turn, 3.0, 2, 4000), input_shapes={"x": (2, 3, 12, 12)})


def test_a_branch_that_does_not_run_cannot_be_judged():
    """It wants another number of channels than any input has, so that nothing is known of it."""
    net = Net(opset=17)
    c = net.node("Conv", [net.input("x", "N", 3, 12, 12), net.constant("w", 4, 3, 3, 3)])
    wrong = helper.make_node("Conv", [c, put(net, np.zeros((2, 9, 1, 1)))], ["wrong"])
    kept = helper.make_graph([helper.make_node("Identity", [c], ["kept"])], "then", [], [info("kept")])
    other = helper.make_graph([wrong], "else", [], [info("wrong")])
    condition = net.node("Less", [net.node("ReduceMax", [c], keepdims=0), put(net, 1e6)])
    net.node("Identity", [net.node("If", [condition], then_branch=kept, else_branch=other)], "y")
    net.output("y", 4)
    with pytest.raises(CannotJudge, match="is not taken at the sizes that were tried, and cannot be judged by force"):
        verify_onnx(net.model(), net.model())


def test_outputs_of_another_dtype_are_another_interface():
    """The numbers are the same; who reads them is not."""
    one = network(ENDS["plain"])
    other = network(ENDS["plain"])
    other.graph.node[-1].CopyFrom(helper.make_node("Cast", other.graph.node[-1].input, ["y"], to=TensorProto.DOUBLE))
    other.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(FoldError, match=r"y \(DOUBLE\).*expected.*y \(FLOAT\)"):
        verify_onnx(one, other)


def sequence(net: Net, x: str, *parts: str) -> onnx.ModelProto:
    """Returns the parts as a sequence."""
    net.nodes.append(helper.make_node("SequenceConstruct", list(parts), ["s"]))
    graph_inputs, tensors = net.inputs, [numpy_helper.from_array(v, k) for k, v in net.tensors.items()]
    output = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    graph = helper.make_graph(net.nodes, "sequence", graph_inputs, [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def convolved() -> tuple[Net, str]:
    net = Net(opset=18)
    return net, net.node("Conv", [net.input("x", 2, 3, 8, 8), net.constant("w", 4, 3, 3, 3)])


def two_parts(axis: int) -> onnx.ModelProto:
    net, c = convolved()
    halves = ["first", "second"]
    net.nodes.append(helper.make_node("Split", [c], halves, axis=axis, num_outputs=2))
    return sequence(net, c, *halves)


def one_part(*shape: int) -> onnx.ModelProto:
    net, c = convolved()
    return sequence(net, c, net.node("Reshape", [c, put(net, shape, np.int64)]))


def ended(op: str, *more: object, to: int = TensorProto.FLOAT, **fields: object) -> onnx.ModelProto:
    net, c = convolved()
    others = [put(net, value, np.float32) for value in more]
    net.node("Cast", [net.node(op, [c, *others], **fields)], "y", to=to)
    net.output("y", 4)
    model = net.model()
    model.graph.output[0].type.tensor_type.elem_type = to
    return model


INT = {"to": TensorProto.INT64}
PAIRS: dict[str, tuple[Callable[[], onnx.ModelProto], Callable[[], onnx.ModelProto]]] = {
    "a sequence of one and of two": (lambda: two_parts(0), lambda: one_part(2, 4, 6, 6)),
    "a sequence of other shapes": (lambda: one_part(2, 4, 36), lambda: one_part(2, 36, 4)),
    "a sequence in another order": (lambda: two_parts(0), lambda: two_parts(2)),
    "a clip at large values": (lambda: ended("Clip", -60.0, 60.0), lambda: ended("Identity")),
    "a smaller clip": (lambda: ended("Clip", -1.0, 1.0), lambda: ended("Clip", -2.0, 2.0)),
    "whole numbers": (lambda: ended("Mul", 10.0, **INT), lambda: ended("Mul", 11.0, **INT)),
    "whole numbers, one more": (lambda: ended("Mul", 10.0, **INT), lambda: ended("Add", 1.0, **INT)),
    "the largest and the smallest": (lambda: ended("ArgMax", axis=1, **INT), lambda: ended("ArgMin", axis=1, **INT)),
    "another axis": (
        lambda: ended("ReduceMean", keepdims=1, noop_with_empty_axes=0),
        lambda: ended("ReduceMax", keepdims=1, noop_with_empty_axes=0),
    ),
    "truth values": (
        lambda: ended("Greater", 0.0, to=TensorProto.BOOL),
        lambda: ended("Less", 0.0, to=TensorProto.BOOL),
    ),
    "another order of elements": (
        lambda: ended("Transpose", perm=[0, 1, 2, 3]),
        lambda: ended("Transpose", perm=[0, 1, 3, 2]),
    ),
    "infinity of the other sign": (lambda: ended("Div", 0.0), lambda: ended("Div", -0.0)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_files_that_differ_never_pass(name):
    """Neither way round; each and itself do, where there is something to judge by."""
    one, other = PAIRS[name]
    for before, after in ((one, other), (other, one)):
        with pytest.raises((FoldError, CannotJudge)):
            verify_onnx(before(), after())


@pytest.mark.parametrize("name", ["a sequence of one and of two", "a clip at large values", "a smaller clip"])
def test_files_that_are_alike_pass(name):
    """Sequences and clipped values are judged, and found equal."""
    for make in PAIRS[name]:
        assert verify_onnx(make(), make()).algebra_error == 0
