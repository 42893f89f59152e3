"""Classifiers as exporters of scikit-learn's write them, whose own class is not always that of their largest score."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from foldserve import publish
from foldserve.service.app import create_app
from foldserve.service.settings import Settings
from foldserve.training.errors import ConfigError
from tests.support.live import serve

ML = "ai.onnx.ml"
ROWS = np.random.default_rng(2).normal(size=(40, 4)).astype(np.float32)


def machine(classes: int, *, probabilities: bool) -> onnx.ModelProto:
    """Return a support vector machine with a ZipMap, as skl2onnx writes SVC with and without `probability=True`."""
    generator = np.random.default_rng(classes)
    vectors, pairs = 5 * classes, classes * (classes - 1) // 2
    options: dict[str, Any] = {
        "classlabels_ints": list(range(classes)),
        "coefficients": generator.normal(size=(classes - 1) * vectors).tolist(),
        "support_vectors": generator.normal(size=vectors * 4).tolist(),
        "vectors_per_class": [5] * classes,
        "rho": generator.normal(size=pairs).tolist(),
        "kernel_type": "RBF",
        "kernel_params": [0.3, 0.0, 3.0],
        "post_transform": "NONE",
    }
    if probabilities:
        options |= {
            "prob_a": generator.uniform(-3, -1, pairs).tolist(),
            "prob_b": generator.normal(size=pairs).tolist(),
        }
    nodes = [
        helper.make_node("SVMClassifier", ["X"], ["label", "scores"], domain=ML, **options),
        helper.make_node("Identity", ["label"], ["output_label"]),
        helper.make_node(
            "ZipMap", ["scores"], ["output_probability"], domain=ML, classlabels_int64s=list(range(classes))
        ),
    ]
    outputs = [
        helper.make_tensor_value_info("output_label", TensorProto.INT64, [None]),
        helper.make_value_info("output_probability", helper.make_sequence_type_proto(
            helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        )),
    ]  # fmt: skip
    rows = helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, 4])
    graph = helper.make_graph(nodes, "machine", [rows], outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ML, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def own_answers(model: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes and scores that onnxruntime gives for the graph as it was exported."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    labels, scores = session.run(None, {"X": ROWS})
    return np.asarray(labels), np.array([list(row.values()) for row in scores])


@pytest.mark.parametrize("classes", [3, 4])
def test_a_support_vector_machine_with_probabilities_is_held_to_float64(classes: int, tmp_path: Path) -> None:
    """ONNX's reference couples pairs of three classes wrongly, so that publishing took the runtime for imprecise."""
    model = machine(classes, probabilities=True)
    labels, scores = own_answers(model)
    same = labels == scores.argmax(axis=1)
    assert same.sum() > 5
    publish(model, name="machine", examples=ROWS[same], models_dir=tmp_path)
    with serve(create_app(Settings(models_dir=tmp_path, provider="cpu", buckets=(1, 64)))) as url:
        answer = httpx.post(f"{url}/predict?model=machine", json={"instances": ROWS[same].tolist()}).json()
    got = np.array([row["probabilities"] for row in answer["predictions"]])
    np.testing.assert_allclose(got, scores[same], atol=2e-6)
    assert [row["class_id"] for row in answer["predictions"]] == labels[same].tolist()


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_that_do_not_say_the_class_are_refused(classes: int, tmp_path: Path) -> None:
    """The largest score of a machine of two classes is the other one's: it would have answered all rows wrongly."""
    model = machine(classes, probabilities=False)
    labels, scores = own_answers(model)
    differ = int((labels != scores.argmax(axis=1)).sum())
    assert differ
    with pytest.raises(
        ConfigError, match=rf"'output_label' names class .* \({differ} of 40 examples\).*--task tensors"
    ):
        publish(model, name="machine", examples=ROWS, models_dir=tmp_path)
    assert not list(tmp_path.iterdir())
    publish(model, name="machine", task="tensors", examples=ROWS, models_dir=tmp_path, dry_run=True)
