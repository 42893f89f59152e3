"""ZipMap cut off: the same numbers as the dictionaries held, and the classes as labels."""

import numpy as np
import onnx
import onnxruntime
import pytest

from foldserve.service.artifacts.zipmap import without_zipmaps
from tests.support import artifacts, exported

X = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)


def run(model: bytes) -> list:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"X": X})


@pytest.mark.parametrize("classes", [["rose", "tülip", "iris"], [0, 1, 2], [-7, 3], ["no", "yes"]])
@pytest.mark.parametrize("opset", [True, False])
def test_the_numbers_are_those_of_the_dictionaries(classes, opset):
    """Bit for bit, in the order of the classes, whatever these are."""
    original = exported.zipmap(classes, opset=opset).SerializeToString()
    label, maps = run(original)
    cut = without_zipmaps(original)
    assert cut is not None
    same_label, probabilities = run(cut)
    assert np.array_equal(label, same_label)
    assert probabilities.dtype == np.float32
    assert probabilities.tobytes() == np.array([[row[name] for name in classes] for row in maps], np.float32).tobytes()


def test_the_file_is_a_valid_model_with_labels_and_a_shape():
    """A reader of the rewritten graph sees a tensor of as many values as there are classes."""
    model = onnx.load_from_string(without_zipmaps(exported.zipmap(["a", "b", "c"]).SerializeToString()))
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props}["foldserve.labels"] == '["a", "b", "c"]'
    dims = model.graph.output[1].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [0, 3]


def test_labels_that_stand_there_already_stay():
    """Whoever wrote labels into the file knows them better."""
    model = exported.zipmap([0, 1])
    onnx.helper.set_model_props(model, {"foldserve.labels": '["cat", "dog"]'})
    cut = onnx.load_from_string(without_zipmaps(model.SerializeToString()))
    assert [entry.value for entry in cut.metadata_props] == ['["cat", "dog"]']


def test_a_model_without_one_is_left_as_it_is():
    """Most files have none."""
    assert without_zipmaps(artifacts.classifier_model().SerializeToString()) is None
