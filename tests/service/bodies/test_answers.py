"""Answers as bytes: every number arrives as it was computed."""

import json

import numpy as np
import pytest

from foldserve.format.task import Task
from foldserve.service.bodies.answers import predictions_json
from foldserve.service.errors import EngineError
from tests.support.artifacts import LABELS, classify, images

CLASSIFY = Task("classify")


def test_probabilities_survive_json_bit_for_bit():
    """Every float32 that the model gave can be read back from the answer exactly."""
    outputs = classify(images(50))
    answer = json.loads(predictions_json("fashion", 1, CLASSIFY, LABELS, outputs))
    read = np.array([prediction["probabilities"] for prediction in answer["predictions"]], np.float32)
    assert np.array_equal(read, outputs["probabilities"])


def test_class_label_and_confidence_belong_together():
    """The class is the most probable one, its label is the model's, its confidence is its probability."""
    outputs = classify(images(50))
    answer = json.loads(predictions_json("fashion", 7, CLASSIFY, LABELS, outputs))
    assert (answer["model"], answer["version"]) == ("fashion", 7)
    for prediction, row in zip(answer["predictions"], outputs["probabilities"], strict=True):
        assert prediction["class_id"] == row.argmax()
        assert prediction["label"] == LABELS[row.argmax()]
        assert prediction["confidence"] == prediction["probabilities"][prediction["class_id"]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_json_cannot_hold_is_an_error(value):
    """NaN would silently become null; it is the model's failure and said so."""
    outputs = {"probabilities": np.full((1, 10), value, np.float32), "class_id": np.zeros((1, 1), np.int64)}
    with pytest.raises(EngineError, match="not finite"):
        predictions_json("fashion", 1, CLASSIFY, LABELS, outputs)
