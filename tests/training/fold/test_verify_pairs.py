"""Pairs of networks for `verify`: those that differ somewhere never pass, those that are one function do.

Each pair is a convolution and its norm, the same weights in both, and what stands behind them. A pair that differs may
do so in numbers, in what it returns them in, at other sizes or values only, with grad on, or when it is called again.
"""

import copy
import dataclasses
import types
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foldserve.training.errors import CannotJudge, FoldError
from foldserve.training.fold import fold, verify
from tests.support.fold_cases import randomise

torch.set_num_threads(1)

IMAGES = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
Behind = Callable[[Tensor], Any]
Point = namedtuple("Point", "x y")
Other = namedtuple("Other", "x y")


@dataclasses.dataclass
class Answer:
    """Two values with names."""

    logits: Any
    extra: Any = None


class Holder:
    """An object of no known kind that holds a tensor."""

    def __init__(self, value: Tensor):
        self.value = value


class Network(nn.Module):
    """A convolution and its norm, and a function of what they give and of the input."""

    def __init__(self, behind: Behind):
        super().__init__()
        torch.manual_seed(0)
        self.layers = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        self.behind = behind

    def forward(self, x: Tensor) -> Any:
        return self.behind(self.layers(x))


class Counting(nn.Module):
    """The same with a number of calls, which is state of its own."""

    def __init__(self, behind: Callable[[Tensor, int], Any]):
        super().__init__()
        self.network, self.behind, self.calls = Network(lambda y: y), behind, 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.behind(self.network(x), self.calls)


class Remembering(nn.Module):
    """The same with a buffer that holds a part of the last answer."""

    def __init__(self, factor: float):
        super().__init__()
        self.network, self.factor = Network(lambda y: y), factor
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x) + self.factor * self.last
        self.last = y.mean().reshape(1)
        return y


class At(nn.Module):
    """Puts a number in the place of another."""

    def __init__(self, value: float, instead: float):
        super().__init__()
        self.value, self.instead = value, instead

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x == self.value, self.instead, x)


class Where(nn.Module):
    """Turns an input of some kind."""

    def __init__(self, asks: Callable[[Tensor], bool]):
        super().__init__()
        self.asks = asks

    def forward(self, x: Tensor) -> Tensor:
        return 1 - x if self.asks(x) else x


class Words(nn.Module):
    """Rows of an embedding, and a linear layer and its norm of their mean."""

    def __init__(self, rows: int):
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Embedding(rows, 16)
        self.layers = randomise(nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.rows(x).mean(1))


class Scaled(nn.Module):
    """Twice its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class ScaledInPlace(nn.Module):
    """The same, and its caller's tensor too."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


def of(behind: Behind) -> nn.Module:
    return Network(behind).eval()


def behind_a(first: nn.Module) -> nn.Module:
    return nn.Sequential(first, of(same)).eval()


def pair(one: Behind, other: Behind) -> tuple[nn.Module, nn.Module]:
    return of(one), of(other)


def with_nan(y: Tensor, factor: float) -> Tensor:
    keep = torch.arange(y.shape[-1]) % 2 == 0
    return torch.where(keep, factor * y, torch.nan)


def with_inf(y: Tensor, sign: float) -> Tensor:
    keep = torch.arange(y.shape[-1]) % 2 == 0
    return torch.where(keep, y, sign * torch.inf)


def at(condition: Callable[[Tensor], bool], y: Tensor, factor: float) -> Tensor:
    return factor * y if condition(y) else y


def same(y: Tensor) -> Tensor:
    return y


DIFFERENT: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    # numbers
    "a scale": lambda: pair(same, lambda y: 1.01 * y),
    "not a number in the same places": lambda: pair(lambda y: with_nan(y, 1), lambda y: with_nan(y, 2)),
    "not a number in other places": lambda: pair(lambda y: with_nan(y, 1), lambda y: with_nan(y.flip(-1), 1).flip(-1)),
    "infinity of the other sign": lambda: pair(lambda y: with_inf(y, 1), lambda y: with_inf(y, -1)),
    "a second output": lambda: pair(lambda y: (y, y.abs()), lambda y: (y, -y.abs())),
    "the tail, argmax and argmin": lambda: pair(lambda y: y.argmax(1), lambda y: y.argmin(1)),
    "integers": lambda: pair(lambda y: (10 * y).long(), lambda y: (11 * y).long()),
    "integers beside": lambda: pair(lambda y: (y, (10 * y).long()), lambda y: (y, (10 * y).long() + 1)),
    "integers that are all zero": lambda: pair(lambda y: (1e-4 * y).long(), lambda y: (2e-4 * y).long()),
    "a count": lambda: pair(lambda y: (y > 0).sum(), lambda y: (y > 1).sum()),
    "bools": lambda: pair(lambda y: y > 0, lambda y: y < 0),
    "bools that are all false": lambda: pair(lambda y: y > 1e6, lambda y: -y > 1e6),
    "indices": lambda: pair(lambda y: y.topk(2, 1).indices, lambda y: y.topk(2, 1).indices.flip(1)),
    "complex, the imaginary part": lambda: pair(lambda y: torch.complex(y, y), lambda y: torch.complex(y, -y)),
    "complex, a small part": lambda: pair(
        lambda y: torch.complex(1e6 * y, y.abs()), lambda y: torch.complex(1e6 * y, 1.1 * y.abs())
    ),
    "complex, conjugate": lambda: pair(lambda y: torch.fft.fft(y), lambda y: torch.fft.fft(y).conj()),
    # what they are returned in
    "a tuple and a list": lambda: pair(lambda y: (y, y), lambda y: [y, y]),
    "a tensor and a tuple of it": lambda: pair(same, lambda y: (y,)),
    "another nesting": lambda: pair(lambda y: (y, (y, y)), lambda y: ((y, y), y)),
    "other keys": lambda: pair(lambda y: {"a": y}, lambda y: {"b": y}),
    "keys in another order": lambda: pair(lambda y: {"a": y, "b": y}, lambda y: {"b": y, "a": y}),
    "values under each other's keys": lambda: pair(lambda y: {"a": y, "b": -y}, lambda y: {"a": -y, "b": y}),
    "a dict and an ordered one": lambda: pair(lambda y: {"a": y}, lambda y: OrderedDict(a=y)),
    "a named tuple and a plain one": lambda: pair(lambda y: Point(y, y), lambda y: (y, y)),
    "two named tuples": lambda: pair(lambda y: Point(y, y), lambda y: Other(y, y)),
    "a data class and a dict": lambda: pair(lambda y: Answer(y), lambda y: {"logits": y, "extra": None}),
    "another object": lambda: pair(lambda y: Holder(y), lambda y: types.SimpleNamespace(value=y)),
    "what an object holds": lambda: pair(lambda y: (y, Holder(y)), lambda y: (y, Holder(2 * y))),
    "None instead of a tensor": lambda: pair(lambda y: (y, None), lambda y: (y, y)),
    "None instead of nothing": lambda: pair(lambda y: (y, None), lambda y: (y,)),
    "another whole number": lambda: pair(lambda y: (y, 3), lambda y: (y, 4)),
    "a number and a bool": lambda: pair(lambda y: (y, 1), lambda y: (y, True)),
    "a whole number and a float": lambda: pair(lambda y: (y, 1), lambda y: (y, 1.0)),
    "a complex number": lambda: pair(lambda y: (y, 1 + 2j), lambda y: (y, 1 - 2j)),
    "another float": lambda: pair(lambda y: (y, 0.5), lambda y: (y, 0.25)),
    "a float made of the values": lambda: pair(lambda y: (y, y.sum().item()), lambda y: (y, y.mean().item())),
    "another text": lambda: pair(lambda y: (y, "a"), lambda y: (y, "b")),
    "another dtype": lambda: pair(same, lambda y: y.double()),
    "another dtype of integers": lambda: pair(lambda y: (y, y.argmax(1)), lambda y: (y, y.argmax(1).int())),
    "another shape": lambda: pair(same, lambda y: y.flatten(2)),
    "a shape without elements": lambda: pair(lambda y: (y, y[:, :0]), lambda y: (y, y[:, :0, :2])),
    "a sparse tensor": lambda: pair(same, lambda y: y.to_sparse()),
    # other sizes and batches
    "from a batch of 3 on": lambda: pair(same, lambda y: at(lambda y: y.shape[0] > 2, y, 2)),
    "from a batch of 30 on": lambda: pair(same, lambda y: at(lambda y: y.shape[0] > 29, y, 2)),
    "at a batch of 1": lambda: pair(same, lambda y: at(lambda y: y.shape[0] == 1, y, 2)),
    "at odd sizes": lambda: pair(same, lambda y: at(lambda y: y.shape[-1] % 2 == 1, y, 2)),
    "from a width of 100 on": lambda: pair(same, lambda y: at(lambda y: y.shape[-1] > 100, y, 2)),
    "a factor made of sizes": lambda: pair(lambda y: y * (y.shape[-1] / 6), same),
    "a factor made of the batch": lambda: pair(lambda y: y * y.shape[0], lambda y: 2 * y),
    "only one of them runs at other sizes": lambda: pair(
        lambda y: y.flatten(1).mean(1), lambda y: y.reshape(-1, 144).mean(1)
    ),
    "another shape at other sizes": lambda: pair(
        lambda y: nn.functional.interpolate(y, size=(6, 6)), lambda y: nn.functional.interpolate(y, scale_factor=1)
    ),
    "another container at other sizes": lambda: pair(same, lambda y: y if y.shape[0] == 2 else (y,)),
    "from the ninth row on": lambda: pair(same, lambda y: torch.cat([y[:9], 2 * y[9:]])),
    "from the twentieth column on": lambda: pair(same, lambda y: torch.cat([y[..., :19], 2 * y[..., 19:]], -1)),
    # other values
    "at zero": lambda: (of(same), behind_a(At(0.0, 3.0))),
    "rounded to half": lambda: pair(same, lambda y: y.half().to(y.dtype)),
    "rounded to bfloat16": lambda: pair(same, lambda y: y.bfloat16().to(y.dtype)),
    "what is left in the input": lambda: (behind_a(Scaled()), behind_a(ScaledInPlace())),
    "from a value of a million on": lambda: pair(same, lambda y: torch.where(y > 1e6, 2 * y, y)),
    "from an input of a million on": lambda: (of(same), behind_a(Where(lambda x: x.abs().max() > 1e6))),
    "for tiny inputs": lambda: (of(same), behind_a(Where(lambda x: x.abs().max() < 1e-4))),
    "for inputs above zero": lambda: (of(same), behind_a(Where(lambda x: x.min() >= 0))),
    "for inputs below zero": lambda: (of(same), behind_a(Where(lambda x: x.max() <= 0))),
    "from a value of 20 on": lambda: pair(lambda y: y.clamp(max=20), same),
    "below zero": lambda: pair(lambda y: y.abs().sqrt(), lambda y: (y + 1e-30).abs().sqrt() * (1 + (y > 40))),
    # another state
    "with grad on": lambda: pair(same, lambda y: 2 * y if torch.is_grad_enabled() else y),
    "another container with grad on": lambda: pair(same, lambda y: (y,) if y.requires_grad else y),
    "in a second call": lambda: (Counting(lambda y, n: y).eval(), Counting(lambda y, n: n * y).eval()),
    "in a third call": lambda: (Counting(lambda y, n: y).eval(), Counting(lambda y, n: y if n < 3 else 2 * y).eval()),
    "in the fourth call": lambda: (Counting(lambda y, n: y).eval(), Counting(lambda y, n: y * (n < 4)).eval()),
    "in the second call alone": lambda: (Counting(lambda y, n: y).eval(), Counting(lambda y, n: y * (n != 2)).eval()),
    "in the eleventh call": lambda: (
        Counting(lambda y, n: y).eval(),
        Counting(lambda y, n: y if n < 11 else -y).eval(),
    ),
    "every other call": lambda: (Counting(lambda y, n: y).eval(), Counting(lambda y, n: y * (n % 2)).eval()),
    "whole numbers with grad on": lambda: pair(
        lambda y: y.argmax(1), lambda y: y.argmax(1) + 1 if torch.is_grad_enabled() else y.argmax(1)
    ),
    "with gradients of the input": lambda: (of(same), behind_a(Where(lambda x: x.requires_grad))),
    "under autocast": lambda: pair(same, lambda y: 2 * y if torch.is_autocast_enabled("cpu") else y),
    "in inference mode": lambda: pair(same, lambda y: 2 * y if torch.is_inference_mode_enabled() else y),
    "on what was made in inference mode": lambda: pair(same, lambda y: 2 * y if y.is_inference() else y),
    "for channels_last": lambda: (of(same), behind_a(Where(lambda x: not x.is_contiguous()))),
    "in what a buffer keeps": lambda: (Remembering(0.1).eval(), Remembering(0.2).eval()),
    "in training mode": lambda: (of(same), of(same).train()),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_networks_that_differ_never_pass(name: str) -> None:
    """Neither way round: it is said that they differ, or that they cannot be judged."""
    one, other = DIFFERENT[name]()
    for before, after in ((one, other), (other, one)):
        with pytest.raises((FoldError, CannotJudge)):
            verify(before, after, (IMAGES,))


def changed(model: nn.Module, change: Callable[[Any], object]) -> nn.Module:
    """Return a copy of the model, changed."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        change(copied)
    return copied


TABLES: dict[str, tuple[int, Callable[[Words], object]]] = {
    "a row": (1000, lambda model: model.rows.weight[777].mul_(1.01)),
    "one number": (30000, lambda model: model.rows.weight[29000, 3].mul_(1.5)),
    "two rows swapped": (1000, lambda model: model.rows.weight[:2].copy_(model.rows.weight[:2].flip(0))),
    "the row of the padding": (1000, lambda model: model.rows.weight[0].zero_()),
}
WORDS = torch.randint(5, 700, (2, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TABLES)
def test_rows_of_an_embedding_that_no_input_names_are_compared(name: str) -> None:
    """However large the table is, and whatever the example names."""
    rows, change = TABLES[name]
    model = Words(rows).eval()
    for before, after in ((model, changed(model, change)), (changed(model, change), model)):
        with pytest.raises(FoldError, match="for inputs of"):
            verify(before, after, (WORDS,))
    assert verify(model, fold(model, (WORDS,)), (WORDS,)).algebra_error < 1e-11


ALIKE: dict[str, Behind] = {
    "a tensor": same,
    "a tuple": lambda y: (y, y.mean()),
    "a list in a dict": lambda y: {"a": [y, y.abs()], "b": None},
    "an ordered dict": lambda y: OrderedDict(b=y, a=-y),
    "a named tuple": lambda y: Point(y, 2 * y),
    "a data class": lambda y: Answer(y, [1, "a", 0.5]),
    "an object": lambda y: (y, Holder(y)),
    "numbers": lambda y: (y, 3, 0.5, True, "text", None),
    "a float made of the values": lambda y: (y, y.double().sum().item()),
    "sizes": lambda y: (y, y.shape, y.shape[0]),
    "complex": lambda y: torch.fft.rfft2(y),
    "complex, conjugate": lambda y: torch.fft.fft(y).conj(),
    "a negative view": lambda y: torch.fft.fft(y).conj().imag,
    "integers": lambda y: (10 * y).long(),
    "classes": lambda y: y.mean((2, 3)).argmax(1),
    "bools": lambda y: y > 0,
    "bools beside": lambda y: (y, y > 0),
    "indices": lambda y: y.mean((2, 3)).topk(2).indices,
    "a complex number": lambda y: (y, 1 + 2j),
    "not a number in places": lambda y: with_nan(y, 1),
    "infinity in places": lambda y: with_inf(y, -1),
    "sparse": lambda y: y.relu().to_sparse(),
    "half": lambda y: y.half(),
    "a branch on the batch": lambda y: y if y.shape[0] == 1 else y - y.mean(0),
    "a branch on the size": lambda y: nn.functional.pad(y, [0, y.shape[-1] % 2]),
    "one size only": lambda y: y.reshape(-1, 144).mean(1),
    "a branch on grad": lambda y: 2 * y if torch.is_grad_enabled() else y,
    "a clamp": lambda y: y.clamp(-1, 1),
    "noise": lambda y: y + torch.randn_like(y),
    "a branch on autocast": lambda y: 2 * y if torch.is_autocast_enabled("cpu") else y,
    "a branch on inference mode": lambda y: 2 * y if torch.is_inference_mode_enabled() else y,
    "a branch on large values": lambda y: torch.where(y > 1e6, 2 * y, y),
    "quantised and back": lambda y: torch.fake_quantize_per_tensor_affine(y, 0.1, 0, -128, 127),
    "a winner": lambda y: (100 * y).softmax(1),
}


@pytest.mark.parametrize("name", ALIKE)
def test_a_network_and_itself_pass(name: str) -> None:
    """As two objects, and as the network and what `fold` made of it."""
    proof = verify(of(ALIKE[name]), of(ALIKE[name]), (IMAGES,))
    assert proof.algebra_error == 0
    if name in ("an object", "a complex number"):  # torch.export reads no value that it does not know
        return
    result = fold(of(ALIKE[name]), (IMAGES,))
    assert [site.path for site in result.report.folded] == ["layers.1"]
    assert verify(of(ALIKE[name]), result, (IMAGES,)).algebra_error < 1e-9
    assert verify(of(ALIKE[name]), result.model, (IMAGES,)).algebra_error < 1e-4


@pytest.mark.parametrize("make", [lambda: Counting(lambda y, n: n * y), lambda: Remembering(0.1)])
def test_networks_with_the_same_state_pass(make: Callable[[], nn.Module]) -> None:
    """What a call leaves behind is the same in both, and so is what a second call gives."""
    assert verify(make().eval(), make().eval(), (IMAGES,)).algebra_error == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_network_in_another_dtype_passes(dtype: torch.dtype) -> None:
    """The coarser its rounding, the less there is to tell, but something is."""
    assert verify(of(same).to(dtype), of(same).to(dtype), (IMAGES.to(dtype),)).algebra_error == 0


def test_an_exported_network_passes() -> None:
    """It cannot be put into eval mode, which is no reason to refuse it."""
    exported = torch.export.export(of(same), (IMAGES,)).module()
    assert verify(of(same), exported, (IMAGES,)).algebra_error == 0


def test_the_sizes_that_ran_are_said() -> None:
    """The example's, and others: of the batch, and of height and width."""
    proof = verify(of(same), of(same), (IMAGES,))
    assert proof.sizes[0] == "(2, 3, 8, 8)"
    assert len({text.partition(",")[0] for text in proof.sizes}) > 1
    assert len({text.rpartition(",")[2] for text in proof.sizes}) > 1
