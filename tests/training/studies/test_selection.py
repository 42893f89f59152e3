"""The images that a choice is made on are never those of the test set."""

import dataclasses

import numpy as np
import pytest
import torch

from foldserve.training.errors import ConfigError
from foldserve.training.studies import measurement
from foldserve.training.studies.arms import Case
from foldserve.training.studies.selection import CANDIDATES, held_out


def test_selection_never_meets_the_test_set(made_up):
    """The last training rows take its place and are not trained on."""
    split = held_out(made_up, 52)
    assert np.array_equal(split.test_images, made_up.train_images[-52:])
    assert np.array_equal(split.train_images, made_up.train_images[:-52])
    assert np.array_equal(split.test_labels, made_up.train_labels[-52:])
    with pytest.raises(ConfigError, match="352 rows held out of 352"):
        held_out(made_up, 352)


def test_the_figures_of_a_choice_are_the_same_whatever_the_test_set_is(made_up, monkeypatch):
    """Training, both sets of statistics and every accuracy of a candidate come from training images alone."""
    monkeypatch.setattr(measurement, "held_out", lambda dataset: held_out(dataset, 52))
    other = dataclasses.replace(made_up, test_images=255 - made_up.test_images, test_labels=made_up.test_labels[::-1])
    case = Case(CANDIDATES[0].shortened(epochs=1, rows=300), 0)
    found = [measurement.measure(case, dataset, torch.device("cpu")) for dataset in (made_up, other)]
    for key in ("test_accuracy", "train_accuracy", "saturated"):
        assert found[0][key] == found[1][key]
    assert found[0]["epochs"][0]["test_accuracy"] == found[1]["epochs"][0]["test_accuracy"]
    assert found[0]["train_rows"] == 300
