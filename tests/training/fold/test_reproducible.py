"""A network that is a function of its input is never said to give another result each time, whatever memory held."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldserve.training.fold import fold
from foldserve.training.fold.pytorch.reproducible import first_difference
from tests.support.fold_cases import randomise

X = torch.randn((2, 4), generator=torch.Generator().manual_seed(0))
NUMBERS = itertools.count()


def in_old_memory(write: Callable[[Tensor], object]) -> Callable[[], Tensor]:
    """A computation in memory that holds other numbers each time, as what was freed before does."""
    memory = torch.zeros(2, 8)
    numbers = memory.numpy()

    def run() -> Tensor:
        numbers[:] = next(NUMBERS)
        write(memory)
        return memory * 2

    return run


def whole(memory: Tensor) -> None:
    memory[:, :4].copy_(X)
    memory.view(2, 2, 4).select(1, 1).copy_(X)


def half(memory: Tensor) -> None:
    memory[:, :4].copy_(X)


def test_views_of_memory_that_is_not_written_yet_say_nothing() -> None:
    """Circular padding takes slices of new memory and writes into them: they held anything before."""
    assert first_difference(in_old_memory(whole)) == ""
    assert first_difference(in_old_memory(half)).startswith("aten::mul")
    assert first_difference(lambda: F.pad(X, (1, 1), "circular")) == ""


class DeadEnd(nn.Module):
    """Its norm goes forward into a layer whose result goes nowhere."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        self.layer(self.norm(x))
        return x.relu()


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_a_norm_that_reaches_no_output_folds(mode: str) -> None:
    """All outputs have to stay as they were; there was no output by which to judge it, and another reason each time."""
    model = randomise(DeadEnd(mode))
    images = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    result = fold(model, (images,))
    assert [site.path for site in result.report.folded] == ["norm"], str(result.report)
    assert torch.equal(result.model(images), model(images))
