"""The whole way as two functions of values: a recipe and data become trained weights, these a proved version.

`train` measures and `package` proves; neither prints, reads a flag or writes a file. The command line and the tests put
them together with a run folder before and the artifact after.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from foldserve.format import metadata
from foldserve.format.golden import Golden
from foldserve.format.golden_files import GoldenFile
from foldserve.pictures import decode
from foldserve.pictures.golden_files import pack

from . import artifact, golden, model_file
from .config import Recipe
from .dataset import PIXEL_SCALE, Dataset, scale_pixels
from .errors import ArtifactError, ConfigError, DatasetError, GateError, VerifyError
from .fit import EpochRecord, History, Snapshot, evaluate, fit
from .fold import fold, fold_input
from .fold.report import Report
from .model import build, count_parameters
from .parity import Parity, check_parity, oracle_logits, run_model
from .promotion import Change, compare
from .ranks import ALONE, Ranks
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
        val_accuracy: the same on the images held out; empty where there are none.
        epoch: whose weights they are, counted from 1.
        device: `cpu` or `cuda`.
        seconds: wall clock of training and statistics.
    """

    network: nn.Module
    weights: Weights
    history: History
    test_accuracy: Mapping[str, float]
    val_accuracy: Mapping[str, float]
    epoch: int
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
        notes: what people should know of the golden answers.
    """

    model: bytes
    manifest: Mapping[str, Any]
    report: Report
    parity: Parity
    notes: tuple[str, ...] = ()


def train(
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    *,
    resumed: Snapshot | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    compiles: bool = False,
    initial: Mapping[str, torch.Tensor] | None = None,
    ranks: Ranks = ALONE,
) -> Trained:
    """Return the network that `recipe` makes of `dataset`, with running and with population statistics.

    `resumed`, `on_snapshot`, `on_step`, `compiles` and `ranks` are those of `fit`; `initial` are entries of the state
    dict to start from, the others are drawn by the seed. Of several ranks, the first one's count.

    Raises:
        DivergenceError: the loss was NaN or infinite.
        RankError: another rank ended, or does not answer.
        ConfigError: recipe and data do not fit together.
    """
    start = time.perf_counter()
    network = build(recipe, dataset.interface)
    network.load_state_dict(dict(initial or {}), strict=False)
    kept = KeptEpoch(recipe, None if resumed is None else resumed.best, on_snapshot)
    history = fit(
        network,
        dataset,
        recipe,
        device,
        on_epoch,
        resumed=resumed,
        on_snapshot=kept.on_snapshot,
        on_step=on_step,
        compiles=compiles,
        ranks=ranks,
    )
    if kept.best is not None:
        network.load_state_dict(kept.best)
    data = dataset.on(device)
    statistics: dict[str, Mapping[str, torch.Tensor]] = {}
    accuracy, val_accuracy = {}, {}
    judge = functools.partial(evaluate, network, ranks=ranks)
    for kind in ("none",) if recipe.norm == "none" else ("running", "population"):
        if kind == "population":
            population_statistics(network, data.train_images, mirrored=recipe.augment == "mirror", ranks=ranks)
        if kind != "none":
            statistics[kind] = buffers_of(network)
        measured = None if kind == "population" else history.last.test_accuracy
        accuracy[kind] = judge(data.test_images, data.test_labels) if measured is None else measured
        if data.val_images is not None and data.val_labels is not None:
            val_accuracy[kind] = judge(data.val_images, data.val_labels)
    recipe = replace(recipe, statistics=exported_statistics(recipe, val_accuracy))
    weights = Weights(
        recipe=recipe, parameters=parameters_of(network), statistics=statistics, interface=dataset.interface
    )
    return Trained(
        network=weights.network(recipe.statistics),
        weights=weights,
        history=history,
        test_accuracy=accuracy,
        val_accuracy=val_accuracy,
        epoch=kept_epoch(recipe, history.epochs),
        device=device.type,
        seconds=time.perf_counter() - start + (0.0 if resumed is None else resumed.seconds),
    )


def exported_statistics(recipe: Recipe, val_accuracy: Mapping[str, float]) -> str:
    """Return the kind of statistics that is exported: the recipe's, or the better one by the images held out.

    Args:
        recipe: that was trained.
        val_accuracy: kind -> share of right answers on the images held out; empty where there are none.
    """
    if recipe.statistics != "best":
        return recipe.statistics
    return max(("population", "running"), key=lambda kind: val_accuracy.get(kind, 0.0))  # the first of equal ones


class KeptEpoch:
    """Keeps the weights of the best epoch, where the recipe says so, and hands each snapshot on with them.

    Args:
        recipe: says which epoch counts.
        best: state dict of the best epoch so far, of a training that is resumed.
        on_snapshot: gets each snapshot.

    Raises:
        ConfigError: the best epoch is wanted, and nothing is held out to judge it by.
    """

    def __init__(
        self, recipe: Recipe, best: Mapping[str, Any] | None, on_snapshot: Callable[[Snapshot], None] | None
    ) -> None:
        self.recipe = recipe
        self.best = best
        self.hand_on = on_snapshot

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a copy of the weights when the last epoch is the best one."""
        if self.recipe.keep == "best":
            if kept_epoch(self.recipe, snapshot.epochs) == len(snapshot.epochs):
                self.best = {name: tensor.detach().cpu().clone() for name, tensor in snapshot.model.items()}
            snapshot = replace(snapshot, best=self.best)
        if self.hand_on is not None:
            self.hand_on(snapshot)


def kept_epoch(recipe: Recipe, epochs: Sequence[EpochRecord]) -> int:
    """Return the epoch whose weights count: the last, or the best by the images held out, the later of equal ones.

    Raises:
        ConfigError: the best one is wanted, and nothing was held out.
    """
    if recipe.keep == "last":
        return epochs[-1].epoch
    if epochs[-1].val_accuracy is None:
        raise ConfigError("--keep best: no images are held out to judge an epoch by; give --val FOLDER or --val 0.1")
    return max(epochs, key=lambda record: (record.val_accuracy or 0.0, record.epoch)).epoch


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
    trained: Trained,
    dataset: Dataset,
    *,
    revision: str,
    environment: Mapping[str, Any],
    created: datetime,
    split: Mapping[str, Any] | None = None,
) -> Package:
    """Return the folded, exported and verified form of `trained`; `split` says what was held out of one's own data.

    Raises:
        FoldError, ExportError, VerifyError: a step did not give what it must; there is nothing to publish then.
    """
    channels, height, width = dataset.test_images.shape[1:]
    folded, report = fold_network(trained.network, dataset.test_images[:PROOF_ROWS])
    described = describe(trained.weights.recipe, dataset, revision)
    model = model_file.to_bytes(model_file.export(folded, metadata=described, image_shape=(channels, height, width)))
    oracle = oracle_logits(trained.network, dataset.test_images)
    parity = check_parity(trained.network, folded, model, dataset, algebra=algebra_of(report), oracle=oracle)
    known, notes = golden_answers(oracle, model, dataset, trained.network)
    manifest = {
        "created": f"{created:%Y-%m-%dT%H:%M:%SZ}",
        "golden": known.as_dict(),
        "accuracy": accuracy_of(trained, parity) | held_out_accuracy(model, dataset, trained.val_accuracy),
        "parity": parity.as_dict(),
        "fold": report.as_dict(),
        "training": training_of(trained, len(dataset.train_labels), split),
        "environment": dict(environment),
    }
    return Package(model=model, manifest=manifest, report=report, parity=parity, notes=notes)


def check_worth(manifest: Mapping[str, Any], dataset: Dataset, min_accuracy: float | None, run: Path) -> None:
    """Raise GateError when the served network is not good enough to go live.

    It is judged by the images held out, by the test images where there are none.

    Args:
        manifest: of the version.
        dataset: that it was trained on.
        min_accuracy: the least share of right answers; by default three standard deviations of a share of N above what
            always naming the most frequent class gives, or all N where that is more.
        run: the run's folder, for the message.
    """
    part = "test" if dataset.val_labels is None else "val"
    labels = dataset.test_labels if dataset.val_labels is None else dataset.val_labels
    accuracy = manifest["accuracy"][part]
    share = float(np.bincount(labels).max() / len(labels))
    least = min(1.0, share + 3 * math.sqrt(share * (1 - share) / len(labels)))
    why = f", since naming one class always gives {share:.4f}" if min_accuracy is None else ""
    least = least if min_accuracy is None else min_accuracy
    if accuracy < least:
        name = "test" if part == "test" else "validation"
        raise GateError(
            f"{name} accuracy {accuracy:.4f}: expected at least {least:.4f}{why}; nothing is published. Train it on "
            f"with --resume {run} --epochs N, or publish it with --resume {run} --min-accuracy 0"
        )


def change_since_newest(folder: Path, model: bytes, dataset: Dataset) -> Change | None:
    """Return how `model` compares with the newest promoted version in `folder` that was trained on the same data.

    Args:
        folder: of the model.
        model: content of the new model.onnx.
        dataset: both answer its test images.
    """
    version = artifact.newest_promoted(folder)
    if version is None:
        return None
    try:
        older, _ = artifact.read(version)
        graph = onnx.ModelProto.FromString(older)
        stated = {entry.key: entry.value for entry in graph.metadata_props}
        if stated.get(metadata.DATA) != metadata.canonical_json(dataset.digests):
            return None
        before, after = (run_model(content, dataset.test_images)["class_id"][:, 0] for content in (older, model))
    except (ArtifactError, VerifyError, KeyError):  # what cannot be asked is no measure
        return None
    return compare(int(version.name), before == dataset.test_labels, after == dataset.test_labels)


def describe(recipe: Recipe, dataset: Dataset, revision: str) -> dict[str, str]:
    """Return the graph's metadata: what is known of the model wherever it is exported."""
    hyperparameters = recipe.as_dict()
    return metadata.describe(
        labels=dataset.class_names,
        image=dataset.picture,
        seed=hyperparameters.pop("seed"),
        statistics=hyperparameters.pop("statistics"),
        recipe=hyperparameters,
        data=dataset.digests,
        revision=revision,
    )


def algebra_of(report: Report) -> dict[str, float | None]:
    """Return path -> proof error of each folded norm."""
    return {site.path or site.node: site.proof_error for site in report.folded}


def golden_answers(
    oracle: NDArray[np.float64], model: bytes, dataset: Dataset, network: nn.Module
) -> tuple[Golden, tuple[str, ...]]:
    """Return what goes into the manifest's `golden`, after seeing that `model` gives these answers here, and notes.

    Where the test images are files, so are the questions: a start then proves decoding and recipe with the graph. Where
    no image has a clear class, the answers are scores alone.

    Args:
        oracle: (N, classes), logits of the unfolded network in float64 for the test images.
        model: content of model.onnx.
        dataset: its test images are chosen from.
        network: the unfolded one, for pictures that are kept at the model's size and so have other pixels.

    Raises:
        VerifyError: it does not.
    """
    most = golden.MOST_BYTES // math.prod(dataset.test_images.shape[1:])
    rows = golden.choose(dataset.test_labels, oracle, max(1, min(golden.ROWS, most)))
    files: tuple[GoldenFile, ...] = ()
    images = np.ascontiguousarray(dataset.test_images[rows])
    logits = oracle[rows]
    if dataset.test_files:
        files = pack([(f"test picture {row}", _content(dataset.test_files[row])) for row in rows], dataset.picture)
        images = np.stack([decode(file.content, dataset.picture) for file in files])
        logits = oracle_logits(network, images)
    outputs = golden.expected_outputs(logits)
    clear = np.flatnonzero(golden.are_clear(logits))
    if clear.size:
        images, outputs = images[clear], {name: values[clear] for name, values in outputs.items()}
        files = tuple(files[row] for row in clear) if files else ()
    else:
        del outputs["class_id"]
    known = Golden({model_file.INPUT_NAME: images}, outputs, golden.TOLERANCE)
    golden.check(known, run_model(model, images))
    notes = _golden_notes(golden.unclear_classes(dataset.test_labels, oracle), bool(clear.size), dataset.class_names)
    return replace(known, inputs={}, files=files) if files else known, notes


def _golden_notes(unclear: NDArray[np.int64], is_any_clear: bool, names: Sequence[str]) -> tuple[str, ...]:
    if not is_any_clear:
        return ("no test image has a clear class: the golden answers hold scores and no classes",)
    if not unclear.size:
        return ()
    listed = ", ".join(names[number] for number in unclear[:20]) + (", ..." if unclear.size > 20 else "")
    of = f"{unclear.size} of {len(names)} classes"
    return (f"no golden answer for {of}, of which no test image has a clear answer: {listed}",)


def _content(picture: Path) -> bytes:
    """Return a picture that could be read when the training began.

    Raises:
        DatasetError: it has gone meanwhile.
    """
    try:
        return picture.read_bytes()
    except OSError as err:
        raise DatasetError(
            f"{picture}: cannot be read any more ({err.strerror or err}); put it back, and publish with --resume"
        ) from err


def accuracy_of(trained: Trained, parity: Parity) -> dict[str, Any]:
    """Return the manifest's `accuracy`: that of the served form, and what the training measured before."""
    return {
        "test": parity.served.correct / parity.images,
        "correct": parity.served.correct,
        "images": parity.images,
        "statistics": trained.weights.recipe.statistics,
        "test_by_statistics": dict(trained.test_accuracy),
        "train": trained.history.epochs[trained.epoch - 1].train_accuracy,
        "train_loss": trained.history.epochs[trained.epoch - 1].loss,
    }


def held_out_accuracy(model: bytes, dataset: Dataset, by_statistics: Mapping[str, float]) -> dict[str, Any]:
    """Return the manifest's entries on the images held out, of the served form; nothing where there are none."""
    if dataset.val_images is None:
        return {}
    predicted = run_model(model, dataset.val_images)["class_id"][:, 0]
    return {
        "val": float((predicted == dataset.val_labels).mean()),
        "val_images": len(predicted),
        "val_by_statistics": dict(by_statistics),
    }


def training_of(trained: Trained, train_images: int, split: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the manifest's `training`: how it went, and what was held out of data of one's own."""
    return {
        **({} if split is None else {"split": dict(split)}),
        "device": trained.device,
        "seconds": round(trained.seconds, 3),
        "parameters": count_parameters(trained.network),
        "train_images": train_images,
        "epochs": [record.as_dict() for record in trained.history.epochs],
    }
