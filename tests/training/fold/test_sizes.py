"""A fold is right at every size, or refused, or raises at sizes that it was not read for."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from foldserve.training.errors import FoldError
from foldserve.training.fold import fold, fold_input
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
    with pytest.raises(FoldError, match=r"shape \(3, 3, 64, 64\); this folded graph was read for \(any, 3, 32, 32\)"):
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
    with pytest.raises(FoldError, match="fold again with `dynamic`"):
        off(loaded, model, 31)


def test_sizes_that_never_vary() -> None:
    """With dynamic=False the size of the example is the only one, and the only one that is proved."""
    model = randomise(nn.Sequential(nn.BatchNorm2d(3), SameConv(3, 8, 2, 2)))
    report = fold(model, (torch.randn(2, 3, 32, 32),), dynamic=False).report
    assert len(report.folded) == 1
    assert report.proof.sizes == ("(2, 3, 32, 32)",)


def test_other_sizes_raise_where_none_may_vary() -> None:
    """What was folded with dynamic=False pads at odd sizes; its copy and a fold of the input raise too."""
    model = randomise(nn.Sequential(nn.BatchNorm2d(3), SameConv(3, 8, 2, 2)))
    folded = fold(model, (torch.randn(2, 3, 32, 32),), dynamic=False)
    later = fold_input(folded, 1 / 255)
    for one in (folded.model, copy.deepcopy(folded.model), later):
        one(torch.randn(2, 3, 32, 32))
        with pytest.raises(FoldError, match=r"\(2, 3, 31, 31\), but it was folded with .*\(2, 3, 32, 32\)"):
            one(torch.randn(2, 3, 31, 31))
    fold(model, (torch.randn(2, 3, 32, 32),), dynamic=False, entrances="any").model(torch.randn(2, 3, 31, 31))


# Where a forward asks for its sizes, and a relu stands between convolution and norm for one answer alone: the sizes of
# the example, at which there is none, and sizes at which there is.
LIMIT = 23
QUESTIONS: dict[str, tuple[Callable[[Tensor], Any], tuple[int, ...]]] = {
    "small batches": (lambda x: x.shape[0] >= 7, (7, 3, 16, 16)),
    "one batch": (lambda x: x.shape[0] == 5, (5, 3, 16, 16)),
    "a batch of one": (lambda x: x.shape[0] == 1, (1, 3, 16, 16)),
    "one width": (lambda x: x.shape[-1] == 17, (2, 3, 16, 17)),
    "both sizes": (lambda x: tuple(x.shape[2:]) == (40, 24), (2, 3, 40, 24)),
    "one after the other": (lambda x: x.shape[2] < 12 and x.shape[0] == 5, (5, 3, 11, 16)),
    "sizes of each other": (lambda x: x.shape[2] > 3 * x.shape[3] + 1, (2, 3, 50, 16)),
    "all numbers": (lambda x: x.numel() > 100_000, (2, 3, 130, 130)),
    "the size of something computed": (lambda x: F.avg_pool2d(x, 2).shape[-1] == 9, (2, 3, 16, 18)),
    "a comparison with another tensor": (lambda x: F.pad(x, [0, 9]).shape[-1] == 2 * x.shape[-1], (2, 3, 16, 9)),
    "a remainder": (lambda x: x.shape[2] % 7 == 6, (2, 3, 20, 16)),
    "a plain number": (lambda x: int(x.shape[0]) == 6, (6, 3, 16, 16)),
    "the length": (lambda x: len(x) > 40, (41, 3, 16, 16)),
    "a loop": (lambda x: any(number == 6 for number in range(x.shape[0])), (7, 3, 16, 16)),
    "a constant of the module": (lambda x: len(x) == LIMIT, (23, 3, 16, 16)),
    "a function of plain numbers": (lambda x: math.gcd(x.shape[2], 10) == 10, (2, 3, 30, 16)),
    "the key of a dict": (lambda x: {6: True}.get(x.shape[0]), (6, 3, 16, 16)),
    "three sizes at once": (lambda x: x.numel() % 2 == 1, (1, 3, 15, 15)),
    "the product of two sizes": (lambda x: math.prod(x.shape[1:]) == 3 * 30 * 31, (2, 3, 30, 31)),
    "a text": (lambda x: str(x.shape[2]) == "24", (2, 3, 24, 24)),
    "quotient and remainder": (lambda x: divmod(x.shape[2], 9) == (3, 4), (2, 3, 31, 16)),
    "a size as another": (lambda x: not x.is_same_size(x.transpose(2, 3)), (2, 3, 16, 27)),
    "a pair as the key of a dict": (
        lambda x: {(90, 70): True, (1.5, 2.5): False}.get(tuple(x.shape[2:])),
        (2, 3, 90, 70),
    ),
    "the steps of a range": (lambda x: len(list(range(0, x.shape[2], 10))) == 4 > 0.5, (2, 3, 35, 35)),
    "an array of NumPy's": (lambda x: np.prod(x.shape[2:]) == 40 * 16, (2, 3, 40, 16)),
}


class Asks(nn.Module):
    """A convolution and a norm, and what a question about the input puts between them."""

    def __init__(self, question: Callable[[Tensor], Any], other: Callable[[Tensor], Tensor] = F.relu):
        super().__init__()
        self.conv, self.norm, self.question, self.other = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            question,
            other,
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(self.other(y) if self.question(x) else y)


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_about_sizes_is_answered_both_ways(name: str) -> None:
    """At sizes that no step of any scheme would try, the forward does something else: the norm stays."""
    question, shape = QUESTIONS[name]
    model = randomise(Asks(question))
    result = fold(model, (torch.randn(2, 3, 16, 16),))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert question(x)
    assert not question(torch.randn(2, 3, 16, 16))
    assert len(result.report.refused) == 1
    torch.testing.assert_close(result.model(x), model(x))


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_that_changes_nothing_costs_no_norm(name: str) -> None:
    """What is scaled by one stays right; what a forward asks, and does the same, is no reason to refuse."""
    question, shape = QUESTIONS[name]
    model = randomise(Asks(question, lambda y: y))
    result = fold(model, (torch.randn(2, 3, 16, 16),))
    assert len(result.report.folded) == 1
    torch.testing.assert_close(
        result.model(torch.zeros(shape) + 1), model(torch.zeros(shape) + 1), rtol=1e-4, atol=1e-4
    )


class Chooses(nn.Module):
    """Two convolutions of one form, one of which the norm follows, by the size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.one(x) if x.shape[0] < 7 else self.two(x))


class Returns(Chooses):
    def forward(self, x: Tensor) -> Tensor:
        one, two = self.one(x), self.two(x)
        return self.norm(one) + 0 * F.relu(two) if x.shape[0] < 7 else self.norm(two) + 0 * F.relu(one)


class SharesWeight(Chooses):
    """Two convolutions of one weight, each with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.two.weight = self.one.weight


@pytest.mark.parametrize("network", [Chooses, Returns, SharesWeight])
def test_the_same_operations_on_other_tensors_are_another_computation(network: type[nn.Module]) -> None:
    """Operations and their numbers are equal for small and large batches; what they read is not."""
    model = randomise(network())
    folded = fold(model, (torch.randn(2, 3, 8, 8),)).model
    for batch in (2, 6, 7, 8):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)


class Pyramid(nn.Module):
    """One convolution and one norm at each level, of which there are as many as the size allows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs, x = [], F.relu(x)
        while min(x.shape[2:]) >= 8:
            y = self.conv(x)
            outputs.append(self.norm(F.relu(y) if y.shape[2] == 11 else y))
            x = F.max_pool2d(x, 2)
        return outputs


def test_sizes_of_levels_are_followed_where_their_number_varies() -> None:
    """An other size has other levels, and so reads more or fewer sizes; what is asked of one is asked all the same."""
    model = randomise(Pyramid())
    folded = fold(model, (torch.randn(2, 3, 8, 8),)).model
    x = torch.randn(2, 3, 22, 22)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)


def relu_for_large(y: Tensor) -> Tensor:
    if y.size(2) > 40:
        return torch.relu(y)
    return y


def relu_where_it_fits(y: Tensor) -> Tensor:
    try:
        y.view(7, -1)
    except RuntimeError:
        return y
    return F.relu(y)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "shape"),
    [(lambda: torch.jit.script(relu_for_large), (2, 3, 44, 44)), (lambda: relu_where_it_fits, (7, 3, 16, 16))],
    ids=["compiled", "error"],
)
def test_sizes_that_are_read_unseen(make: Callable[[], Any], shape: tuple[int, ...]) -> None:
    """Compiled functions and operations that raise look at sizes, and no mode of PyTorch's sees them do it."""
    model = randomise(Unseen(make()))
    result = fold(model, (torch.randn(2, 3, 16, 16),))
    assert "sizes were looked at" in result.report.notes[-1]
    x = torch.randn(shape)
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-4, atol=1e-4)


class Unseen(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.conv, self.norm, self.function = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), [function]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.function[0](self.conv(x)))


class DoublesLarge(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if x.shape[-1] >= 30 else 1) if x.shape[-1] > 20 else super().forward(x)


def test_what_the_module_of_a_norm_does_at_another_size_stays() -> None:
    """A norm's module goes with the norm, and what it does beside it at large sizes would go as well."""
    model = randomise(nn.Sequential(nn.Conv2d(4, 6, 3), DoublesLarge(6)))
    folded = fold(model, (torch.randn(2, 4, 9, 9),)).model
    for size in (9, 21, 31, 32, 40):
        x = torch.randn(2, 4, size, size)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)


def test_only_the_norm_that_a_choice_concerns_stays() -> None:
    """A batch of one takes a relu before the first norm; the second norm is folded all the same, from any example."""

    class TwoNorms(Asks):
        def forward(self, x: Tensor) -> Tensor:
            return self.last_norm(self.last(F.relu(super().forward(x))))

    model = TwoNorms(lambda x: x.shape[0] != 1)
    model.last, model.last_norm = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
    randomise(model)
    for batch in (1, 2, 4):
        report = fold(model, (torch.randn(batch, 3, 8, 8),)).report
        assert [site.path for site in report.folded] == ["last_norm"]
        assert [site.path for site in report.refused] == ["norm"]


def test_a_graph_raises_where_the_forward_would_choose_otherwise() -> None:
    """A choice behind a norm that takes the form of a graph: a graph has one way, and says for which sizes."""
    choices: list[tuple[Callable[[Tensor], bool], int]] = [
        (lambda x: x.shape[0] == 5, 5),
        (lambda x: x.shape[0] == 1, 1),
        (lambda x: x.shape[0] >= 7, 7),
        (lambda x: x.shape[0] % 2 == 1, 3),
    ]
    for choice, other in choices:
        model = randomise(WithinForward(lambda x, y, choice=choice: y * 2 if choice(x) else y))
        result = fold(model, (torch.randn(2, 3, 8, 8),))
        assert result.report.form == "graph"
        x = torch.randn(6, 3, 8, 8)
        torch.testing.assert_close(result.model(x), model(x), rtol=1e-4, atol=1e-4)
        with pytest.raises(FoldError, match=r"axis 0 of input 0|this folded graph was read for"):
            result.model(torch.randn(other, 3, 8, 8))


def is_six(x: Tensor) -> bool:
    try:
        return x.shape[0] == 6
    except ValueError:
        return False


def test_a_question_that_cannot_be_followed_is_in_the_report() -> None:
    """What catches errors may choose by them; the report says that only some sizes were looked at."""
    model = randomise(Asks(lambda x: is_six(x), lambda y: y))
    assert "sizes were looked at" in fold(model, (torch.randn(2, 3, 8, 8),)).report.notes[-1]
    assert not fold(randomise(Asks(lambda x: x.shape[0] == 6)), (torch.randn(2, 3, 8, 8),)).report.notes


def test_the_inputs_are_left_as_they_were() -> None:
    """torch.export marks the tensors that it gets, and would take the mark for the wish of a later call."""
    x = torch.randn(2, 3, 8, 8)
    fold(randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), (x,))
    assert not vars(x)


def test_the_report_states_where_the_fold_is_proved() -> None:
    """Another size where the network accepts one, else another batch."""
    convolutions = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert fold(convolutions, (torch.randn(2, 3, 9, 8),)).report.proof.sizes == ("(2, 3, 9, 8)", "(1, 3, 10, 9)")
    flat = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)))
    report = fold(flat, (torch.randn(1, 3, 8, 8),)).report
    assert report.proof.sizes == ("(1, 3, 8, 8)", "(2, 3, 8, 8)")
    assert "proved for inputs of (1, 3, 8, 8); (2, 3, 8, 8)" in report.table()
