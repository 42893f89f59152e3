"""One pass over the training set: the order of the rows, the steps, and what each step measured.

Part of the training loop. Everything a step reads or leaves lies in tensors that stay where they are, and the host
reads nothing back within an epoch, so the same steps serve a CPU and a CUDA graph.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .augment import mirror
from .capture import capture
from .compiled import compiled
from .config import Recipe
from .dataset import scale_pixels
from .device import synchronize
from .errors import DivergenceError
from .fused import fused
from .ranks import ALONE, Ranks
from .schedule import learning_rate, set_learning_rate
from .shared_norms import shared_norms
from .worker_threads import WorkerThreads

SMALL_NETWORKS = ("lenet-bn", "mlp")  # whose operations take a tenth of a millisecond
ORDER, MIRRORED = 0, 1  # what an epoch draws: each has random numbers of its own


def epoch_generator(seed: int, epoch: int, purpose: int) -> torch.Generator:
    """Return random numbers that seed, epoch and purpose alone decide, so a resumed run draws the same ones."""
    entropy = [seed, epoch, purpose] if purpose else [seed, epoch]
    mixed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))


def epoch_order(rows: int, seed: int, epoch: int) -> Tensor:
    """Return an epoch's permutation of the rows, (rows,) int64."""
    return torch.randperm(rows, generator=epoch_generator(seed, epoch, ORDER))


def epoch_mirrored(rows: int, seed: int, epoch: int) -> Tensor:
    """Return which rows are mirrored in an epoch, (rows,) bool."""
    return torch.randint(2, (rows,), generator=epoch_generator(seed, epoch, MIRRORED)).bool()


class EpochState:
    """Where an epoch stands, on the device: the order of its rows, the next row, and what each step measured.

    With the augmentation `mirror` it also says of each row, by its number in the data, whether it is mirrored.
    """

    def __init__(
        self,
        rows: int,
        steps: int,
        device: torch.device,
        *,
        is_mirroring: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.order = torch.empty(rows, dtype=torch.int64, device=device)
        self.mirrored = torch.empty(rows, dtype=torch.bool, device=device) if is_mirroring else None
        self.row = torch.zeros((), dtype=torch.int64, device=device)  # where the next batch starts in `order`
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.losses = torch.empty(steps, dtype=dtype, device=device)  # mean of each step
        self.correct = torch.empty(steps, dtype=torch.int64, device=device)

    def restart(self, seed: int, epoch: int) -> None:
        """Start `epoch` (from 1) with an order of its own."""
        rows = len(self.order)
        self.order.copy_(epoch_order(rows, seed, epoch))
        if self.mirrored is not None:
            self.mirrored.copy_(epoch_mirrored(rows, seed, epoch))
        self.rewind()

    def rewind(self) -> None:
        """Go back to the first row and the first step."""
        self.row.zero_()
        self.step.zero_()


class TrainingStep:
    """One update of the weights on the next `rows` rows of the epoch, of which each rank computes its share.

    It takes no argument and returns nothing, so that a CUDA graph can capture the call as it stands, one graph for each
    batch size.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        labels: Tensor,
        state: EpochState,
        rows: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self.forward = forward
        self.optimizer = optimizer
        self.images = images
        self.labels = labels
        self.state = state
        self.rows = rows
        self.ranks = ranks
        self.offsets = torch.arange(rows, device=images.device)[ranks.share(rows)]

    def __call__(self) -> None:
        """Read the next rows, update the weights, note loss and right answers."""
        state = self.state
        picked = state.order.index_select(0, state.row + self.offsets)  # (rows,)
        labels = self.labels.index_select(0, picked)
        images = self.images.index_select(0, picked)
        if state.mirrored is not None:
            images = mirror(images, state.mirrored.index_select(0, picked))
        logits: Tensor = self.forward(scale_pixels(images, state.losses.dtype))
        loss = self._loss(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._share_gradients()
        self.optimizer.step()
        with torch.no_grad():
            state.losses.index_copy_(0, state.step, loss.detach().view(1))
            state.correct.index_copy_(0, state.step, (logits.argmax(1) == labels).sum().view(1))
            state.row.add_(self.rows)
            state.step.add_(1)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over the step's rows; on several ranks this one's part of it, which add up to the mean."""
        if self.ranks.world_size == 1:
            return F.cross_entropy(logits, labels)
        return F.cross_entropy(logits, labels, reduction="sum") / self.rows

    def _share_gradients(self) -> None:
        parameters = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        self.ranks.sum_in_place([each.grad for each in parameters if each.grad is not None])


class EpochLoop:
    """Passes over the training set, each in a fresh order: full batches, and one step with the remainder if any.

    Args:
        model: on the device of the images.
        optimizer: over its parameters.
        images: (rows, C, H, W) uint8.
        labels: (rows,) int64.
        recipe: the hyperparameters.
        captures: whether each kind of step is captured in a CUDA graph before the first epoch.
        compiles: whether full batches go through PyTorch's compiler.
        ranks: that share every batch.
        dtype: of the model.
    """

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
        ranks: Ranks = ALONE,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        full, remainder = divmod(len(labels), recipe.batch_size)
        tail = [remainder] if remainder else []
        batches = [recipe.batch_size] * full
        self.sizes = tail + batches if recipe.tail == "first" else batches + tail
        self.model = model
        self.optimizer = optimizer
        self.recipe = recipe
        is_mirroring = recipe.augment == "mirror"
        self.state = EpochState(len(labels), len(self.sizes), images.device, is_mirroring=is_mirroring, dtype=dtype)
        self.ranks = ranks
        self.captures = captures
        threads = WorkerThreads()
        forward = fused(model, threads, ranks) if images.device.type == "cpu" and not compiles else model
        # Layer by layer, a small network takes one thread: PyTorch's own wait for each other after every operation, and
        # on a machine that does other things as well that takes longer than the operations. Large operations, and what
        # is compiled, keep them.
        is_one_thread = recipe.network in SMALL_NETWORKS and images.device.type == "cpu" and not compiles
        self.threads = threads if forward is not model else WorkerThreads(1) if is_one_thread else None
        forwards = {rows: forward if rows >= ranks.world_size else model for rows in self.sizes}
        forwards |= {recipe.batch_size: compiled(model)} if compiles else {}
        self.steps: dict[int, Callable[[], None]] = {
            rows: TrainingStep(forwards[rows], optimizer, images, labels, self.state, rows, ranks)
            for rows in dict.fromkeys(self.sizes)
        }

    def run(self, number: int, on_step: Callable[[int], None] | None = None) -> tuple[float, float, float]:
        """Train epoch `number` (from 1) and return mean loss, accuracy and the seconds of its steps.

        `on_step` gets the number of rows of each step when it is done, or queued on a GPU.

        Raises:
            DivergenceError: a step's loss is not finite.
        """
        self.model.train()
        self.state.restart(self.recipe.seed, number)
        self._capture()
        synchronize(self.state.order.device)
        start = time.perf_counter()
        with self.threads.open() if self.threads else nullcontext(), shared_norms(self.model, self.ranks):
            for step, rows in enumerate(self.sizes, start=(number - 1) * len(self.sizes)):
                rate = learning_rate(self.recipe, step, self.recipe.epochs * len(self.sizes))
                set_learning_rate(self.optimizer, rate)
                self.steps[rows]()
                if on_step is not None:
                    on_step(rows)
        synchronize(self.state.order.device)
        seconds = time.perf_counter() - start
        self.ranks.sum_in_place([self.state.losses])
        self.ranks.sum_in_place([self.state.correct])
        return self._mean_loss(number), int(self.state.correct.sum()) / sum(self.sizes), seconds

    def _capture(self) -> None:
        """Capture each kind of step, once, where that is wanted; the state must hold an order of rows by then."""
        if self.captures:
            for rows, step in self.steps.items():
                self.steps[rows] = capture(step, self.state.rewind, self.model, self.optimizer).replay
            self.captures = False

    def _mean_loss(self, number: int) -> float:
        losses: list[float] = self.state.losses.tolist()  # the one read of the epoch
        for step, loss in enumerate(losses, start=1):
            if not math.isfinite(loss):
                raise DivergenceError(
                    f"the loss became {loss} in epoch {number} at step {step} of {len(losses)}; lower --lr"
                )
        return sum(loss * rows for loss, rows in zip(losses, self.sizes, strict=True)) / sum(self.sizes)
