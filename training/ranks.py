"""The processes that train one network together, started by torchrun: who they are, and what they tell each other.

Each is a rank with the whole data set and the whole network; it computes its share of every batch, and sums over a
batch are sums over the ranks. On CPUs they talk through gloo, on GPUs through nccl. It knows nothing of networks or
recipes.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import DeviceError, RankError


@dataclass(frozen=True)
class Ranks:
    """One of the processes that train together, or the only one.

    Attributes:
        rank: its number, 0 to `world_size - 1`; 0 is the one that prints and writes.
        world_size: how many there are.
        local_rank: its number among those of its machine, which is the number of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def share(self, rows: int) -> slice:
        """Return which of `rows` rows are this rank's: all ranks' together are all, in order; a share may be empty."""
        return slice(self.rank * rows // self.world_size, (self.rank + 1) * rows // self.world_size)

    def summed(self, x: Tensor) -> Tensor:
        """Return the sum of every rank's `x`, on all ranks; the gradient of `x` is the sum of all ranks' gradients."""
        if self.world_size == 1:
            return x
        total: Tensor = _Summed.apply(x, self)  # type: ignore[no-untyped-call]
        return total

    @torch.no_grad()
    def sum_in_place(self, tensors: Iterable[Tensor]) -> None:
        """Replace each of `tensors`, all of one dtype, by its sum over the ranks, in one message."""
        if self.world_size == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        _answered(lambda: dist.all_reduce(flat))
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def gathered(self, x: Tensor) -> list[Tensor]:
        """Return every rank's `x`, of one shape on all of them, in the order of the ranks."""
        if self.world_size == 1:
            return [x]
        parts = [torch.empty_like(x) for _ in range(self.world_size)]
        _answered(lambda: dist.all_gather(parts, x.contiguous()))
        return parts

    @torch.no_grad()
    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace each of `tensors` by that of rank 0."""
        if self.world_size > 1:
            for tensor in tensors:
                copied = tensor.detach().contiguous()
                _answered(functools.partial(dist.broadcast, copied, 0))
                tensor.copy_(copied)

    def told_by_first(self, value: Any = None) -> Any:
        """Return the `value` that rank 0 gives, on all ranks; those of the others are not looked at."""
        if self.world_size == 1:
            return value
        values = [value]
        _answered(lambda: dist.broadcast_object_list(values, 0))
        return values[0]

    def device(self, device: torch.device) -> torch.device:
        """Return this rank's own `device`: on a machine with several GPUs one for each rank.

        Raises:
            DeviceError: the machine has more ranks than GPUs.
        """
        if self.world_size == 1 or device.type != "cuda":
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise DeviceError(
                f"rank {self.rank}: this machine has {torch.cuda.device_count()} GPUs, and each rank takes one; "
                "start fewer with --nproc-per-node, or use --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)


ALONE = Ranks()


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether torchrun started this process, as torch.distributed.is_torchelastic_launched() tells it."""
    return "TORCHELASTIC_RUN_ID" in environment


def ranks_of(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Return what torchrun says of this process; a process that it did not start is alone."""
    if not is_launched(environment):
        return ALONE
    return Ranks(*(int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


@contextmanager
def launched(environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """Join the processes that torchrun started inside the block; without it there is this process alone.

    Raises:
        RankError: the others cannot be reached.
    """
    ranks = ranks_of(environment)
    if ranks.world_size == 1:
        yield ALONE
        return
    backends = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    _answered(lambda: dist.init_process_group(backends))
    yield ranks
    _answered(dist.barrier)  # nobody leaves while another still reads what was shared; see `leave`


def leave(code: int) -> NoReturn:
    """End this process with `code`; one rank of several does not take down what it shared with the others.

    Ranks end one after the other, and the threads of gloo that still wait for one that has gone would end the process
    by `terminate called`, after a training that went well too.
    """
    if ranks_of().world_size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _answered(collective: Callable[[], object]) -> None:
    """Run `collective`; gloo and nccl raise RuntimeError when another rank has gone or does not answer."""
    try:
        collective()
    except RuntimeError as err:
        reason = str(err).strip().splitlines()[0]
        raise RankError(f"another rank ended or does not answer ({reason})") from err


class _Summed(torch.autograd.Function):
    """A sum over the ranks whose gradient is one too: every rank's loss depends on every rank's part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        total = x.clone()
        ranks.sum_in_place([total])
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone()
        ctx.ranks.sum_in_place([total])
        return total, None
