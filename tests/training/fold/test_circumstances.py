"""A fold is right in every circumstance of a call, or refused: gradients, tracing, and what earlier calls left."""

import copy
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, is_grad_enabled, nn

from foldserve.training.errors import FoldError
from foldserve.training.fold import fold, verify
from tests.support.fold_cases import randomise
from tests.support.fold_networks import BookNorm, book_batch_norm


class Chooses(nn.Module):
    """A convolution and a norm, with what a function of the module, the input and the value puts between them."""

    def __init__(self, between: Callable[[Any, Tensor, Tensor], Tensor]):
        super().__init__()
        self.conv, self.norm, self.between = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), between
        self.register_buffer("level", torch.ones(()))
        self.calls, self.last, self.tables = 0, None, dict[int, Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.between(self, x, self.conv(x)))


def chosen(asks: Callable[[Any, Tensor, Tensor], Any]) -> Callable[[Any, Tensor, Tensor], Tensor]:
    return lambda model, x, y: F.relu(y) if asks(model, x, y) else y


def counts(model: Any, limit: int) -> bool:
    model.calls += 1
    return model.calls > limit


def saw_another_size(model: Any, x: Tensor) -> bool:
    last, model.last = model.last, tuple(x.shape)
    return last not in (None, model.last)


def with_level(model: Any, _: Tensor, y: Tensor) -> Tensor:
    model.level = model.level * 1.5
    return y * model.level


def with_level_in_place(model: Any, _: Tensor, y: Tensor) -> Tensor:
    model.level.add_(1)
    return y * model.level


def with_previous(model: Any, _: Tensor, y: Tensor) -> Tensor:
    previous, model.last = model.last, y.detach()
    return y if previous is None or previous.shape != y.shape else y + previous


def with_table(model: Any, x: Tensor, y: Tensor) -> Tensor:
    if x.shape[-1] not in model.tables:
        model.tables[x.shape[-1]] = torch.zeros(x.shape[-1], dtype=x.dtype)
    return y * (model.tables[x.shape[-1]] + 1).mean()


STAYS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "gradients": chosen(lambda *_: torch.is_grad_enabled()),
    "gradients by another name": chosen(lambda *_: is_grad_enabled()),
    "a large batch with gradients": chosen(lambda _, x, __: torch.is_grad_enabled() and x.shape[0] > 2),
    "inference mode": chosen(lambda *_: torch.is_inference_mode_enabled()),
    "a tensor of inference mode": chosen(lambda _, x, __: x.is_inference()),
    "gradients of the input": chosen(lambda _, x, __: x.requires_grad),
    "gradients of a value": chosen(lambda _, __, y: y.grad_fn is not None),
    "autocast": chosen(lambda *_: torch.is_autocast_enabled("cpu")),
    "compiling": chosen(lambda *_: torch.compiler.is_compiling()),
    "no compiling": chosen(lambda *_: not torch.compiler.is_compiling()),
    "no exporting": chosen(lambda *_: not torch.compiler.is_exporting()),
    "tracing": chosen(lambda *_: torch.jit.is_tracing()),
    "scripting": chosen(lambda *_: torch.jit.is_scripting()),
    "export to ONNX": chosen(lambda *_: torch.onnx.is_in_onnx_export()),
    "order of the axes in memory": chosen(lambda _, x, __: not x.is_contiguous()),
    "second call": chosen(lambda model, *_: counts(model, 1)),
    "first call": chosen(lambda model, *_: not counts(model, 1)),
    "eighth call": chosen(lambda model, *_: counts(model, 7)),
    "another size than before": chosen(lambda model, x, _: saw_another_size(model, x)),
    "a buffer that is set": with_level,
    "a buffer that is written into": with_level_in_place,
    "the value of the call before": with_previous,
}


@pytest.mark.parametrize("name", STAYS)
def test_a_norm_whose_place_depends_on_the_circumstance_stays(name: str) -> None:
    """A relu or another factor comes between in one circumstance alone; numbers are the same in all of them."""
    torch.manual_seed(0)
    model = randomise(Chooses(STAYS[name])).double()
    result = fold(model, (torch.randn(2, 3, 16, 16).double(),))
    assert not result.report.folded
    assert_same(model, result.model)


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_circumstance_counts_at_one_size_too(dynamic: bool) -> None:
    """With sizes that never vary the norm stays for gradients all the same."""
    model = randomise(Chooses(STAYS["gradients"]))
    assert not fold(model, (torch.randn(2, 3, 8, 8),), dynamic=dynamic).report.folded


GOES: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "a count of calls": lambda model, _, y: y if counts(model, 3) else y + 0,
    "the shape of the call before": lambda model, x, y: y if saw_another_size(model, x) else y * 1,
    "gradients": lambda _, __, y: y * 1 if torch.is_grad_enabled() else y,
    "exporting": lambda _, __, y: y if torch.compiler.is_exporting() else y * 1,
}


@pytest.mark.parametrize("name", GOES)
def test_a_circumstance_that_changes_no_place_costs_no_norm(name: str) -> None:
    """What is only noted, or computed in another way, is no reason to refuse."""
    model = randomise(Chooses(GOES[name])).double()
    result = fold(model, (torch.randn(2, 3, 16, 16).double(),))
    assert len(result.report.folded) == 1
    assert_same(model, result.model)


class FrozenNorm(nn.Module):
    """Detectron2's: for gradients it writes out what is one operation otherwise, with a rounding of its own."""

    def __init__(self, channels: int, asks: Callable[[Tensor], bool]):
        super().__init__()
        self.asks, self.eps = asks, 1e-5
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.asks(x):
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


@pytest.mark.parametrize(
    "asks",
    [
        pytest.param(lambda x: x.requires_grad, id="gradients of a value"),
        pytest.param(lambda _: torch.is_grad_enabled(), id="gradients"),
        pytest.param(lambda _: torch.compiler.is_compiling(), id="compiling"),
        pytest.param(lambda x: x.shape[0] > 5, id="a large batch"),
    ],
)
def test_a_norm_that_is_written_in_two_ways_folds(asks: Callable[[Tensor], bool]) -> None:
    """Both are the same scale and shift up to the rounding of float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), FrozenNorm(6, asks), nn.ReLU()).double().eval()
    result = fold(model, (torch.randn(2, 3, 16, 16).double(),))
    assert len(result.report.folded) == 1, str(result.report)
    assert_same(model, result.model)


class Caches(Chooses):
    """A table for each width, computed when it is first needed."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        if x.shape[-1] not in self.tables:
            self.tables[x.shape[-1]] = torch.arange(x.shape[-1], dtype=x.dtype)
        return y + self.tables[x.shape[-1]]


def test_a_cache_costs_no_norm() -> None:
    """Anchors and positions are kept from call to call, and are what they would be if computed anew."""
    model = randomise(Caches(lambda _, __, y: y)).double()
    result = fold(model, (torch.randn(2, 3, 16, 16).double(),))
    assert len(result.report.folded) == 1
    assert_same(model, result.model)


class AsGraph(Chooses):
    """The norm as a call in the forward, so that the result is a graph, which has one way."""

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        y = F.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return self.between(self, x, y)


@pytest.mark.parametrize(
    ("name", "words"),
    [("gradients", "with gradients"), ("no exporting", "while it is exported"), ("eighth call", "after 7 calls")],
)
def test_a_graph_of_a_forward_that_has_two_ways_is_refused(name: str, words: str) -> None:
    """It would go the first way in every circumstance."""
    model = randomise(AsGraph(STAYS[name]))
    with pytest.raises(FoldError, match=words):
        fold(model, (torch.randn(2, 3, 16, 16),))


class Book(nn.Module):
    """A convolution and the book's norm, as a module, or as a call in the forward, which folds to a graph."""

    def __init__(self, *, is_module: bool):
        super().__init__()
        self.conv, self.norm, self.is_module = nn.Conv2d(1, 6, 3), BookNorm(6, 4), is_module

    def forward(self, x: Tensor) -> Tensor:
        y, norm = self.conv(x), self.norm
        if self.is_module:
            return norm(y)
        z, norm.moving_mean, norm.moving_var = book_batch_norm(
            y, norm.gamma, norm.beta, norm.moving_mean, norm.moving_var, 1e-5
        )
        return z


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("is_module", [True, False])
def test_a_norm_that_trains_with_gradients_is_folded_for_calls_without(is_module: bool) -> None:
    """With gradients on the result raises, unless it is meant; copies and pickles of it do."""
    model, x = randomise(Book(is_module=is_module)), torch.randn(2, 1, 8, 8)
    result = fold(model, (x,))
    assert (result.report.form, len(result.report.folded)) == ("module" if is_module else "graph", 1)
    for folded in (result.model, copy.deepcopy(result.model), pickle.loads(pickle.dumps(result.model))):
        with torch.no_grad():
            torch.testing.assert_close(folded(x), copy.deepcopy(model)(x), rtol=1e-4, atol=1e-4)
        with pytest.raises(FoldError, match=r"gradients are on.*torch\.no_grad"):
            folded(x)
    verify(model, result, (x,))
    assert fold(model, (x,), entrances="any").model(x).requires_grad


def test_the_inputs_get_no_gradients() -> None:
    """The circumstance is tried on copies."""
    x = torch.randn(2, 3, 16, 16)
    fold(randomise(Chooses(STAYS["gradients of the input"])), (x,))
    assert not x.requires_grad
    assert not torch.compiler.is_compiling()
    assert not torch.jit.is_scripting()
    assert not torch.jit.is_tracing()


def assert_same(model: nn.Module, folded: nn.Module) -> None:
    """The same calls, in the same order, give the same numbers in every mode."""
    modes: list[Callable[[], AbstractContextManager[Any]]] = [torch.no_grad, torch.enable_grad, torch.inference_mode]
    for mode in modes:
        one, other = copy.deepcopy(model), copy.deepcopy(folded)
        for number, size in enumerate((16, 16, 16, 9, 9, 16, 20, 16, 16, 16)):
            x = torch.randn(2 + number % 3, 3, size, size, dtype=torch.double)
            with mode():
                given, same = (x.clone().requires_grad_(mode is torch.enable_grad) for _ in range(2))
                torch.testing.assert_close(other(given), one(same), rtol=1e-9, atol=1e-9)
