"""Finished runs of `train-and-export` taken into a study, where one of its cases has their recipe.

What the run has written down is taken over, and what a study measures beyond that is measured on its weights; nothing
is trained again.
"""

import copy
import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..dataset import FashionMNIST
from ..device import to_device
from ..errors import CheckpointError, ConfigError
from ..fit import evaluate
from ..run_folder import CONFIG_NAME, METRICS_NAME
from ..weights import WEIGHTS_NAME, read_weights
from .arms import Case
from .measurement import saturated

CPU = torch.device("cpu")


def adopt(folder: Path, cases: Iterable[Case], dataset: FashionMNIST) -> tuple[Case, dict[str, Any]]:
    """Return the case that the run in `folder` is, and its measurement.

    The test accuracy with population statistics is known for the end of the run alone, not for every epoch.

    Raises:
        CheckpointError: the folder holds no finished run.
        ConfigError: no case has its recipe.
    """
    weights = read_weights(folder / WEIGHTS_NAME)
    recipe = weights.recipe
    case = _case_of(recipe.as_dict(), cases, folder)
    config, epochs = _config(folder), _epochs(folder)
    if len(epochs) != recipe.epochs:
        raise CheckpointError(
            f"{folder}: {len(epochs)} of {recipe.epochs} epochs are written down; finish the run first"
        )
    networks = {kind: weights.network(kind).to(CPU) for kind in weights.statistics or ("none",)}
    test_images, test_labels = to_device(dataset.test_images, CPU), to_device(dataset.test_labels, CPU)
    train_images, train_labels = to_device(dataset.train_images, CPU), to_device(dataset.train_labels, CPU)
    kind, served = list(networks.items())[-1]  # population statistics stand last
    untrained = case.arm.build(recipe)
    return case, {
        "arm": case.arm.name,
        "seed": case.seed,
        "network": case.arm.network,
        "train_rows": len(train_labels),
        "recipe": recipe.as_dict(),
        "threads": config["environment"]["threads"],
        "compiled": False,
        "revision": config["revision"],
        "adopted": True,
        "diverged": None,
        "epochs": epochs,
        "test_accuracy": {name: evaluate(network, test_images, test_labels) for name, network in networks.items()},
        "train_accuracy": {kind: evaluate(served, train_images, train_labels)},
        "saturated": {
            "before": saturated(copy.deepcopy(untrained).train(), test_images),
            "after": saturated(served, test_images),
        },
        "seconds": sum(record["train_seconds"] for record in epochs),
    }


def _case_of(recipe: dict[str, Any], cases: Iterable[Case], folder: Path) -> Case:
    for case in cases:
        if case.arm.network == "lenet" and case.arm.train_rows is None and not case.arm.is_selection:
            planned = case.arm.recipe(recipe["seed"]).as_dict() if case.seed == recipe["seed"] else None
            if planned == recipe:
                return case
    raise ConfigError(f"--from-run {folder}: no training of this study has its recipe; leave it out")


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise CheckpointError(f"{folder / CONFIG_NAME} cannot be read ({err}); expected a run's folder") from err
    return config


def _epochs(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.csv as an `EpochRecord` has them."""
    try:
        with (folder / METRICS_NAME).open(newline="", encoding="utf-8") as file:
            return [
                {name: int(value) if name == "epoch" else float(value) for name, value in row.items()}
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError) as err:
        raise CheckpointError(f"{folder / METRICS_NAME} cannot be read ({err}); expected a run's folder") from err
