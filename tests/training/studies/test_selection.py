"""The images that a choice is made on are never those of the test set."""

import numpy as np
import pytest

from foldserve.training.errors import ConfigError
from foldserve.training.studies.selection import held_out


def test_selection_never_meets_the_test_set(made_up):
    """The last training rows take its place and are not trained on."""
    split = held_out(made_up, 52)
    assert np.array_equal(split.test_images, made_up.train_images[-52:])
    assert np.array_equal(split.train_images, made_up.train_images[:-52])
    assert np.array_equal(split.test_labels, made_up.train_labels[-52:])
    with pytest.raises(ConfigError, match="352 rows held out of 352"):
        held_out(made_up, 352)
