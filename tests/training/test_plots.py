"""The pictures of a run: the counts behind them are right, and what is written is a picture of that size."""

import io

import numpy as np
import pytest
from PIL import Image

from foldserve.training.fit import EpochRecord
from foldserve.training.plots import confusion, confusion_png, curves_png


def record(epoch: int) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        loss=1 / epoch,
        train_accuracy=0.8,
        test_accuracy=0.7,
        train_seconds=1.0,
        examples_per_second=10.0,
        wall_examples_per_second=9.0,
    )


def test_pairs_are_counted_with_the_true_class_in_the_row() -> None:
    """The same counts as one by one, classes that never occur included."""
    generator = np.random.default_rng(0)
    labels, named = generator.integers(0, 4, (2, 200))
    expected = np.zeros((5, 5), np.int64)
    for true, found in zip(labels, named, strict=True):
        expected[true, found] += 1
    np.testing.assert_array_equal(confusion(labels, named, 5), expected)


def test_both_pictures_are_png_files() -> None:
    """They open as pictures, also for a run of a single epoch and for a class without images."""
    for content in (
        curves_png([record(1)]),
        curves_png([record(1), record(2)]),
        confusion_png(np.eye(3, dtype=int), "abc"),
    ):
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == "PNG"
            assert min(image.size) > 300
    assert confusion_png(np.zeros((3, 3), np.int64), "abc")


@pytest.mark.parametrize("name", ["$x_{", r"a\frac$$", "日本", "x" * 300])
def test_a_class_may_have_any_name(name):
    """A formula that is none ends no run after its training, and a script without a font is no warning."""
    assert confusion_png(np.eye(2, dtype=np.int64), [name, "other"]).startswith(b"\x89PNG")


def test_a_thousand_classes_are_drawn_without_their_names(monkeypatch):
    """Each number is laid out by itself: a million of them would take hours."""
    monkeypatch.setattr("matplotlib.axes.Axes.text", None)
    assert confusion_png(np.ones((1000, 1000), np.int64), [str(number) for number in range(1000)]).startswith(
        b"\x89PNG"
    )
