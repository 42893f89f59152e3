"""The training loop and the evaluation; they return what they measured and print nothing.

Images and labels lie on the device as bytes for the whole run, and the host reads nothing back within an epoch, so the
same loop serves CPU and GPU. It takes a model and a recipe; it neither builds the one nor recomputes statistics.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .augment import epoch_mirrored, mirror
from .capture import capture
from .compiled import compiled
from .config import Recipe
from .dataset import FashionMNIST, scale_pixels
from .device import exact_convolutions, flushed_denormals, resolve_device, synchronize, to_device
from .errors import CheckpointError, ConfigError, DivergenceError
from .fused import fused
from .schedule import learning_rate, optimizer_for, set_learning_rate
from .worker_threads import WorkerThreads

# Whoever trains chooses a device first, so its two functions are offered here too.
__all__ = ["EpochRecord", "History", "epoch_order", "evaluate", "fit", "resolve_device", "to_device"]

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
        test_accuracy: over the test set after the epoch, in evaluation mode with the running statistics.
        train_seconds: time of this epoch's steps, without the evaluation.
        examples_per_second: the book's definition: training rows so far over the time of their steps, without
            evaluation. The book leaves out the loader; here gathering a batch from memory counts in.
        wall_examples_per_second: training rows so far over all time since the start, evaluation included.
    """

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float
    train_seconds: float
    examples_per_second: float
    wall_examples_per_second: float

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
    """

    epochs: tuple[EpochRecord, ...]
    seconds: float
    model: Mapping[str, Any]
    optimizer: Mapping[str, Any]


def fit(
    model: nn.Module,
    dataset: FashionMNIST,
    recipe: Recipe,
    device: torch.device,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    *,
    resumed: Snapshot | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    captures: bool = True,
    compiles: bool = False,
) -> History:
    """Train `model` in place and return one record for each epoch; the model ends on `device`, in evaluation mode.

    The same seed, device, version of PyTorch and number of threads give the same weights bit for bit on CPU.

    Args:
        model: images (N, 1, 28, 28) in [0, 1] to logits (N, classes).
        dataset: any number of rows of uint8 images with labels.
        recipe: the hyperparameters.
        device: where data, model and every step live.
        on_epoch: called with each epoch's record as soon as it is measured.
        resumed: where an earlier training with this recipe stood; the epochs after it follow as they would have there.
        on_snapshot: called after each epoch, before `on_epoch`, with what `resumed` takes. Its tensors are the live
            ones: whoever keeps them copies them.
        captures: on a GPU, whether steps are captured in CUDA graphs, one for each batch size. The CPU has none.
        compiles: whether full batches go through PyTorch's compiler, which rounds otherwise.

    Raises:
        ConfigError: the last batch of an epoch would hold one row, which norms refuse.
        CheckpointError: `resumed` does not fit the model.
        DeviceError: PyTorch cannot compile here.
        DivergenceError: a loss or a weight was NaN or infinite; the message names epoch and step.
    """
    _check_remainder(len(dataset.train_labels), recipe)
    model.to(device)
    images, labels = to_device(dataset.train_images, device), to_device(dataset.train_labels, device)
    test_images, test_labels = to_device(dataset.test_images, device), to_device(dataset.test_labels, device)
    optimizer = optimizer_for(model, recipe, device)
    captures = captures and device.type == "cuda"
    epoch_of = Epoch(model, optimizer, images, labels, recipe, captures=captures, compiles=compiles)
    history = History()
    if resumed is not None:
        _restore(model, optimizer, resumed)
        history.epochs.extend(resumed.epochs)
    with flushed_denormals(), exact_convolutions():
        train_seconds = sum(record.train_seconds for record in history.epochs)
        start = time.perf_counter() - (0.0 if resumed is None else resumed.seconds)
        for number in range(len(history.epochs) + 1, recipe.epochs + 1):
            loss, accuracy, seconds = epoch_of.run(number)
            train_seconds += seconds
            test_accuracy = evaluate(model, test_images, test_labels)
            record = EpochRecord(
                epoch=number,
                loss=loss,
                train_accuracy=accuracy,
                test_accuracy=test_accuracy,
                train_seconds=seconds,
                examples_per_second=number * len(labels) / train_seconds,
                wall_examples_per_second=number * len(labels) / (time.perf_counter() - start),
            )
            history.epochs.append(record)
            _require_finite(model, number)
            if on_snapshot is not None:
                on_snapshot(_snapshot(model, optimizer, history, time.perf_counter() - start))
            if on_epoch is not None:
                on_epoch(record)
    model.eval()
    return history


def _snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, history: History, seconds: float) -> Snapshot:
    return Snapshot(
        epochs=tuple(history.epochs), seconds=seconds, model=model.state_dict(), optimizer=optimizer.state_dict()
    )


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, snapshot: Snapshot) -> None:
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        model.load_state_dict(snapshot.model)
        optimizer.load_state_dict(dict(snapshot.optimizer))
    except (RuntimeError, ValueError, KeyError) as err:
        raise CheckpointError(f"the checkpoint is of another architecture: {' '.join(str(err).split())}") from err
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate  # the recipe's, on the device: the stored one came back as a tensor on the CPU
    for parameter, state in optimizer.state.items():
        for key, value in state.items():  # PyTorch leaves a counter of steps where it was loaded
            state[key] = value.to(parameter.device) if isinstance(value, Tensor) else value


def _require_finite(model: nn.Module, epoch: int) -> None:
    """Raise DivergenceError when the last step broke the weights: its own loss was still finite."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise DivergenceError(f"the weights became infinite in the last step of epoch {epoch}; lower --lr")


class Ledger:
    """Where an epoch stands, on the device: the order of its rows, the next row, and each step's loss and hits.

    With the augmentation `mirror` it also says of each row, by its number in the data, whether it is mirrored.
    """

    def __init__(self, rows: int, steps: int, device: torch.device, *, is_mirroring: bool = False) -> None:
        self.order = torch.empty(rows, dtype=torch.int64, device=device)
        self.mirrored = torch.empty(rows, dtype=torch.bool, device=device) if is_mirroring else None
        self.row = torch.zeros((), dtype=torch.int64, device=device)  # where the next batch starts in `order`
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.losses = torch.empty(steps, dtype=torch.float32, device=device)  # mean of each step
        self.hits = torch.empty(steps, dtype=torch.int64, device=device)

    def restart(self, seed: int, epoch: int) -> None:
        """Begin `epoch` (from 1) with an order of its own."""
        rows = len(self.order)
        self.order.copy_(epoch_order(rows, seed, epoch))
        if self.mirrored is not None:
            self.mirrored.copy_(epoch_mirrored(rows, seed, epoch))
        self.rewind()

    def rewind(self) -> None:
        """Go back to the first row and the first step."""
        self.row.zero_()
        self.step.zero_()


class Step:
    """One update of the weights on the next `rows` rows of the ledger.

    It takes no argument and returns nothing: every value it reads or leaves lies in tensors that stay where they are,
    so that a CUDA graph can capture the call as it stands, one graph for each batch size.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        labels: Tensor,
        ledger: Ledger,
        rows: int,
    ) -> None:
        self.forward = forward
        self.optimizer = optimizer
        self.images = images
        self.labels = labels
        self.ledger = ledger
        self.offsets = torch.arange(rows, device=images.device)

    def __call__(self) -> None:
        """Read the next rows, update the weights, write down loss and hits."""
        ledger = self.ledger
        picked = ledger.order.index_select(0, ledger.row + self.offsets)  # (rows,)
        labels = self.labels.index_select(0, picked)
        images = self.images.index_select(0, picked)
        if ledger.mirrored is not None:
            images = mirror(images, ledger.mirrored.index_select(0, picked))
        logits: Tensor = self.forward(scale_pixels(images))
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            ledger.losses.index_copy_(0, ledger.step, loss.detach().view(1))
            ledger.hits.index_copy_(0, ledger.step, (logits.argmax(1) == labels).sum().view(1))
            ledger.row.add_(len(self.offsets))
            ledger.step.add_(1)


class Epoch:
    """Passes over the training set in a fresh order: full batches, and one step with the remainder if there is one."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        labels: Tensor,
        recipe: Recipe,
        *,
        captures: bool = False,
        compiles: bool = False,
    ) -> None:
        full, remainder = divmod(len(labels), recipe.batch_size)
        tail = [remainder] if remainder else []
        batches = [recipe.batch_size] * full
        self.sizes = tail + batches if recipe.tail == "first" else batches + tail
        self.model = model
        self.recipe = recipe
        self.ledger = Ledger(len(labels), len(self.sizes), images.device, is_mirroring=recipe.augment == "mirror")
        self.optimizer = optimizer
        self.captures = captures
        forward, self.threads = _forward(model, images.device, compiles)
        forwards = dict.fromkeys(self.sizes, forward) | ({recipe.batch_size: compiled(model)} if compiles else {})
        self.steps: dict[int, Callable[[], None]] = {
            rows: Step(forwards[rows], optimizer, images, labels, self.ledger, rows)
            for rows in dict.fromkeys(self.sizes)
        }

    def prepare(self) -> None:
        """Capture each kind of step, once, where that is wanted; the ledger must hold an order of rows by then."""
        if self.captures:
            rewind = self.ledger.rewind
            graphs = {rows: capture(step, rewind, self.model, self.optimizer) for rows, step in self.steps.items()}
            self.steps = {rows: graph.replay for rows, graph in graphs.items()}
            self.captures = False

    def run(self, number: int) -> tuple[float, float, float]:
        """Train epoch `number` (from 1) and return mean loss, accuracy and the seconds of its steps.

        Raises:
            DivergenceError: a step's loss is not finite.
        """
        self.model.train()
        self.ledger.restart(self.recipe.seed, number)
        self.prepare()
        synchronize(self.ledger.order.device)
        start = time.perf_counter()
        with self.threads.open():
            for at, rows in enumerate(self.sizes, start=(number - 1) * len(self.sizes)):
                set_learning_rate(self.optimizer, learning_rate(self.recipe, at, self.recipe.epochs * len(self.sizes)))
                self.steps[rows]()
        synchronize(self.ledger.order.device)
        seconds = time.perf_counter() - start
        losses = self.ledger.losses.tolist()  # the one read of the epoch
        for step, loss in enumerate(losses, start=1):
            if not math.isfinite(loss):
                raise DivergenceError(
                    f"the loss became {loss} in epoch {number} at step {step} of {len(losses)}; lower --lr"
                )
        mean = sum(loss * rows for loss, rows in zip(losses, self.sizes, strict=True)) / sum(self.sizes)
        return mean, int(self.ledger.hits.sum()) / sum(self.sizes), seconds


def _forward(
    model: nn.Module, device: torch.device, compiles: bool
) -> tuple[Callable[[Tensor], Tensor], WorkerThreads]:
    """Return what computes `model(x)` in a step, and the threads that share it out.

    What PyTorch computes layer by layer, or compiles, keeps the threads that PyTorch shares out itself.
    """
    threads = WorkerThreads()
    forward = fused(model, threads) if device.type == "cpu" and not compiles else model
    return forward, WorkerThreads(1) if forward is model else threads


def epoch_order(rows: int, seed: int, epoch: int) -> Tensor:
    """Return an epoch's permutation, (rows,) int64; seed and epoch alone decide it, so a resumed run finds it again."""
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.randperm(rows, generator=torch.Generator().manual_seed(int(mixed >> np.uint64(1))))


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, *, rows: int | None = None) -> float:
    """Return the share of `images` that `model` classifies rightly in evaluation mode; its mode is restored.

    Args:
        model: on the device of the images.
        images: (N, 1, 28, 28) uint8.
        labels: (N,) int64.
        rows: images of one forward pass; what suits the device by default.
    """
    rows = rows or EVALUATION_ROWS[images.device.type]
    was_training = model.training
    model.eval()
    try:
        hits = torch.zeros((), dtype=torch.int64, device=images.device)
        for chunk, expected in zip(torch.split(images, rows), torch.split(labels, rows), strict=True):
            hits += (model(scale_pixels(chunk)).argmax(1) == expected).sum()
        return int(hits) / len(labels)
    finally:
        model.train(was_training)


def _check_remainder(rows: int, recipe: Recipe) -> None:
    if recipe.norm != "none" and rows % recipe.batch_size == 1:
        raise ConfigError(
            f"--batch-size {recipe.batch_size}: {rows} rows would leave a batch of 1, which norms refuse; "
            "choose another size"
        )
