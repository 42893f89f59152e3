"""Finished runs of `train-and-export` taken into a study, where one of its cases has their recipe.

The run's figures are kept, and what a study measures beyond them is measured on its weights; nothing is trained again.
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..dataset import FashionMNIST
from ..errors import CheckpointError, ConfigError
from ..run_folder import CONFIG_NAME, METRICS_NAME, RunConfig
from ..weights import WEIGHTS_NAME, read_weights
from .arms import Case
from .measurement import accuracies, saturated

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
    config, epochs = RunConfig.read(folder / CONFIG_NAME), _epochs(folder)
    if len(epochs) != recipe.epochs:
        raise CheckpointError(f"{folder}: {len(epochs)} of {recipe.epochs} epochs are recorded; finish the run first")
    data = dataset.on(CPU)
    network = weights.network("running" if weights.statistics else "none")
    before = saturated(case.arm.build(recipe).train(), data.test_images)
    return case, {
        "arm": case.arm.name,
        "seed": case.seed,
        "network": case.arm.network,
        "train_rows": len(data.train_labels),
        "recipe": recipe.as_dict(),
        "threads": config.environment["threads"],
        "compiled": config.compiled,
        "adopted": True,
        "origin": {
            "command": "foldserve train",
            "revision": config.revision,
            "environment": config.environment,
        },
        "diverged": None,
        "epochs": epochs,
        **accuracies(network, data, mirrored=recipe.augment == "mirror"),
        "saturated": {"before": before, "after": saturated(network, data.test_images)},
        "seconds": sum(record["train_seconds"] for record in epochs),
    }


def _case_of(recipe: dict[str, Any], cases: Iterable[Case], folder: Path) -> Case:
    for case in cases:
        if case.arm.network == "lenet" and case.arm.train_rows is None and not case.arm.is_selection:
            planned = case.arm.recipe(recipe["seed"]).as_dict() if case.seed == recipe["seed"] else None
            if planned == recipe:
                return case
    raise ConfigError(f"--from-run {folder}: no training of this study has its recipe; leave it out")


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
