"""How the preset `best` was chosen: candidates compared on training images held out, never on the test set.

It splits and it lists the candidates; the runner trains them like the cases of any other study.
"""

import dataclasses

from ..dataset import FashionMNIST
from ..errors import ConfigError
from .arms import Arm

HELD_OUT = 5_000
EPOCHS = 5  # enough to rank candidates that all come to rest at the end


def held_out(dataset: FashionMNIST, rows: int = HELD_OUT) -> FashionMNIST:
    """Return `dataset` without its test set: the last `rows` training images take that place.

    Raises:
        ConfigError: nothing would be left to train on.
    """
    if not 0 < rows < len(dataset.train_labels):
        raise ConfigError(f"{rows} rows held out of {len(dataset.train_labels)}: expected at least 1, and some left")
    return dataclasses.replace(
        first_rows(dataset, len(dataset.train_labels) - rows),
        test_images=dataset.train_images[-rows:],
        test_labels=dataset.train_labels[-rows:],
    )


def first_rows(dataset: FashionMNIST, rows: int) -> FashionMNIST:
    """Return `dataset` with the first `rows` training images alone."""
    return dataclasses.replace(
        dataset, train_images=dataset.train_images[:rows], train_labels=dataset.train_labels[:rows]
    )


def _candidate(name: str, **options: object) -> Arm:
    decayed = {"epochs": EPOCHS, "schedule": "linear", "augment": "mirror"}
    return Arm(name=f"select-{name}", options={**decayed, **options}, is_selection=True)


CANDIDATES = (
    _candidate("muon-0.05", optimizer="muon", learning_rate=0.05),
    _candidate("muon-0.02", optimizer="muon", learning_rate=0.02),
    _candidate("adam-0.01", optimizer="adam", learning_rate=0.01),
    _candidate("muon-0.05-not-mirrored", optimizer="muon", learning_rate=0.05, augment="none"),
    _candidate("muon-0.1", optimizer="muon", learning_rate=0.1),
    _candidate("sgd-2", optimizer="sgd", learning_rate=2.0),
    _candidate("muon-0.1-longer", optimizer="muon", learning_rate=0.1, epochs=10),
)
