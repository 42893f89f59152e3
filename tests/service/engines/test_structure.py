"""Models that differ in nothing but their weights: what was measured for one holds for the other."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from foldserve.service.artifacts.repository import Repository
from foldserve.service.engines import engine as engines
from foldserve.service.engines import load as loading
from foldserve.service.engines.autotune import decide_alone
from foldserve.service.engines.load import load_engine
from foldserve.service.engines.structure import structure_of
from tests.support import artifacts


def loaded(models, version, reference=None, **options):
    artifact = Repository(models).open("fashion", version)
    return load_engine(
        artifact,
        provider="cpu",
        buckets=(1, 4, 8),
        cores=2,
        references={reference.structure: reference.measured} if reference else {},
        **options,
    )


def test_weights_and_metadata_make_no_difference(models):
    """Another training, other labels: the same structure."""
    paths = [
        artifacts.publish_classifier(models, version=version, seed=version, **options) / "model.onnx"
        for version, options in ((1, {}), (2, {"metadata": {}}))
    ]
    assert structure_of(paths[0]) == structure_of(paths[1]) != ""


@pytest.mark.parametrize("change", ["attribute", "shape", "opset", "name"])
def test_everything_else_does(models, tmp_path, change):
    """Another padding, other channels, another opset, another name of an output."""
    first = artifacts.publish_classifier(models) / "model.onnx"
    model = artifacts.classifier_model(artifacts.classifier_weights(channels=8) if change == "shape" else None)
    if change == "attribute":
        next(node for node in model.graph.node if node.op_type == "Conv").attribute[0].ints[0] = 1
    elif change == "opset":
        model.opset_import[0].version = 17
    elif change == "name":
        model.graph.node[-1].output[0] = model.graph.output[-1].name = "winner"
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    assert structure_of(tmp_path / "other.onnx") != structure_of(first)


def test_what_cannot_be_read_has_none(tmp_path):
    """And nothing is like it."""
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 9)
    assert structure_of(tmp_path / "model.onnx") == ""


def test_a_version_like_the_one_that_serves_is_proved_and_not_timed(models, monkeypatch):
    """It takes over rewrite, threads and times, gives its own answers, and nothing is measured beside requests."""
    for version in (1, 2):
        artifacts.publish_classifier(models, version=version, seed=version)
    first = loaded(models, 1)

    def measured(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(loading, "autotune", measured)
    monkeypatch.setattr(engines, "first_threaded_bucket", measured)
    second = loaded(models, 2, reference=first)
    assert (second.rewrite, second.threaded_from, second.buckets) == (first.rewrite, first.threaded_from, first.buckets)
    assert dict(second.bucket_seconds) == dict(first.bucket_seconds)
    assert second.batch_invariant
    inputs = artifacts.images(8, seed=4)
    expected = artifacts.classify(inputs, artifacts.classifier_weights(2))["logits"]
    answers = second.run({"image": inputs})["logits"]
    np.testing.assert_allclose(answers, expected, atol=1e-5 * np.abs(expected).max())


def test_a_rewrite_is_taken_over_and_proved_again(models, monkeypatch):
    """Where the version that serves runs a rewritten graph, so does the next one; a wrong one is left out."""
    for version in (1, 2):
        artifacts.publish_classifier(models, version=version, seed=version)
    name = "pools split"
    taken = lambda artifact, *_: loading.reuse_choice(artifact, name, loading.REWRITES, decide_alone)  # noqa: E731
    monkeypatch.setattr(loading, "autotune", taken)
    first = loaded(models, 1)
    assert first.rewrite == name
    assert loaded(models, 2, reference=first).rewrite == name

    def wrong(data):
        model = onnx.load_from_string(data)
        bias = next(item for item in model.graph.initializer if item.name == "fc.bias")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, "fc.bias"))
        return model.SerializeToString()

    monkeypatch.setattr(loading, "REWRITES", {name: wrong})
    assert loaded(models, 2, reference=first).rewrite is None


def test_each_row_of_such_a_version_is_answered_once_in_each_batch_size(models, monkeypatch):
    """That its place changes nothing is known of the graph; of the first one of its kind it has to be seen."""
    for version in (1, 2):
        artifacts.publish_classifier(models, version=version, seed=version)
    rows, run = [], loading.PlainRunner.run
    monkeypatch.setattr(loading.PlainRunner, "run", lambda *given: rows.append(len(given[1]["image"])) or run(*given))
    first = loaded(models, 1)
    before = sum(rows)
    second = loaded(models, 2, reference=first)
    golden = second.golden.rows
    assert sum(rows) - before <= sum(max(golden, bucket) for bucket in second.buckets) + 2 * golden < before
    assert second.buckets == first.buckets


def test_such_a_version_is_looked_at_in_whole_where_it_disagrees(models, monkeypatch):
    """Threads that change its last bits are left out for it, and no batch size is."""
    for version in (1, 2):
        artifacts.publish_classifier(models, version=version, seed=version)
    first = loaded(models, 1, threads=1, is_autotuned=False)
    threaded, open_one, run = [], engines.cpu_session, loading.PlainRunner.run

    def opened(source, threads):
        session = open_one(source, threads)
        threaded.extend([session] if threads > 1 else [])
        return session

    def unlike(self, inputs):
        answers = run(self, inputs)
        if self._session not in threaded:
            return answers
        return {name: array * (1 + 1e-6) if array.dtype.kind == "f" else array for name, array in answers.items()}

    monkeypatch.setattr(engines, "cpu_session", opened)
    monkeypatch.setattr(loading.PlainRunner, "run", unlike)
    measured = replace(first.measured, threaded_from=8)
    kind = SimpleNamespace(structure=first.structure, measured=measured)
    second = loaded(models, 2, reference=kind, is_autotuned=False)
    assert threaded
    assert (second.buckets, second.threaded_from) == (first.buckets, None)
