"""A forward that chooses by a global, the environment, the clock or a dtype: folded right, refused, or named."""

import datetime
import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldserve.training.fold import fold
from foldserve.training.fold.pytorch.look import look_at_sizes
from tests.support.fold_cases import randomise

FAST, PLAIN, LIMIT, MODE, EPS = False, True, 3, "exact", 1e-5


class Settings:
    fast = False


class Chooses(nn.Module):
    """A convolution and a norm, with a function of the input and the value between them."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.conv, self.norm, self.between = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), between
        self.register_buffer("level", torch.tensor(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.between(x, self.conv(x)))


def asked_in_a_function() -> bool:
    return not PLAIN


def stops(y: Tensor) -> Tensor:
    if FAST:
        breakpoint()
    return y


STAYS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "a flag": (lambda _, y: F.relu(y) if FAST else y, "where FAST is True"),
    "a flag in a function": (lambda _, y: F.relu(y) if asked_in_a_function() else y, "where PLAIN is False"),
    "a flag of a class": (lambda _, y: F.relu(y) if Settings.fast else y, "where Settings.fast is True"),
    "a flag at a size": (lambda x, y: F.relu(y) if FAST and x.shape[0] > 4 else y, "where FAST is True"),
    "environ": (lambda _, y: F.relu(y) if os.environ.get("FOLD_FAST") else y, "where FOLD_FAST of the environment"),
    "getenv": (lambda _, y: F.relu(y) if os.getenv("FOLD_FAST") else y, "where FOLD_FAST of the environment"),
    "in environ": (lambda _, y: F.relu(y) if "FOLD_FAST" in os.environ else y, "where FOLD_FAST of the environment"),
    "a text of it": (
        lambda _, y: F.relu(y) if os.environ.get("FOLD_MODE", "slow") == "fast" else y,
        "where FOLD_MODE of the environment is 'fast'",
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_a_norm_whose_place_a_global_decides_stays(name: str) -> None:
    """The other value is tried, named in the refusal, and put back."""
    between, words = STAYS[name]
    report = fold(randomise(Chooses(between)), (torch.randn(2, 3, 16, 16),)).report
    assert not report.folded
    assert words in report.refused[0].reason
    assert (FAST, PLAIN, Settings.fast) == (False, True, False)
    assert not {"FOLD_FAST", "FOLD_MODE"} & set(os.environ)


NAMED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "the clock": (lambda _, y: F.relu(y) if time.time() < 5 else y, "time.time()"),
    "the date": (lambda _, y: F.relu(y) if datetime.datetime.now().year < 2000 else y, "datetime.datetime.now()"),
    "chance": (lambda _, y: F.relu(y) if random.random() < 0 else y, "random.random()"),
    "a number": (lambda _, y: F.relu(y) if LIMIT > 5 else y, "LIMIT (3)"),
    "a text": (lambda _, y: F.relu(y) if MODE == "fast" else y, "MODE ('exact')"),
    "a dtype": (lambda x, y: F.relu(y) if x.dtype == torch.float16 else y, "the dtype of a tensor"),
    "the default dtype": (lambda _, y: F.relu(y) if torch.get_default_dtype() is torch.half else y, "default_dtype"),
    "a flag that would stop the program": (lambda _, y: stops(y), "FAST"),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_cannot_be_tried_is_named_in_the_report(name: str) -> None:
    """The fold is of what is now, and says so."""
    between, words = NAMED[name]
    report = fold(randomise(Chooses(between)), (torch.randn(2, 3, 16, 16),)).report
    assert len(report.folded) == 1
    (note,) = report.notes
    assert words in note
    assert "what is proved holds for that as it is now" in note


SILENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a constant": lambda _, y: y + EPS - EPS,
    "a flag that changes no place": lambda _, y: y * 1 if FAST else y,
    "a dtype that is passed on": lambda x, y: y.to(x.dtype),
    "a measured time": lambda _, y: y,
}


@pytest.mark.parametrize("name", SILENT)
def test_what_chooses_nothing_costs_nothing(name: str) -> None:
    """No norm, and no word in the report."""
    report = fold(randomise(Chooses(SILENT[name])), (torch.randn(2, 3, 16, 16),)).report
    assert len(report.folded) == 1
    assert not report.notes


class AsksValues(Chooses):
    """It runs on no tensor without values."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(F.relu(y) if x.shape[0] > 4 else y) * self.between(x, y)


VALUES: dict[str, Callable[[Any, Tensor], Any]] = {
    "item": lambda x, _: x.mean().item(),
    "nonzero": lambda x, _: (x > 0).nonzero().shape[0],
    "a mask": lambda x, _: x[x > 0].mean(),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_batch_counts_where_a_model_needs_values(name: str) -> None:
    """Its sizes are looked at with the values of the example."""
    report = fold(randomise(AsksValues(VALUES[name])), (torch.randn(2, 3, 8, 8),)).report
    assert not report.folded
    assert "activation relu" in report.refused[0].reason


class Writes(Chooses):
    def __init__(self) -> None:
        super().__init__(lambda _, y: y)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean().item()
        self.scale[...].add_(1)
        return super().forward(x) * mean * self.scale


def test_a_look_with_values_writes_into_no_parameter() -> None:
    """Copies share parameters with the user's model; what would write into one is not run on values."""
    model = randomise(Writes())
    before = model.scale.detach().clone()
    look_at_sizes(model, (torch.randn(2, 3, 8, 8),))
    assert torch.equal(model.scale, before)
