"""A look at a forward costs little: short ways give the form that PyTorch gives, and nothing is done twice."""

import copy
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldserve.training.fold import fold
from foldserve.training.fold.pytorch import fold_plan, size_symbols
from foldserve.training.fold.pytorch.fake_runs import FunctionShortcuts, Shortcuts, fake_mode
from foldserve.training.fold.pytorch.look import look_at_sizes
from foldserve.training.fold.pytorch.recorded_calls import other_computations
from foldserve.training.fold.pytorch.user_code import code_of
from tests.support.fold_cases import randomise

MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "norm": nn.BatchNorm2d(4).eval(),
    "unary": lambda x: torch.sigmoid(F.silu(torch.relu(x))),
    "in a view with gaps": lambda x: torch.relu(x[:, ::2, 1:, :-1]) + x[:, 1::2, 1:, :-1],
    "broadcast": lambda x: x * x.mean((2, 3), keepdim=True) + x[:, :1],
    "views": lambda x: x.transpose(1, 3).flatten(1, 2).unsqueeze(1).expand(-1, 2, -1, -1),
    "reshaped": lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 2).split(3, 1)[1],
    "to a size": lambda x: F.interpolate(x, size=(7, 3), mode="bilinear"),
    "by a factor": lambda x: F.interpolate(x, scale_factor=(1.7, 0.5), mode="nearest"),
    "by area": lambda x: F.interpolate(x, scale_factor=0.5, mode="area"),
    "whole numbers": lambda x: torch.neg(x.long()) + x.int(),
    "unfolded": lambda x: x.unbind(1)[1].t() if x.ndim == 3 else x.select(1, 0),
}
RECURRENT = {
    "gru": nn.GRU(4, 3, batch_first=True),
    "both ways, two deep": nn.GRU(4, 3, 2, bidirectional=True),
    "lstm": nn.LSTM(4, 3, batch_first=True),
    "projected": nn.LSTM(4, 5, proj_size=3),
    "plain": nn.RNN(4, 3, nonlinearity="relu"),
}


def forms(value: object) -> list[tuple[object, ...]]:
    """The shape, the strides and the dtype of each tensor."""
    leaves = torch.utils._pytree.tree_leaves(value)
    return [(tuple(one.shape), one.stride(), one.dtype) for one in leaves]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", MAPS)
def test_a_short_way_gives_the_form_that_pytorch_gives(name: str, layout: torch.memory_format) -> None:
    """Shape, strides and dtype are those of the same function on values."""
    x = torch.randn(2, 4, 6, 5).contiguous(memory_format=layout)
    with torch.no_grad():
        expected = forms(MAPS[name](x))
        mode = fake_mode()
        with mode, Shortcuts(), FunctionShortcuts():
            assert forms(MAPS[name](mode.from_tensor(x))) == expected


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_is_one_operation_of_the_form_that_pytorch_gives(name: str) -> None:
    """It is not taken apart step by step, and the shapes and dtypes are those of the layer on values."""
    x, noted = torch.randn(2, 6, 4), []
    with torch.no_grad():
        expected = [form[::2] for form in forms(RECURRENT[name](x))]
        mode = fake_mode()
        with mode, FunctionShortcuts(lambda name, *_: noted.append(name)):
            got = [form[::2] for form in forms(RECURRENT[name](mode.from_tensor(x)))]
    assert got == expected
    assert len(noted) == 1


def test_a_recurrent_layer_refuses_what_does_not_fit() -> None:
    """A short way takes nothing that the layer would refuse."""
    mode = fake_mode()
    with mode, Shortcuts(), FunctionShortcuts(), pytest.raises(RuntimeError):
        RECURRENT["gru"](mode.from_tensor(torch.randn(2, 6, 5)))


class Net(nn.Module):
    """A convolution and a norm, around something of the case's."""

    def __init__(self, between: Callable[[Tensor], Tensor]):
        super().__init__()
        self.conv, self.norm, self.between = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), between

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.between(x)))


EXAMPLE = (torch.randn(4, 3, 9, 9),)


def test_a_constant_that_each_call_makes_is_no_other_computation() -> None:
    """A list of indices or a table written in the forward is the same at every size, and needs no graph for each."""
    net = randomise(Net(lambda x: x[:, [2, 1, 0]] * torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)[..., : x.shape[-1]]))
    sizes = look_at_sizes(net, EXAMPLE)
    assert len(sizes.variants) > 2
    assert other_computations(sizes.variants) == []
    assert sizes.circumstances == ()


def test_a_constant_of_other_values_is_another_computation() -> None:
    """Which of two tables is written down may be a choice by the size."""
    net = randomise(Net(lambda x: x * torch.tensor([1.0, 2.0] if x.shape[-1] > 20 else [2.0, 3.0])[0]))
    assert other_computations(look_at_sizes(net, EXAMPLE).variants)


class Cached(nn.Module):
    """A bias that is kept beside the parameters, as attention keeps one for each device."""

    def __init__(self, keep: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.kept = keep(torch.randn(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        kept = getattr(self.kept, "held", self.kept)
        if isinstance(kept, dict):
            kept = kept["cpu" if x.shape[0] else "none"]
        return self.norm(x) + (kept[0][0] if isinstance(kept, list) else kept)


@pytest.mark.parametrize(
    "keep",
    [
        lambda bias: {"cpu": bias},
        lambda bias: [(bias,)],
        lambda bias: SimpleNamespace(held={"cpu": bias}),
        lambda bias: bias,
    ],
)
def test_a_tensor_that_a_container_holds_is_the_same_in_each_run(keep: Callable[[Tensor], object]) -> None:
    """Each run has a copy of the container; told by its identity, a bias would make each of them another computation.

    Of tiny_vit of timm 169 computations were found by it, where there are few, and its fold took minutes.
    """
    sizes = look_at_sizes(randomise(Cached(keep)), EXAMPLE)
    assert len(sizes.variants) > 1
    assert other_computations(sizes.variants) == []


def test_of_two_tensors_in_one_container_each_is_itself() -> None:
    """A forward may take one or the other by the size."""
    net = randomise(Cached(lambda bias: {"cpu": bias, "none": -bias}))
    net.forward = lambda x: net.norm(x) + net.kept["cpu" if x.shape[-1] < 20 else "none"]  # type: ignore[method-assign]
    assert other_computations(look_at_sizes(net, EXAMPLE).variants)


class Built(nn.Module):
    """Handles an error where it is made, and where its forward or what that calls may run."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.where = where
        try:
            self.copied = self.load()
        except RecursionError:
            self.copied = None

    def load(self) -> object:
        try:
            return copy.copy(self.where)
        except ValueError:
            return None

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Tries(Built):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.tried(x))

    def tried(self, x: Tensor) -> Tensor:
        try:
            return x[:, :, : 20 // x.shape[-1]]
        except ZeroDivisionError:
            return x


class Named(Tries):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(getattr(self, "tri" + self.where)(x))


class Suppresses(Built):
    def forward(self, x: Tensor) -> Tensor:
        with suppress(ZeroDivisionError):
            x = x[:, :, : 20 // x.shape[-1]]
        return self.norm(x)


@pytest.mark.parametrize(("cls", "is_opaque"), [(Built, False), (Tries, True), (Named, True), (Suppresses, True)])
def test_only_errors_that_a_forward_may_handle_hide_what_it_asks(cls: type[Built], is_opaque: bool) -> None:
    """Other methods and what they call, as of copying or of loading weights, made most networks of timm be swept."""
    assert code_of(cls("ed")).is_opaque is is_opaque


def test_few_chunks_are_followed_to_their_end() -> None:
    """Two halves are one or two parts, which a question answers both ways; no sweep over fifty batches is needed."""
    net = randomise(Net(lambda x: torch.cat([part * 2 for part in x.chunk(2, 0)])))
    sizes = look_at_sizes(net, EXAMPLE)
    assert sizes.is_complete
    assert len(sizes.variants) < 12
    assert {one.shapes[0][0] == 1 for one in sizes.variants} == {False, True}


def test_formulas_are_found_once_for_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding them with symbols costs as much as many calls; other sizes on the same way follow the same ones."""
    found = []
    formulas = size_symbols.shapes_as_formulas
    monkeypatch.setattr(size_symbols, "shapes_as_formulas", lambda *args: found.append(formulas(*args)) or found[-1])
    net = randomise(Net(lambda x: F.pad(x, (0, F.avg_pool2d(x, 2).shape[-1] % 2))))
    sizes = look_at_sizes(net, EXAMPLE)
    assert len(other_computations(sizes.variants)) == 1  # it pads, or not
    assert len(found) == 2


def test_no_other_graph_is_read_where_no_norm_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph of another size can only take back what is to be folded."""
    circumstances = []
    read = fold_plan._graph
    monkeypatch.setattr(fold_plan, "_graph", lambda *args, **more: circumstances.append(args) or read(*args, **more))
    net = randomise(Net(lambda x: x * 2 if x.shape[-1] % 2 else x.abs() * 2))
    net.norm = nn.Sequential(nn.Softmax(1), net.norm)
    assert not fold(net, EXAMPLE).report.folded
    assert len(circumstances) == 1
