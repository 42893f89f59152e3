"""One training step as a CUDA graph: recorded once, replayed without the cost of launching its kernels one by one.

Between the step of the training loop and the GPU. Recording needs rehearsals that really train, so everything a step
changes is put back afterwards. It knows nothing of networks, data or recipes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

REHEARSALS = 3  # on a stream of their own, as PyTorch requires: libraries choose kernels and take their memory there


def capture(
    step: Callable[[], None], rewind: Callable[[], None], model: nn.Module, optimizer: Any
) -> torch.cuda.CUDAGraph:
    """Return a graph that does what `step` does, on the same tensors; model and optimizer are left as they were.

    Args:
        step: reads and leaves all its values in tensors that stay where they are, and reads nothing back to the host.
        rewind: puts back what `step` moves besides model and optimizer; called before every rehearsal and at the end.
        model: in the mode that the step wants; its parameters and buffers are updated in place by `step`.
        optimizer: over the model's parameters.
    """
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with unchanged(model, optimizer):
        aside.wait_stream(torch.cuda.current_stream())  # for the copies too, which are made there
        with torch.cuda.stream(aside):
            for _ in range(REHEARSALS):
                rewind()
                step()
        torch.cuda.current_stream().wait_stream(aside)
        rewind()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    rewind()
    return graph


@contextmanager
def unchanged(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Put parameters, buffers and the optimizer's state back in place when the block ends, whatever trained inside it.

    State that an optimizer makes at its first step is kept, since a graph may hold it, and set to zero: what momentum
    and averages start from.
    """
    before = {id(tensor): tensor.detach().clone() for tensor in _tensors(model, optimizer)}
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor in _tensors(model, optimizer):
                if id(tensor) in before:
                    tensor.copy_(before[id(tensor)])
                else:
                    tensor.zero_()


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    states = [value for state in optimizer.state.values() for value in state.values()]
    return [*model.parameters(), *model.buffers(), *(value for value in states if isinstance(value, Tensor))]
