"""The engine against a plain session of the same file and against NumPy."""

import json
import re

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from foldserve.service.artifacts.repository import Repository
from foldserve.service.engines import buckets, threads
from foldserve.service.engines.load import load_engine
from foldserve.service.errors import ArtifactInvalid, BucketsInvalid, EngineError
from foldserve.service.settings import Settings
from foldserve.service.tensors import TensorSpec
from tests.support import artifacts


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """On a busy machine the runs of a small model take long, too: no bucket is left out for that here."""
    monkeypatch.setattr(buckets, "SHORT_RUN_SECONDS", 10.0)


def load(root, name="fashion", **options):
    return load_engine(Repository(root).open(name), provider="cpu", threads=1, **options)


def test_names_types_and_shapes_come_from_the_graph(fashion):
    """There is no second copy of any of them."""
    engine = load(fashion)
    assert engine.inputs == (TensorSpec("image", "UINT8", (None, 1, 28, 28)),)
    assert engine.outputs == (
        TensorSpec("logits", "FP32", (None, 10)),
        TensorSpec("probabilities", "FP32", (None, 10)),
        TensorSpec("class_id", "INT64", (None, 1)),
    )


def test_labels_and_image_come_from_the_models_own_metadata(fashion):
    """The file describes itself; nothing beside it is read for that."""
    engine = load(fashion)
    assert engine.class_names == artifacts.LABELS
    assert engine.metadata["foldserve.format"] == "1"
    assert engine.image is not None
    assert (engine.image.input, engine.image.height, engine.image.width, engine.image.channels) == ("image", 28, 28, 1)
    assert (engine.image.polarity, engine.image.background) == ("light-on-dark", (0, 0, 0))


def test_a_foreign_model_is_served_as_plain_tensors(models):
    """Two inputs, no metadata of ours: no labels, no image, right answers."""
    artifacts.publish_two_inputs(models)
    engine = load(models, "sum")
    assert engine.class_names is None
    assert engine.image is None
    left, right = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    assert np.array_equal(engine.run({"left": left, "right": right})["sum"], left + right)


def test_answers_are_those_of_numpy(fashion):
    """Within 1e-5 of the largest logit of a float64 computation that shares no code, and the same class."""
    inputs = artifacts.images(200, seed=11)
    expected, answered = artifacts.classify(inputs), load(fashion).run({"image": inputs})
    for name in ("logits", "probabilities"):
        assert np.abs(answered[name] - expected[name]).max() <= 1e-5 * np.abs(expected[name]).max()
    assert np.array_equal(answered["class_id"], expected["class_id"])


def test_answers_are_those_of_a_plain_session_bit_for_bit(fashion):
    """Padding to a bucket changes no byte; a rewritten graph would add in another order."""
    engine = load(fashion, is_autotuned=False)
    plain = artifacts.plain_session(Repository(fashion).open("fashion").model_path)
    for rows in (1, 2, 3, 7, 16, 17, 100, 256):
        inputs = {"image": artifacts.images(rows, seed=rows)}
        answered = engine.run(inputs)
        for name, expected in zip(("logits", "probabilities", "class_id"), plain.run(None, inputs), strict=True):
            assert answered[name].tobytes() == expected.tobytes(), (rows, name)


def test_an_image_alone_and_in_any_batch_gets_the_same_bytes(fashion):
    """Five hundred images, alone and in random batches of one to 256: batch invariance as a client sees it."""
    engine = load(fashion)
    assert engine.batch_invariant
    inputs = artifacts.images(500, seed=13)
    alone = [engine.run({"image": inputs[n : n + 1]}) for n in range(len(inputs))]
    rng = np.random.default_rng(14)
    for _ in range(8):
        members = rng.permutation(len(inputs))[: int(rng.integers(1, 257))]
        together = engine.run({"image": inputs[members]})
        for name, answers in together.items():
            assert answers.tobytes() == np.concatenate([alone[n][name] for n in members]).tobytes(), name


def test_read_only_and_borrowed_memory_is_accepted(fashion):
    """A body is bytes, and its view cannot be written to."""
    engine = load(fashion)
    inputs = artifacts.images(3)
    view = np.frombuffer(inputs.tobytes(), np.uint8).reshape(inputs.shape)
    assert engine.run({"image": view})["logits"].tobytes() == engine.run({"image": inputs})["logits"].tobytes()


def test_only_the_buckets_asked_for_are_measured(fashion):
    """Their seconds are known before the first request."""
    engine = load(fashion, buckets=(1, 4, 16))
    assert engine.buckets == (1, 4, 16)
    assert set(engine.bucket_seconds) == {1, 4, 16}
    assert all(seconds > 0 for seconds in engine.bucket_seconds.values())
    assert engine.largest_deviation >= 0
    assert set(engine.deviations) == {"logits", "probabilities"}


@pytest.mark.parametrize("rows", [0, 17])
def test_a_batch_that_fits_no_bucket_is_refused(fashion, rows):
    """The batcher never does that; any other caller is told."""
    engine = load(fashion, buckets=(1, 4, 16))
    with pytest.raises(EngineError, match=f"{rows} rows, expected 1 to 16"):
        engine.run({"image": np.zeros((rows, 1, 28, 28), np.uint8)})


def test_a_failed_run_is_an_engine_error(fashion):
    """onnxruntime's own classes end here."""
    with pytest.raises(EngineError, match="the run failed"):
        load(fashion).run({"image": np.zeros((1, 1, 27, 28), np.uint8)})


def test_measured_threads_do_not_change_the_answers(fashion):
    """threads=0 measures; what it chooses gives the golden answers too."""
    artifact = Repository(fashion).open("fashion")
    measured, one = load_engine(artifact, provider="cpu"), load_engine(artifact, provider="cpu", threads=1)
    inputs = {"image": artifacts.images(5)}
    assert np.array_equal(measured.run(inputs)["class_id"], one.run(inputs)["class_id"])


@pytest.mark.parametrize(("inexact", "threaded_from"), [((), 64), ((64,), 256), ((256,), None), ((64, 256), None)])
def test_larger_batches_take_all_threads_from_where_it_pays_and_changes_nothing(
    fashion, monkeypatch, inexact, threaded_from
):
    """A bucket that would answer otherwise on more threads keeps those below it on one; no bucket is timed twice."""
    timed = []

    def median_seconds(run, inputs, bucket):
        threads = run.__self__._session.get_session_options().intra_op_num_threads
        timed.append((bucket, threads))
        return bucket * 1e-4 / threads

    monkeypatch.setattr(threads, "median_seconds", median_seconds)
    monkeypatch.setattr(threads, "answers_agree", lambda one, other, inputs, bucket: bucket not in inexact)
    artifact = Repository(fashion).open("fashion")
    engine = load_engine(artifact, provider="cpu", cores=2, buckets=(1, 64, 256), is_autotuned=False)
    assert engine.threaded_from == threaded_from
    assert engine.buckets == (1, 64, 256)
    if threaded_from == 64:
        assert timed == [(1, 1), (64, 1), (64, 2), (256, 2)]
        assert dict(engine.bucket_seconds) == pytest.approx({1: 1e-4, 64: 3.2e-3, 256: 1.28e-2})


def republish(folder, model=None, golden=None):
    """Change the model or its golden answers, digests included: what only the engine can find."""
    if model is not None:
        (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    changes = {"files": {"model.onnx": artifacts.file_entry(folder / "model.onnx")}}
    artifacts.rewrite_manifest(folder, **changes, **({} if golden is None else {"golden": golden}))


def golden_of(folder):
    return json.loads((folder / "manifest.json").read_text())["golden"]


def test_nan_weights_are_refused(fashion):
    """They load without complaint and compare unequal to everything, so this check must not be a comparison alone."""
    weights = artifacts.classifier_weights()
    weights["fc.weight"][3] = np.nan
    republish(fashion / "fashion" / "1", artifacts.classifier_model(weights))
    with pytest.raises(ArtifactInvalid, match="NaN or infinity on the golden inputs"):
        load(fashion)


def test_a_weight_that_is_slightly_off_is_refused(fashion):
    """A relative error of 1e-4 in one filter is ten times what the golden check allows."""
    weights = artifacts.classifier_weights()
    weights["fc.weight"] *= np.float32(1.0001)
    republish(fashion / "fashion" / "1", artifacts.classifier_model(weights))
    with pytest.raises(ArtifactInvalid, match=r"is off by .* allowed are 1e-05"):
        load(fashion)


def test_another_class_is_refused_whatever_the_logits_say(fashion):
    """Integer outputs have to be equal."""
    folder = fashion / "fashion" / "1"
    golden = golden_of(folder)
    inputs = artifacts.images(16, seed=7)
    wrong = artifacts.classify(inputs)["class_id"]
    wrong[5] = (wrong[5] + 1) % 10
    golden["outputs"]["class_id"] = artifacts.encode({"class_id": wrong})["class_id"]
    republish(folder, golden=golden)
    with pytest.raises(ArtifactInvalid, match=r"for golden row 5, expected .* \(1 of 16 rows differ\)"):
        load(fashion)


def test_golden_tensors_of_another_model_are_refused(fashion_and_echo):
    """Names, types and shapes are compared with the graph before anything runs."""
    folder = fashion_and_echo / "fashion" / "1"
    golden = golden_of(folder)
    republish(folder, golden=golden_of(fashion_and_echo / "echo" / "1"))
    with pytest.raises(ArtifactInvalid, match="golden inputs"):
        load(fashion_and_echo)
    golden["outputs"].pop("probabilities")
    republish(folder, golden=golden)
    with pytest.raises(ArtifactInvalid, match="golden outputs"):
        load(fashion_and_echo)


METADATA_LIES = {
    "nine labels": ({"foldserve.labels": json.dumps(artifacts.LABELS[:9])}, "names 9 classes, no output has so many"),
    "labels not JSON": ({"foldserve.labels": "a,b"}, "not JSON"),
    "labels not names": ({"foldserve.labels": "[1, 2]"}, "expected an array of names"),
    "another size": ({"foldserve.image": json.dumps(artifacts.IMAGE | {"height": 32})}, "1, 32, 28. .CHW., the graph"),
    "another input": ({"foldserve.image": json.dumps(artifacts.IMAGE | {"input": "x"})}, "states input 'x'"),
    "a key too few": ({"foldserve.image": '{"input": "image", "range": [0, 255]}'}, "cannot be read"),
}


@pytest.mark.parametrize("lie", METADATA_LIES)
def test_metadata_that_contradicts_the_graph_is_refused(models, lie):
    """What the file says about itself has to be true."""
    metadata, reason = METADATA_LIES[lie]
    artifacts.publish_classifier(models, metadata=metadata)
    with pytest.raises(ArtifactInvalid, match=reason):
        load(models)


def tensor_model(shape, kind=TensorProto.FLOAT):
    """One input that comes back as it is."""
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "tensor", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def publish_tensor(models, shape, kind=TensorProto.FLOAT, rows=16):
    inputs = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    artifacts.publish(models, "tensor", tensor_model(shape, kind), {"x": inputs}, {"y": inputs})


def test_what_cannot_be_batched_is_refused_with_the_reason(models):
    """No axis at all, or a type without a name here: refused at the start, not at the first request."""
    publish_tensor(models / "scalar", [])
    with pytest.raises(ArtifactInvalid, match="expected the batch as its first axis"):
        load(models / "scalar", "tensor")
    publish_tensor(models / "narrow", ["batch", 3], TensorProto.BFLOAT16)
    with pytest.raises(ArtifactInvalid, match=r"is a tensor\(bfloat16\)"):
        load(models / "narrow", "tensor")


def test_a_graph_of_a_fixed_batch_is_served_in_that_bucket(models):
    """Smaller batches are padded to it, whatever the list of buckets; one larger than all of them is refused."""
    publish_tensor(models, [4, 3])
    engine = load(models, "tensor", buckets=(1, 4, 8))
    assert engine.buckets == (4,)
    inputs = np.float32([[1, 2, 3]])
    assert np.array_equal(engine.run({"x": inputs})["y"], inputs)
    assert load(models, "tensor", buckets=(1, 8)).buckets == (4,)
    with pytest.raises(BucketsInvalid, match="exactly 4 rows, more than the largest bucket"):
        load(models, "tensor", buckets=(1, 2))


@pytest.mark.parametrize("buckets", [(), (0, 1), (4, 2), (2, 2)])
def test_a_list_of_buckets_that_is_empty_or_not_rising_is_refused(fashion, buckets):
    """The message shows the list and a good one; the settings refuse the same lists before."""
    expected = re.escape(f"buckets: got {list(buckets)}, expected rising batch sizes from 1 up, such as 1,8,32")
    with pytest.raises(BucketsInvalid, match=expected):
        load(fashion, buckets=buckets)
    with pytest.raises(ValidationError, match="expected rising batch sizes"):
        Settings(buckets=buckets)


def test_a_matrix_product_is_not_folded_again(models):
    """onnxruntime's fusion of MatMul and BatchNormalization stays off: the answers are the graph's own."""
    rng = np.random.default_rng(2)
    weight, inputs = rng.standard_normal((3, 3)).astype(np.float32), rng.standard_normal((16, 3)).astype(np.float32)
    scale, bias, mean = rng.standard_normal((3, 3)).astype(np.float32)
    variance = rng.random(3).astype(np.float32) + 1
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "y")]
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("BatchNormalization", ["product", "scale", "bias", "mean", "variance"], ["y"]),
    ]
    constants = {"weight": weight, "scale": scale, "bias": bias, "mean": mean, "variance": variance}
    graph = helper.make_graph(
        nodes, "norm", ends[:1], ends[1:], [numpy_helper.from_array(a, name) for name, a in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    expected = (inputs.astype(np.float64) @ weight - mean) / np.sqrt(variance.astype(np.float64) + 1e-5) * scale + bias
    artifacts.publish(models, "norm", model, {"x": inputs}, {"y": expected.astype(np.float32)})
    answered = load(models, "norm").run({"x": inputs})["y"]
    assert np.abs(answered - expected).max() <= 1e-5 * np.abs(expected).max()
