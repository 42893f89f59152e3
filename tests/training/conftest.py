"""Small made-up data that every training test can share; nothing here touches the network or the real data set."""

import functools
import warnings

import numpy as np
import pytest
import torch

from foldserve.training.config import Recipe
from foldserve.training.dataset import FashionMNIST
from foldserve.training.run_folder import RunConfig


def made_up_images(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images whose class is the place of a bright bar, with noise: learnable in a few steps, not trivially."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, rows)
    images = generator.integers(0, 80, (rows, 1, 28, 28))
    for row, label in enumerate(labels):
        images[row, 0, 2 * label + 4 : 2 * label + 8, 4:24] += 150
    return images.astype(np.uint8), labels.astype(np.int64)


def run_config(recipe: Recipe, data: FashionMNIST) -> RunConfig:
    """Return the configuration of a run on `data` with one thread."""
    return RunConfig(
        name="small",
        models_dir="models",
        min_accuracy=None,
        recipe=recipe,
        device="cpu",
        compiled=False,
        data_source=data.source,
        digests=data.digests,
        revision="abc",
        environment={"threads": 1},
    )


def made_up_data(rows: int) -> FashionMNIST:
    """Return a data set of `rows` training rows and 100 test rows."""
    return FashionMNIST(*made_up_images(rows, seed=1), *made_up_images(100, seed=2), source="made up")


@pytest.fixture(scope="session")
def made_up() -> FashionMNIST:
    """A data set of 352 training rows (5 batches of 64 and a tail of 32) and 100 test rows."""
    return made_up_data(352)


@pytest.fixture(scope="session", autouse=True)
def _operations_are_read_once():
    """PyTorch's exporter reads all of its operations for each export, which takes longer than most of our networks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecations, on the first import
        from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in a fixed order, and no fight for cores between parallel test workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
