"""The whole way as two functions of values: a recipe and data become trained weights, these a proved version.

`train` measures and `package` proves; neither prints, reads a flag or writes a file. The command line and the tests put
them together with a run folder before and the artifact after.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from foldserve.format import metadata
from foldserve.format.golden import Golden
from foldserve.format.image import first_format_recipe

from . import golden, model_file
from .config import Recipe
from .dataset import CLASS_NAMES, PIXEL_SCALE, FashionMNIST, scale_pixels
from .errors import GateError
from .fit import EpochRecord, History, Snapshot, evaluate, fit
from .fold import fold, fold_input
from .fold.report import Report
from .model import build, count_parameters
from .parity import Parity, check_parity, oracle_logits, run_model
from .statistics import population_statistics
from .weights import Weights, buffers_of, parameters_of

PROOF_ROWS = 8  # images that the fold proves each site on; verify takes them all


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training gave.

    Attributes:
        network: unfolded, on the CPU, in eval mode, with the statistics that the recipe names.
        weights: the same as tensors, with every set of statistics.
        history: one record for each epoch.
        test_accuracy: kind of statistics -> share of right answers on the test images.
        device: `cpu` or `cuda`.
        seconds: wall clock of training and statistics.
    """

    network: nn.Sequential
    weights: Weights
    history: History
    test_accuracy: Mapping[str, float]
    device: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Package:
    """A proved version, ready for `artifact.publish`.

    Attributes:
        model: content of model.onnx.
        manifest: the manifest but for what publishing adds.
        report: what the fold did.
        parity: what the verification measured.
    """

    model: bytes
    manifest: Mapping[str, Any]
    report: Report
    parity: Parity


def train(
    recipe: Recipe,
    dataset: FashionMNIST,
    device: torch.device,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    *,
    resumed: Snapshot | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    compiles: bool = False,
) -> Trained:
    """Return the network that `recipe` makes of `dataset`, with running and with population statistics.

    `resumed`, `on_snapshot`, `on_step` and `compiles` are those of `fit`.

    Raises:
        DivergenceError: the loss was NaN or infinite.
        ConfigError: recipe and data do not fit together.
    """
    start = time.perf_counter()
    network = build(recipe)
    history = fit(
        network,
        dataset,
        recipe,
        device,
        on_epoch,
        resumed=resumed,
        on_snapshot=on_snapshot,
        on_step=on_step,
        compiles=compiles,
    )
    statistics, accuracy = {}, {}
    if recipe.norm == "none":
        accuracy["none"] = history.last.test_accuracy
    else:
        statistics["running"], accuracy["running"] = buffers_of(network), history.last.test_accuracy
        data = dataset.on(device)
        population_statistics(network, data.train_images, mirrored=recipe.augment == "mirror")
        statistics["population"] = buffers_of(network)
        accuracy["population"] = evaluate(network, data.test_images, data.test_labels)
    weights = Weights(recipe=recipe, parameters=parameters_of(network), statistics=statistics)
    return Trained(
        network=weights.network(recipe.statistics),
        weights=weights,
        history=history,
        test_accuracy=accuracy,
        device=device.type,
        seconds=time.perf_counter() - start + (0.0 if resumed is None else resumed.seconds),
    )


def fold_network(network: nn.Module, images: NDArray[np.uint8]) -> tuple[nn.Module, Report]:
    """Return `network` for pixels in 0..255, without norms, and the report of the fold.

    Args:
        network: eval mode; images in [0, 1] to logits.
        images: uint8 (N, C, H, W), at least 2; the fold's own proof runs on them.

    Raises:
        FoldError: a norm cannot be folded exactly.
    """
    example = (scale_pixels(torch.as_tensor(images)),)
    folded = fold(network, example, strict=True)
    return fold_input(folded, scale=1 / PIXEL_SCALE, example_inputs=example), folded.report


def package(
    trained: Trained, dataset: FashionMNIST, *, revision: str, environment: Mapping[str, Any], created: datetime
) -> Package:
    """Return the folded, exported and verified form of `trained`.

    Raises:
        FoldError, ExportError, VerifyError: a step did not give what it must; there is nothing to publish then.
    """
    channels, height, width = dataset.test_images.shape[1:]
    folded, report = fold_network(trained.network, dataset.test_images[:PROOF_ROWS])
    described = describe(trained.weights.recipe, dataset, revision)
    model = model_file.to_bytes(model_file.export(folded, metadata=described, image_shape=(channels, height, width)))
    oracle = oracle_logits(trained.network, dataset.test_images)
    parity = check_parity(trained.network, folded, model, dataset, algebra=algebra_of(report), oracle=oracle)
    manifest = {
        "created": f"{created:%Y-%m-%dT%H:%M:%SZ}",
        "golden": golden_answers(oracle, model, dataset).as_dict(),
        "accuracy": accuracy_of(trained, parity),
        "parity": parity.as_dict(),
        "fold": report.as_dict(),
        "training": training_of(trained, len(dataset.train_labels)),
        "environment": dict(environment),
    }
    return Package(model=model, manifest=manifest, report=report, parity=parity)


def check_worth(parity: Parity, labels: NDArray[np.int64], min_accuracy: float | None, run: Path) -> None:
    """Raise GateError when the served network is not good enough to go live.

    Args:
        parity: of the served form.
        labels: (N,) of the test images.
        min_accuracy: the least share of right answers; by default three standard deviations of a share of N above what
            always naming the most frequent class gives.
        run: the run's folder, for the message.
    """
    accuracy = parity.served.correct / parity.images
    share = float(np.bincount(labels).max() / len(labels))
    least = share + 3 * math.sqrt(share * (1 - share) / len(labels)) if min_accuracy is None else min_accuracy
    if accuracy < least:
        why = f", since naming one class always gives {share:.4f}" if min_accuracy is None else ""
        raise GateError(
            f"test accuracy {accuracy:.4f}: expected at least {least:.4f}{why}; nothing is published. Train it on with "
            f"--resume {run} --epochs N, or publish it with --resume {run} --min-accuracy 0"
        )


def describe(recipe: Recipe, dataset: FashionMNIST, revision: str) -> dict[str, str]:
    """Return the graph's metadata: what is known of the model wherever it is exported."""
    channels, height, width = dataset.test_images.shape[1:]
    image = first_format_recipe(height, width, channels, input=model_file.INPUT_NAME)
    hyperparameters = recipe.as_dict()
    return metadata.describe(
        labels=CLASS_NAMES,
        image=image,
        seed=hyperparameters.pop("seed"),
        statistics=hyperparameters.pop("statistics"),
        recipe=hyperparameters,
        data=dataset.digests,
        revision=revision,
    )


def algebra_of(report: Report) -> dict[str, float | None]:
    """Return path -> proof error of each folded norm."""
    return {site.path or site.node: site.proof_error for site in report.folded}


def golden_answers(oracle: NDArray[np.float64], model: bytes, dataset: FashionMNIST) -> Golden:
    """Return what goes into the manifest's `golden`, after seeing that `model` gives these answers here.

    Args:
        oracle: (N, classes), logits of the unfolded network in float64 for the test images.
        model: content of model.onnx.
        dataset: its test images are chosen from.

    Raises:
        VerifyError: it does not, or too few examples are clear.
    """
    rows = golden.choose(dataset.test_labels, oracle)
    images = np.ascontiguousarray(dataset.test_images[rows])
    known = Golden({model_file.INPUT_NAME: images}, golden.expected_outputs(oracle[rows]), golden.TOLERANCE)
    golden.check(known, run_model(model, images))
    return known


def accuracy_of(trained: Trained, parity: Parity) -> dict[str, Any]:
    """Return the manifest's `accuracy`: that of the served form, and what the training measured before."""
    return {
        "test": parity.served.correct / parity.images,
        "correct": parity.served.correct,
        "images": parity.images,
        "statistics": trained.weights.recipe.statistics,
        "test_by_statistics": dict(trained.test_accuracy),
        "train": trained.history.last.train_accuracy,
        "train_loss": trained.history.last.loss,
    }


def training_of(trained: Trained, train_images: int) -> dict[str, Any]:
    """Return the manifest's `training`: how it went; the recipe stands in the graph."""
    return {
        "device": trained.device,
        "seconds": round(trained.seconds, 3),
        "parameters": count_parameters(trained.network),
        "train_images": train_images,
        "epochs": [record.as_dict() for record in trained.history.epochs],
    }
