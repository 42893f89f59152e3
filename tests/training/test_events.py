"""TensorBoard's own reader finds the figures of a run; where the package is not installed there is nothing to find."""

import pytest

from foldserve.training.events import FOLDER_NAME, Events
from tests.training.test_run_folder import record

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def test_every_figure_of_every_epoch_can_be_read_and_a_resumed_run_replaces_its_own(tmp_path):
    """Told of epochs 1 and 2, then resumed at 2: each epoch stands there once, with all its figures."""
    first = Events(tmp_path)
    for epoch in (1, 2):
        first.append(record(epoch))
    Events(tmp_path, first_epoch=2).append(record(2))
    found = accumulator.EventAccumulator(str(tmp_path / FOLDER_NAME))
    found.Reload()
    assert set(found.Tags()["scalars"]) == set(record(1).as_dict()) - {"epoch", "val_accuracy"}
    for name in found.Tags()["scalars"]:
        expected = record(1).as_dict()[name]
        assert [(event.step, event.value) for event in found.Scalars(name)] == [
            (epoch, pytest.approx(expected)) for epoch in (1, 2)
        ]
