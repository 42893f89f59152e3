"""Which graph runs: proven, measured, and the published one where that is better."""

import onnx
import pytest
from onnx import numpy_helper

from foldserve.service.artifacts.repository import Repository
from foldserve.service.engines.autotune import REWRITES, autotune
from foldserve.service.engines.engine import Engine
from foldserve.service.engines.load import load_engine
from foldserve.service.engines.providers import cpu_session
from foldserve.service.engines.rewrites import split_pooling
from foldserve.service.engines.runners import PlainRunner
from tests.support import artifacts


def choose(root, rewrites):
    artifact = Repository(root).open("fashion")
    return autotune(artifact, PlainRunner(cpu_session(artifact.model_path, 1)), (1, 4), rewrites)


def worse(data):
    """A rewrite that is right and slow: the answer is computed and then added to zero times itself, many times."""
    model = onnx.load_from_string(data)
    last = next(node for node in model.graph.node if "sigmoid" in node.output)
    last.output[0] = "slow0"
    for step in range(60):
        out = "sigmoid" if step == 59 else f"slow{step + 1}"
        node = onnx.helper.make_node("Abs", [f"slow{step}"], [out])
        model.graph.node.insert(list(model.graph.node).index(last) + 1 + step, node)
    return model.SerializeToString()


def wrong(data):
    """A rewrite that changes one weight: what a mistake in this file would look like."""
    model = onnx.load_from_string(split_pooling(data))
    for tensor in model.graph.initializer:
        if tensor.name == "fc.weight":
            values = numpy_helper.to_array(tensor).copy()
            values[3, 7] += 0.01
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model.SerializeToString()


def broken(data):
    raise ValueError("cannot read this")


@pytest.mark.parametrize("rewrite", [worse, wrong, broken, lambda data: None])
def test_the_published_graph_runs_unless_another_is_right_and_faster(fashion, rewrite):
    """Slower, wrong, unreadable, unchanged."""
    choice = choose(fashion, {"it": rewrite})
    assert choice.rewrite is None
    assert choice.source == Repository(fashion).open("fashion").model_path


def test_a_graph_that_is_right_and_faster_runs(models):
    """Whichever of two graphs of one function is slow, the other is chosen."""
    weights, inputs = artifacts.classifier_weights(), artifacts.images(16, seed=7)
    fast = artifacts.classifier_model(weights)
    slow = onnx.load_from_string(worse(fast.SerializeToString()))
    artifacts.publish(models, "fashion", slow, {"image": inputs}, artifacts.classify(inputs, weights))
    choice = choose(models, {"fast": lambda data: fast.SerializeToString()})
    assert choice.rewrite == "fast"
    assert choice.source == fast.SerializeToString()


@pytest.mark.parametrize("name", REWRITES)
def test_an_engine_that_runs_a_rewritten_graph_is_proven_like_any_other(fashion, monkeypatch, name):
    """Golden answers in every bucket, batch invariance, the published graph's signature; the file stays as it was."""
    monkeypatch.setattr(
        "foldserve.service.engines.autotune._gains", lambda plain, others, *rest: dict.fromkeys(others, (2.0, 2.0))
    )
    monkeypatch.setattr("foldserve.service.engines.load.REWRITES", {name: REWRITES[name]})
    artifact = Repository(fashion).open("fashion")
    before = artifact.model_path.read_bytes()
    engine = load_engine(artifact, provider="cpu", threads=1, buckets=(1, 2, 8, 64))
    is_possible = REWRITES[name](before) is not None
    assert engine.rewrite == (name if is_possible else None)
    assert engine.batch_invariant
    assert engine.class_names == artifacts.LABELS
    answered = engine.run({"image": artifacts.images(50)})
    expected = artifacts.classify(artifacts.images(50))
    artifact.golden.check(engine.run(artifact.golden.inputs), "cpu")
    assert abs(answered["logits"] - expected["logits"]).max() <= 1e-5 * abs(expected["logits"]).max()
    assert artifact.model_path.read_bytes() == before


def test_it_can_be_switched_off(fashion):
    """Then the published file runs."""
    artifact = Repository(fashion).open("fashion")
    assert load_engine(artifact, provider="cpu", threads=1, buckets=(1, 64), is_autotuned=False).rewrite is None


def test_a_rewrite_whose_answers_depend_on_the_batch_is_left(fashion, monkeypatch):
    """Speed does not buy back the promise that neighbours change nothing."""
    from foldserve.service.engines import engine as module

    prove = Engine.prove

    def unsteady(self, *given, **options):
        prove(self, *given, **options)
        if self.rewrite is not None:
            self._profile = module.Profile((64,), True, 1.0, {}, {}, tried=(1, 64))

    monkeypatch.setattr(
        "foldserve.service.engines.autotune._gains", lambda plain, others, *rest: dict.fromkeys(others, (2.0, 2.0))
    )
    monkeypatch.setattr(Engine, "prove", unsteady)
    artifact = Repository(fashion).open("fashion")
    engine = load_engine(artifact, provider="cpu", threads=1, buckets=(1, 64))
    assert engine.rewrite is None
    assert engine.buckets == (1, 64)
