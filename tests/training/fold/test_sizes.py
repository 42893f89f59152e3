"""A fold is right at every size, or refused, or raises at sizes that it was not read for."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from foldserve.training.fold import explain, fold
from tests.support.fold_cases import randomise

FREE = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)


class SameConv(nn.Conv2d):
    """A stride of two with "same" padding, which pads at odd sizes alone."""

    def forward(self, x: Tensor) -> Tensor:
        pads = [max((-(-size // 2) - 1) * 2 + 2 - size, 0) for size in x.shape[-2:]]
        if any(pads):
            x = F.pad(x, [pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2])
        return super().forward(x)


class PadsLarge(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, [1, 1, 1, 1]) if x.shape[-1] > 40 else x)


class PadsByArgument(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, 1, x.shape[2] % 2)


class HandWrittenMean(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.sum((2, 3)) / y.shape[2] / y.shape[3]


class Between(nn.Module):
    """A function of the size between convolution and norm."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.conv, self.norm, self.function = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), function

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.function(self.conv(x)))


class SometimesNormalises(Between):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) if x.shape[2] < 50 else y


BY_SIZE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "same padding": (lambda: nn.Sequential(nn.BatchNorm2d(3), SameConv(3, 8, 2, 2)), "pad"),
    "padding of large images": (lambda: nn.Sequential(nn.BatchNorm2d(3), PadsLarge(3, 8, 3)), "pad"),
    "padding as an argument": (lambda: nn.Sequential(nn.BatchNorm2d(3), PadsByArgument(3, 8, 3)), "pad"),
    "mean written by hand": (lambda: nn.Sequential(HandWrittenMean(3, 8, 3), nn.BatchNorm1d(8)), "unknown-op"),
    "padding before the norm": (lambda: Between(lambda y: F.pad(y, [1] * 4) if y.shape[2] % 4 else y), "pad"),
    "activation before the norm": (
        lambda: Between(lambda y: F.relu(y) if y.shape[2] > 50 else y),
        "activation-between",
    ),
    "activation at one size of four": (
        lambda: Between(lambda y: F.relu(y) if y.shape[3] % 4 == 3 else y),
        "activation-between",
    ),
    "pool before the norm": (lambda: Between(lambda y: F.avg_pool2d(y, 3, 1, 1) if y.shape[2] > 50 else y), "pool"),
    "no norm for large images": (lambda: SometimesNormalises(F.relu), "spatial"),
}


def off(folded: nn.Module, original: nn.Module, size: int) -> float:
    x = torch.randn((3, 3, size, size), generator=torch.Generator().manual_seed(size))
    with torch.no_grad():
        expected = copy.deepcopy(original).double()(x.double())
        return float((folded(x) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dynamic", [True, FREE], ids=["batch", "free"])
@pytest.mark.parametrize("name", BY_SIZE)
def test_what_is_legal_at_one_size_alone_is_refused(name: str, dynamic: Any) -> None:
    """The example shows a legal fold; at other sizes the forward does something else, and the norm stays."""
    make, code = BY_SIZE[name]
    torch.manual_seed(0)
    model = randomise(make())
    inputs = (torch.randn(2, 3, 30 if name == "padding before the norm" else 32, 32),)
    result = fold(model, inputs, dynamic=dynamic)
    assert [str(site.code) for site in result.report.refused] == [code]
    assert explain(model, inputs, dynamic=dynamic).refused == result.report.refused
    assert max(off(result.model, model, size) for size in (16, 31, 32, 33, 64, 100)) < 1e-5


class WithinForward(nn.Module):
    """A norm in the model's own forward, so that the result is a graph, and a function of the size behind it."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.conv, self.norm, self.function = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), function

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        y = F.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return self.function(x, y)


GRAPHS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "interpolate to the input": lambda x, y: F.interpolate(y, size=x.shape[-2:]),
    "mean": lambda x, y: y.sum((2, 3)) / (y.shape[2] * y.shape[3]),
    "crop": lambda x, y: y[:, :, : x.shape[2] // 2],
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_refuses_sizes_that_it_was_not_read_for(name: str) -> None:
    """Another batch is computed; another size raises instead of giving the numbers of the example's size."""
    model = randomise(WithinForward(GRAPHS[name]))
    result = fold(model, (torch.randn(2, 3, 32, 32),))
    assert result.report.form == "graph"
    assert off(result.model, model, 32) < 1e-5
    with pytest.raises(ValueError, match=r"shape \(3, 3, 64, 64\); this folded graph was read for \(any, 3, 32, 32\)"):
        off(result.model, model, 64)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_with_free_sizes_is_right_at_all_of_them(name: str) -> None:
    """With free dimensions nothing made of sizes is a constant; it is proved at a second size too."""
    model = randomise(WithinForward(GRAPHS[name]))
    result = fold(model, (torch.randn(2, 3, 32, 32),), dynamic=FREE)
    assert result.report.form == "graph"
    assert result.report.proof.sizes == ("(2, 3, 32, 32)", "(1, 3, 31, 31)")
    assert max(off(result.model, model, size) for size in (16, 31, 32, 64)) < 1e-5


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, when it reads its pytrees back
def test_a_graph_survives_pickle_with_its_guard() -> None:
    """What is loaded computes the same and raises at the same sizes."""
    model = randomise(WithinForward(GRAPHS["mean"]))
    loaded = pickle.loads(pickle.dumps(fold(model, (torch.randn(2, 3, 32, 32),)).model))
    assert off(loaded, model, 32) < 1e-5
    with pytest.raises(ValueError, match="fold again with `dynamic`"):
        off(loaded, model, 31)


def test_sizes_that_never_vary() -> None:
    """With dynamic=False the size of the example is the only one, and the only one that is proved."""
    model = randomise(nn.Sequential(nn.BatchNorm2d(3), SameConv(3, 8, 2, 2)))
    report = fold(model, (torch.randn(2, 3, 32, 32),), dynamic=False).report
    assert len(report.folded) == 1
    assert report.proof.sizes == ("(2, 3, 32, 32)",)


def test_the_report_states_where_the_fold_is_proved() -> None:
    """Another size where the network accepts one, else another batch."""
    convolutions = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert fold(convolutions, (torch.randn(2, 3, 9, 8),)).report.proof.sizes == ("(2, 3, 9, 8)", "(1, 3, 8, 7)")
    flat = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)))
    report = fold(flat, (torch.randn(1, 3, 8, 8),)).report
    assert report.proof.sizes == ("(1, 3, 8, 8)", "(2, 3, 8, 8)")
    assert "proved for inputs of (1, 3, 8, 8); (2, 3, 8, 8)" in report.table()
