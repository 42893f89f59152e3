"""The training loop and the evaluation; they return what they measured and print nothing.

Images and labels lie on the device as bytes for the whole run, and the host reads nothing back within an epoch, so the
same loop serves CPU and GPU. It takes a model and a recipe; it neither builds the one nor recomputes statistics.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .config import Recipe
from .dataset import Dataset, Tensors, rows_at_once, scale_pixels
from .device import current, exact_convolutions, flushed_denormals
from .epoch import EpochLoop
from .errors import CheckpointError, ConfigError, DivergenceError
from .ranks import ALONE, Ranks
from .schedule import optimizer_for

# 500 keep the activations of a chunk (7 MB after the first convolution) in a CPU's last-level cache; a GPU takes all.
EVALUATION_ROWS = {"cpu": 500, "cuda": 10_000}


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """What one epoch measured.

    Attributes:
        epoch: counted from 1.
        loss: mean cross-entropy over the epoch's rows, each as its step saw it: train mode, weights still moving. This
            is the book's definition, not a pass after the epoch.
        train_accuracy: share of right answers, in the same way.
        test_accuracy: over the test set after the epoch, in evaluation mode with the running statistics; None where
            images are held out: then an epoch is judged by them, and the test set waits for the end.
        train_seconds: time of this epoch's steps, without the evaluation.
        examples_per_second: the book's definition: training rows so far over the time of their steps, without
            evaluation. The book leaves out the loader; here gathering a batch from memory counts in.
        wall_examples_per_second: training rows so far over all time since the start, evaluation included.
        val_accuracy: over the images held out, in the same way; None where there are none.
    """

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float | None
    train_seconds: float
    examples_per_second: float
    wall_examples_per_second: float
    val_accuracy: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return every figure by name, ready for JSON or a row of CSV."""
        return asdict(self)


@dataclass
class History:
    """The records of a run, one for each epoch, in order."""

    epochs: list[EpochRecord] = field(default_factory=list)

    @property
    def last(self) -> EpochRecord:
        """Return the record of the last epoch."""
        return self.epochs[-1]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Where a training stands after an epoch: with the recipe and the data, all that the next epoch depends on.

    Attributes:
        epochs: the records so far.
        seconds: wall clock so far.
        model: state dict of the model.
        optimizer: state dict of the optimizer.
        best: state dict of the model after the epoch that was best by the images held out; None where the last counts.
    """

    epochs: tuple[EpochRecord, ...]
    seconds: float
    model: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    best: Mapping[str, Any] | None = None


def fit(
    model: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    device: torch.device,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    *,
    resumed: Snapshot | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    captures: bool = True,
    compiles: bool = False,
    deterministic: bool = False,
    ranks: Ranks = ALONE,
    dtype: torch.dtype = torch.float32,
) -> History:
    """Train `model` in place and return one record for each epoch; the model ends on `device`, in evaluation mode.

    The same seed, device, version of PyTorch and number of threads give the same weights bit for bit on CPU.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, classes).
        dataset: any number of rows of uint8 images with labels.
        recipe: the hyperparameters.
        device: where data, model and every step live.
        on_epoch: called with each epoch's record as soon as it is measured.
        resumed: where an earlier training with this recipe stood; the epochs after it are as they would have been.
        on_snapshot: called after each epoch, before `on_epoch`, with what `resumed` takes. Its tensors are the live
            ones: copy them to keep them.
        on_step: called after each step, on a GPU when it is queued, with its number of rows.
        captures: on a GPU, whether steps are captured in CUDA graphs, one for each batch size. The CPU has none.
        compiles: whether full batches go through PyTorch's compiler, which rounds otherwise.
        deterministic: on a GPU, whether kernels are those that give the same bits each time, not the fastest.
        ranks: the processes that train together, each calling this with its own copy of everything. They share out
            the rows of every batch and their norms see all of them, so the weights are those of one process but for
            rounding. Steps are not captured then, and records, snapshots and weights are the same on all ranks.
        dtype: of model and arithmetic, float32 or float64; images are scaled to it.

    Raises:
        ConfigError: the last batch of an epoch would hold one row, which norms refuse; or several ranks cannot train
            the model as one process would.
        RankError: another rank ended, or does not answer.
        CheckpointError: `resumed` does not fit the model.
        DeviceError: PyTorch cannot compile here.
        DivergenceError: a loss or a weight was NaN or infinite; the message names epoch and step.
    """
    _require_trainable(model, dataset, recipe, ranks, compiles=compiles)
    model.to(device, dtype)
    data = dataset.on(device)
    optimizer = optimizer_for(model, recipe, device)
    loop = EpochLoop(
        model,
        optimizer,
        data.train_images,
        data.train_labels,
        recipe,
        captures=captures and device.type == "cuda" and ranks.world_size == 1,
        compiles=compiles,
        ranks=ranks,
        dtype=dtype,
    )
    history = History()
    start = time.perf_counter()
    if resumed is not None:
        _restore(model, optimizer, resumed)
        history.epochs.extend(resumed.epochs)
        start -= resumed.seconds
    ranks.copy_from_first([*model.parameters(), *model.buffers()])
    with current(device), flushed_denormals(), exact_convolutions(deterministic=deterministic):
        for number in range(len(history.epochs) + 1, recipe.epochs + 1):
            measured = loop.run(number, on_step)
            record = _record(measured, _judged(model, data, ranks), history, len(data.train_labels), start)
            history.epochs.append(record)
            _require_finite(model, number)
            if on_snapshot is not None:
                on_snapshot(_snapshot(model, optimizer, history, time.perf_counter() - start))
            if on_epoch is not None:
                on_epoch(record)
    model.eval()
    return history


def _require_trainable(model: nn.Module, dataset: Dataset, recipe: Recipe, ranks: Ranks, *, compiles: bool) -> None:
    check_batches(len(dataset.train_labels), recipe)
    check_ranks(recipe, ranks, compiles=compiles)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ConfigError(
            "DistributedDataParallel lets each rank's norms see its own rows alone, which makes another network; give "
            "`fit` the network itself, and `ranks`"
        )


def _record(
    measured: tuple[float, float, float],
    accuracies: tuple[float | None, float | None],
    history: History,
    images: int,
    start: float,
) -> EpochRecord:
    """Return the record of the epoch after those of `history`, in which `images` were trained on."""
    loss, train_accuracy, seconds = measured
    rows = (len(history.epochs) + 1) * images
    return EpochRecord(
        epoch=len(history.epochs) + 1,
        loss=loss,
        train_accuracy=train_accuracy,
        test_accuracy=accuracies[0],
        val_accuracy=accuracies[1],
        train_seconds=seconds,
        examples_per_second=rows / (seconds + sum(earlier.train_seconds for earlier in history.epochs)),
        wall_examples_per_second=rows / (time.perf_counter() - start),
    )


def _judged(model: nn.Module, data: Tensors, ranks: Ranks) -> tuple[float | None, float | None]:
    """Return test and validation accuracy after an epoch: the one where nothing is held out, else the other."""
    if data.val_images is None or data.val_labels is None:
        return evaluate(model, data.test_images, data.test_labels, ranks=ranks), None
    return None, evaluate(model, data.val_images, data.val_labels, ranks=ranks)


def _snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, history: History, seconds: float) -> Snapshot:
    return Snapshot(
        epochs=tuple(history.epochs), seconds=seconds, model=model.state_dict(), optimizer=optimizer.state_dict()
    )


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, snapshot: Snapshot) -> None:
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        model.load_state_dict(snapshot.model)
        optimizer.load_state_dict(dict(snapshot.optimizer))
    except (RuntimeError, ValueError, KeyError) as err:
        raise CheckpointError(f"the checkpoint is of another architecture: {' '.join(str(err).split())}") from err
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)  # the recipe's on this device: the stored ones (capturable, fused, lr) are another device's
    for parameter, state in optimizer.state.items():
        for key, value in state.items():  # PyTorch leaves a counter of steps where it was loaded
            state[key] = value.to(parameter.device) if isinstance(value, Tensor) else value


def _require_finite(model: nn.Module, epoch: int) -> None:
    """Raise DivergenceError when the last step broke weights or running statistics: its own loss was still finite."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (*model.parameters(), *model.buffers())):
        raise DivergenceError(
            f"weights or running statistics were infinite after the last step of epoch {epoch}; lower --lr"
        )


@torch.no_grad()
def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, *, rows: int | None = None, ranks: Ranks = ALONE
) -> float:
    """Return the share of `images` that `model` classifies rightly in evaluation mode; its mode is restored.

    Args:
        model: on the device of the images.
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        rows: images of one forward pass; what suits the device by default.
        ranks: that share the images out; all have to call this, and get the same answer.
    """
    rows, total = rows or rows_at_once(images, EVALUATION_ROWS[images.device.type]), len(labels)
    images, labels = images[ranks.share(total)], labels[ranks.share(total)]
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    was_training = model.training
    model.eval()
    try:
        correct = torch.zeros((), dtype=torch.int64, device=images.device)
        for chunk, expected in zip(torch.split(images, rows), torch.split(labels, rows), strict=True):
            if len(chunk):
                correct += (model(scale_pixels(chunk, dtype)).argmax(1) == expected).sum()
        ranks.sum_in_place([correct])
        return int(correct) / total
    finally:
        model.train(was_training)


def check_batches(rows: int, recipe: Recipe) -> None:
    """Raise ConfigError when `rows` training rows leave a batch of one, which norms refuse."""
    if recipe.norm != "none" and rows % recipe.batch_size == 1:
        raise ConfigError(
            f"--batch-size {recipe.batch_size}: {rows} rows would leave a batch of 1, which norms refuse; "
            "choose another size"
        )


def check_ranks(recipe: Recipe, ranks: Ranks, *, compiles: bool = False) -> None:
    """Raise ConfigError when `ranks` cannot train as one process would."""
    if ranks.world_size == 1:
        return
    if compiles:
        raise ConfigError(
            f"--compile on {ranks.world_size} ranks: PyTorch's compiler does not take norms that ranks share; leave "
            "--compile out, or train in one process"
        )
    if recipe.batch_size < ranks.world_size:
        raise ConfigError(
            f"--batch-size {recipe.batch_size} on {ranks.world_size} ranks: some would have no row of any batch; "
            "start fewer with --nproc-per-node"
        )
