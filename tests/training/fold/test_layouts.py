"""A call in another layout, or with other channels, is right, or raises where its fold was not looked at."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from foldserve.training.errors import FoldError
from foldserve.training.fold import fold
from foldserve.training.fold.pytorch.size_guard import OtherSize
from tests.support.fold_cases import randomise


class Layout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)


class ChannelsLast(Layout):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2) if x.shape[1] != 3 else x))


class ReluChannelsLast(Layout):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            return self.norm(F.relu(self.conv(x.permute(0, 3, 1, 2))))
        return self.norm(self.conv(x))


class Grey(Layout):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x))


class ReluGrey(Layout):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == 1:
            return self.norm(F.relu(self.conv(x.expand(-1, 3, -1, -1))))
        return self.norm(self.conv(x))


class ChannelsFirst(Layout):
    """Takes (C, N, H, W) too, a layout that is not looked for."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            return self.norm(F.relu(self.conv(x.transpose(0, 1))))
        return self.norm(self.conv(x))


SHAPES = [(2, 3, 16, 16), (2, 16, 16, 3), (1, 9, 8, 3), (3, 3, 9, 8), (2, 1, 16, 16), (3, 5, 16, 16)]


@pytest.mark.parametrize(
    ("network", "folded"), [(ChannelsLast, 1), (ReluChannelsLast, 0), (Grey, 1), (ReluGrey, 0), (ChannelsFirst, 1)]
)
def test_no_layout_gives_other_numbers(network: type[nn.Module], folded: int) -> None:
    """The norm stays where a layout puts a relu before it; else it goes, and unknown layouts raise."""
    model = randomise(network()).double()
    result = fold(model, (torch.randn(2, 3, 16, 16).double(),))
    assert len(result.report.folded) == folded
    for shape in SHAPES:
        x = torch.randn(shape).double()
        try:
            expected = model(x)
        except RuntimeError:
            continue
        try:
            got = result.model(x)
        except OtherSize:
            assert network is ChannelsFirst
            continue
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_a_layout_that_was_not_found_raises() -> None:
    """The error names the axis; who means it says so."""
    model, x = randomise(ChannelsFirst()), torch.randn(3, 5, 8, 8)
    inputs = (torch.randn(2, 3, 8, 8),)
    with pytest.raises(OtherSize, match="asks about axis 1, which had the size 3"):
        fold(model, inputs).model(x)
    free: Any = ({0: Dim.AUTO, 1: Dim.AUTO},)
    for options in ({"entrances": "any"}, {"dynamic": free}):
        fold(model, inputs, **options).model(x)


class Rows(nn.Module):
    """A linear layer for each of a number of rows, which its forward reads."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        batch, rows, channels = x.shape
        return self.norm(self.linear(x.reshape(batch * rows, channels))).reshape(batch, rows, channels)


def test_an_axis_that_was_varied_goes_on_varying() -> None:
    """The second axis of a network on rows is none of channels."""
    model = randomise(Rows())
    folded = fold(model, (torch.randn(2, 5, 8),)).model
    for shape in ((1, 7, 8), (3, 1, 8), (4, 64, 8)):
        x = torch.randn(shape)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)


def test_another_rank_raises_other_size() -> None:
    """It is an error of the argument, as any other size is."""
    folded = fold(randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), (torch.randn(2, 3, 8, 8),)).model
    with pytest.raises(OtherSize, match="a tensor of 3 axes"):
        folded(torch.randn(3, 8, 8))
    assert issubclass(OtherSize, FoldError)
