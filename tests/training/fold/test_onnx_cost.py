"""The proof of a file holds little at a time, runs nothing twice, and sees as much as if it held everything."""

import tracemalloc
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from benchmarks.folding.cost import in_a_process
from foldserve.training.fold.onnx.api import fold_onnx
from foldserve.training.fold.onnx.evaluator import Evaluator
from foldserve.training.fold.onnx.graph import OnnxGraph
from foldserve.training.fold.onnx.probe import Prober
from foldserve.training.fold.onnx.site_proof import Segment, Sites, SiteTrial
from foldserve.training.fold.refusals import Refusal
from tests.support.onnx_cases import Net

MOST = 6.0  # times the parameters, above the loaded model


def chain(layers: int, *dims: int | str) -> onnx.ModelProto:
    net = Net(opset=17)
    x = net.input("x", *dims)
    for number in range(layers):
        conv = net.node("Conv", [x, net.constant(f"w{number}", 3, 3, 3, 3)], pads=[1] * 4)
        x = net.node("Relu", [net.norm(conv, 3, prefix=f"bn{number}")])
    net.node("Identity", [x], "y")
    net.output("y", 4)
    return net.model()


@pytest.mark.slow
@pytest.mark.parametrize("size", [224, 512])
def test_a_file_is_folded_and_proved_within_six_times_its_parameters(size: int):
    """And one activation in float32, of a ResNet-18 in a process of its own: 3 MB, and 16 MB beside 45 MB."""
    found = in_a_process("onnx", 18, size)
    activation = 4 * 64 * (size // 2) ** 2 / 2**20
    assert found["growth"] * found["megabytes"] < MOST * found["megabytes"] + activation


def test_the_ends_of_one_site_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch):
    """Not those of all: what a later site does not read is let go as soon as the site before it is proved."""
    held: list[int] = []
    real = Evaluator._run_node

    def watch(self: Evaluator, node: Any, live: dict[str, np.ndarray], *args: Any) -> None:
        real(self, node, live, *args)
        held.append(sum(value.size > 1000 for value in live.values()))

    monkeypatch.setattr(Evaluator, "_run_node", watch)
    assert len(fold_onnx(chain(12, 1, 3, 24, 24)).report.folded) == 12
    assert max(held) <= 5


def sizes_of_maps(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """Fold and prove `model`; return the heights of the maps that a Conv read in each run."""
    runs: list[set[int]] = []
    real, real_node = Evaluator._run, Evaluator._run_node

    def watch(self: Evaluator, *args: Any) -> Any:
        runs.append(set())
        return real(self, *args)

    def watch_node(self: Evaluator, node: Any, live: dict[str, np.ndarray], *args: Any) -> None:
        if node.op_type == "Conv":
            runs[-1].add(live[node.input[0]].shape[2])
        real_node(self, node, live, *args)

    monkeypatch.setattr(Evaluator, "_run", watch)
    monkeypatch.setattr(Evaluator, "_run_node", watch_node)
    assert fold_onnx(model).report.folded
    return runs


def test_sites_are_proved_on_small_maps(monkeypatch: pytest.MonkeyPatch):
    """Four runs see the whole of a large map, for the proof of the outputs; those of the sites never do."""
    runs = sizes_of_maps(chain(3, 1, 3, 160, 160), monkeypatch)
    assert [run for run in runs if 160 in run] == [{160}] * 3
    assert len([run for run in runs if run == {16}]) == 3 * 3


def test_a_site_that_is_told_a_size_is_proved_on_whole_maps(monkeypatch: pytest.MonkeyPatch):
    """A constant map, added between the layer and the norm, fits no other size."""
    net = Net(opset=17)
    conv = net.node("Conv", [net.input("x", 1, 3, 64, 64), net.constant("w", 3, 3, 3, 3)])
    pooled = net.node("AveragePool", [conv], kernel_shape=[2, 2], strides=[2, 2])
    flat = net.node("Reshape", [pooled, net.put("s", [1, 3, 31, 31], np.int64)])
    net.output(net.norm(flat, 3, "y"))
    assert all(run in ({64}, set()) for run in sizes_of_maps(net.model(), monkeypatch))


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 2, 1, 1), (2, 1, 2, 2)])
def test_one_wrong_weight_is_seen_on_small_maps(place: tuple[int, ...]):
    """Every weight meets every kind of place there: corners, borders and the inside."""
    model = chain(1, 1, 3, 160, 160)
    folded = fold_onnx(model)
    exact = {name: value.copy() for name, value in folded.exact.items()}
    exact["w0"][place] += 1e-9
    segment = Segment(model.graph.node[1].output[0], ("x",))
    verdicts = [
        _only_verdict(Sites([[segment]], Evaluator(model), Evaluator(folded.model, parameters)))
        for parameters in (folded.exact, exact)
    ]
    assert isinstance(verdicts[0], float)
    assert isinstance(verdicts[1], Refusal)


def _only_verdict(sites: Sites) -> float | Refusal:
    trial = SiteTrial(sites, "")
    trial.finish({}, {"x": (1, 3, 160, 160)}, {})
    return trial.verdicts[sites.live[0]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("first", [False, True])
def test_weights_of_a_product_are_widened_in_parts(dtype: type, first: bool):
    """As exact as with all of them in float64, which are never there."""
    net = Net(opset=17)
    weight = np.random.default_rng(0).normal(size=(2048, 2048)).astype(dtype)
    x = net.input("x", *((2048, 2) if first else (2, 2048)))
    name = net.put("w", weight, dtype)
    net.output(net.node("MatMul", [name, x] if first else [x, name], "y"))
    evaluator, value = Evaluator(net.model()), np.random.default_rng(1).normal(size=(2048, 2) if first else (2, 2048))
    tracemalloc.start()
    got = evaluator.run({"x": value}, ["y"])["y"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    wide = weight.astype(np.float64)
    np.testing.assert_allclose(got, wide @ value if first else value @ wide, rtol=1e-12, atol=1e-11)
    assert peak < wide.nbytes


def test_inputs_of_the_same_sizes_are_run_once(monkeypatch: pytest.MonkeyPatch):
    """A picture so large that one row is enough has no other batch: no second run of the very same."""
    tried: list[str] = []
    real = Prober._at

    def watch(self: Prober, inputs: Any, wanted: set[str]) -> Any:
        tried.append(inputs.text)
        return real(self, inputs, wanted)

    monkeypatch.setattr(Prober, "_at", watch)
    assert fold_onnx(chain(1, "N", 3, 160, 160)).report.proof.sizes == ("x 1x3x160x160",)
    assert tried == ["x 1x3x160x160"]
    tried.clear()
    assert len(fold_onnx(chain(1, "N", 3, "H", "W")).report.proof.sizes) == 2
    assert len(tried) == len({*tried}) == 2


def test_weights_that_are_computed_are_made_right_before_their_reader():
    """A file may make all of them first; the float64 run does not hold them all."""
    net = Net(opset=17)
    x = net.input("x", "N", 3, 8, 8)
    value = numpy_helper.from_array(np.float32([0.5]))
    weights = [net.node("ConstantOfShape", [net.put(f"s{i}", [3, 3, 1, 1], np.int64)], value=value) for i in range(4)]
    weights = [net.node("Neg", [weight]) for weight in weights]
    for weight in weights:
        x = net.node("Conv", [x, weight])
    net.node("Identity", [x], "y")
    net.output("y", 4)
    model = net.model()
    order = [node.op_type for node in Evaluator(model).nodes]
    assert order == ["ConstantOfShape", "Neg", "Conv"] * 4 + ["Identity"]
    feeds = {"x": np.ones((1, 3, 8, 8))}
    np.testing.assert_allclose(Evaluator(model).run(feeds, ["y"])["y"], 1.5**4)


def test_a_watcher_sees_what_it_asked_for_and_nothing_is_lost():
    """What it lets go may be wanted by the caller all the same."""

    class Watch:
        names: AbstractSet[str] = frozenset({"relu2", "relu5"})
        seen: list[set[str]] = []

        def reached(self, values: Any) -> AbstractSet[str]:
            self.seen.append({*self.names} & {*values})
            return self.names if len(self.seen) == 2 else set()

    model, feeds = chain(2, 1, 3, 24, 24), {"x": np.ones((1, 3, 24, 24))}
    watch = Watch()
    values = Evaluator(model).run(feeds, ["y", "relu2"], watch)
    assert watch.seen == [{"relu2"}, {"relu2", "relu5"}]
    assert {"y", "relu2"} <= values.keys()
    assert "relu5" not in values


def test_a_graph_holds_no_weights_until_it_is_finished():
    """Those of the original are read where they are; of a stored one the old numbers are not kept."""
    model = chain(1, 1, 3, 8, 8)
    graph = OnnxGraph(model)
    assert not graph.model.graph.initializer
    exact = np.full((3, 3, 3, 3), 0.25)
    graph.store("w0", exact, "float32")
    done = graph.finish()
    assert [tensor.name for tensor in done.graph.initializer] == [tensor.name for tensor in model.graph.initializer]
    assert (numpy_helper.to_array(done.graph.initializer[0]) == exact).all()
    assert not (numpy_helper.to_array(model.graph.initializer[0]) == exact).all()
    assert done.graph.initializer[0].data_type == TensorProto.FLOAT
    assert done.producer_name == model.producer_name
