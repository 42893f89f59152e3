"""Rows with their true classes beside them: accuracy, comparison and promotion as for folders of pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foldserve import publish
from foldserve.training.errors import ConfigError, GateError

NAMES = ["low", "middle", "high"]
ROWS = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()


with torch.no_grad():
    RIGHT = network()(torch.from_numpy(ROWS)).argmax(1).numpy()


def as_csv(folder: Path) -> Path:
    """Names in a column of their own, in the middle."""
    lines = [f"{a},{b},{NAMES[c]},{d},{e}" for (a, b, d, e), c in zip(ROWS.tolist(), RIGHT, strict=True)]
    (folder / "rows.csv").write_text("\n".join(["width,height,label,weight,age", *lines]))
    return folder / "rows.csv"


def as_npz(folder: Path) -> Path:
    np.savez(folder / "rows.npz", input=ROWS, label=RIGHT)
    return folder / "rows.npz"


@pytest.mark.parametrize("given", [as_csv, as_npz, lambda _: {"input": ROWS, "label": RIGHT}])
def test_classes_beside_the_rows_are_counted(given: Any, tmp_path: Path) -> None:
    """All are right, by names or numbers; the columns that are kept are those of the inputs."""
    published = publish(network(), name="table", labels=NAMES, examples=given(tmp_path), models_dir=tmp_path / "m")
    assert published.manifest["accuracy"]["correct"] == len(ROWS)
    assert published.manifest["accuracy"]["images"] == len(ROWS)
    model = (tmp_path / "m/table/1/model.onnx").read_bytes()
    assert (b'["width","height","weight","age"]' in model) == (given is as_csv)


def test_a_worse_network_for_rows_waits_for_its_promotion(tmp_path: Path) -> None:
    """The older version answers the same rows, and McNemar's test decides."""
    to = {"name": "table", "labels": NAMES, "examples": as_csv(tmp_path), "models_dir": tmp_path / "m"}
    publish(network(), **to)
    worse = publish(network(seed=5), **to)
    assert worse.manifest["promotion"]["promoted"] is False
    assert "McNemar" in str(worse)
    with pytest.raises(GateError, match=r"expected at least 0\.99"):
        publish(network(seed=5), min_accuracy=0.99, **to)


@pytest.mark.parametrize(
    ("label", "labels", "message"),
    [
        (RIGHT[:-1], NAMES, "shape .59,. for 60 rows"),
        (np.full(60, 3), NAMES, "row 0 is 3, expected one of low, middle, high, or its number"),
        (np.full(60, "lofty"), NAMES, "row 0 is lofty, expected one of low"),
        (np.full(60, "low"), None, "row 0 is low, expected a number; --labels gives names"),
        (np.full(60, 0.5), None, "row 0 is 0.5, expected a number"),
    ],
)
def test_classes_that_are_none_are_named(label: np.ndarray, labels: Any, message: str, tmp_path: Path) -> None:
    """Which row, what stands there, what was expected."""
    given = {"input": ROWS, "label": label}
    with pytest.raises(ConfigError, match=message):
        publish(network(), name="table", task="classify", labels=labels, examples=given, models_dir=tmp_path)


def test_a_label_that_is_a_number_to_predict_is_no_class(tmp_path: Path) -> None:
    """For other tasks the column is left out, and says nothing."""
    given = {"input": ROWS, "label": np.linspace(0, 1, 60)}
    published = publish(network(), name="table", task="regress", examples=given, models_dir=tmp_path, dry_run=True)
    assert "accuracy" not in published.manifest
