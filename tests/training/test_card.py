"""The model card: its figures are those of the manifest, and its table those of the confusion matrix."""

import numpy as np

from foldserve.training.card import model_card
from foldserve.training.dataset import Dataset

EMPTY = (np.zeros((0, 3, 8, 8), np.uint8), np.zeros(0, np.int64))
DATA = Dataset(*EMPTY, *EMPTY, source="a folder", class_names=("bag", "boot", "coat"))

MANIFEST = {
    "accuracy": {
        "test": 0.75,
        "correct": 9,
        "images": 12,
        "statistics": "population",
        "test_by_statistics": {"running": 0.5, "population": 0.75},
        "train": 0.9,
        "train_loss": 0.25,
    },
    "parity": {"images": 12, "forms": [{"agreeing": 1, "max_error": 1.0}, {"agreeing": 12, "max_error": 2e-7}]},
    "environment": {"cpu": "a CPU", "threads": 2, "gpu": None, "python": "3.11", "packages": {"torch": "2.13"}},
    "training": {"train_images": 60},
}


def test_the_figures_are_those_of_the_manifest() -> None:
    """Accuracy as served, by statistics, and the agreement of the served form stand in the card."""
    counts = np.array([[3, 1, 0], [0, 6, 0], [2, 0, 0]])
    card = model_card("lenet-bn", {"epochs": 10}, MANIFEST, "abc+dirty", counts, DATA)
    assert "0.7500 (9 of 12), with population statistics" in card
    assert "With running statistics: 0.5000" in card
    assert "the same class on 12 of 12 images, logits off by 2.0e-07" in card
    assert "- epochs: 10" in card
    assert "- code: abc+dirty" in card
    assert "| bag | 0.750 | 0.600 | boot (1) |" in card
    assert "| boot | 1.000 | 0.857 | none |" in card
    assert "| coat | 0.000 | none | bag (2) |" in card
