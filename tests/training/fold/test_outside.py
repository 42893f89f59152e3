"""A forward that chooses by what lies outside it: a norm whose place would be another one stays, all others fold."""

import collections
import contextlib
import contextvars
import dataclasses
import datetime
import enum
import functools
import logging
import os
import random
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foldserve.training.errors import FoldError
from foldserve.training.fold import fold
from foldserve.training.fold.pytorch.look import look_at_sizes
from foldserve.training.fold.pytorch.user_code import code_of
from tests.support.fold_cases import randomise

Between = Callable[[Any, Tensor], Tensor]
HERE = sys.modules[__name__]


class Colour(enum.Enum):
    RED, GREEN, BLUE = 1, 2, 3


class Side(enum.Flag):
    LEFT = enum.auto()
    RIGHT = enum.auto()


class MadeUp:
    """Its attributes are the items of a dict."""

    def __init__(self) -> None:
        self.__dict__["items"] = {"kind": "a"}

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["items"][name]
        except KeyError:
            raise AttributeError(name) from None


@dataclasses.dataclass(frozen=True)
class Frozen:
    mode: str = "a"


class Slots:
    __slots__ = ("depth",)

    def __init__(self) -> None:
        self.depth = 2


class Settings:
    fast, depth, mode = False, 2, "a"

    def __getattr__(self, name: str) -> Any:
        if name == "is_deep":
            return STAGE > 5
        raise AttributeError(name)

    @property
    def is_fast(self) -> bool:
        return FAST


Shape = collections.namedtuple("Shape", "depth mode")
FAST, PLAIN, STAGE, LEVEL, MODE, COLOUR, HOOK = False, True, 3, 0.5, "a", Colour.RED, None
NAMED, PAIR, FROZEN, SETTINGS, SLOTS, MADE_UP = Shape(2, "a"), (3, "a"), Frozen(), Settings(), Slots(), MadeUp()
OPTIONS: dict[str, Any] = {"fast": False, "mode": "a", "inner": {"depth": 1}}
FLAGS, WORDS, STEPS = [False, True], {"plain"}, [("a", 3)]
ACTIVATIONS: dict[str, Between] = {"a": lambda _, y: y, "b": lambda _, y: F.relu(y)}
DTYPE, EPS = torch.float32, 1e-5
OWN = random.Random(0)
SPACE, LINE = types.SimpleNamespace(inner=types.SimpleNamespace(depth=1)), collections.deque([1])
LAYERS, COUNTED, BYTES, BOTH = collections.ChainMap({"mode": "a"}), collections.Counter[str](), b"a", Side.LEFT
ARRAY, SCALAR, LOCAL = np.zeros(2), np.int64(3), threading.local()
IN_CONTEXT = contextvars.ContextVar("IN_CONTEXT", default=False)
LOCAL.is_fast = False
ELSEWHERE: Any = types.ModuleType("fold_settings_of_a_test")
ELSEWHERE.mode = "a"
sys.modules[ELSEWHERE.__name__] = ELSEWHERE


class Chooses(nn.Module):
    """A convolution and a norm, with a function of the input and the value between them."""

    def __init__(self, between: Between):
        super().__init__()
        self.conv, self.norm, self.between = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), between
        self.register_buffer("level", torch.tensor(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.between(x, self.conv(x)))


class ChoosesAfter(Chooses):
    """The norm comes first."""

    def forward(self, x: Tensor) -> Tensor:
        return self.between(x, self.norm(self.conv(x)))


class AsGraph(Chooses):
    """The norm first, as a call in the forward, so that the result is a graph, which has one way."""

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        y = F.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return self.between(x, y)


def chosen(asks: Callable[[Any], Any]) -> Between:
    return lambda x, y: F.relu(y) if asks(x) else y


def asked_in_a_function() -> bool:
    return not PLAIN


def stops(y: Tensor) -> Tensor:
    if FAST:
        breakpoint()
    return y


def helped(y: Tensor, mode: str) -> Tensor:
    return F.relu(y) if mode == "b" else y


def repeated(y: Tensor, times: int) -> Tensor:
    for _ in range(times - 3):
        y = F.relu(y)
    return y


def configured(y: Tensor, settings: Any) -> Tensor:
    return F.relu(y) if settings.mode == "b" else y


def matched(_: Tensor, y: Tensor) -> Tensor:
    match MODE:
        case "b":
            return F.relu(y)
        case _:
            return y


def through_locals(_: Tensor, y: Tensor) -> Tensor:
    stage = STAGE
    more = stage - 1
    return F.relu(y) if more > 10 else y


def unpacked(_: Tensor, y: Tensor) -> Tensor:
    _, mode = PAIR
    return F.relu(y) if mode == "b" else y


def imported(_: Tensor, y: Tensor) -> Tensor:
    from fold_settings_of_a_test import mode

    return F.relu(y) if mode == "b" else y


def remembered() -> tuple[Between, Callable[[bool], None]]:
    """A function that asks a variable of a closure, and one that sets it."""
    is_fast = False

    def between(_: Tensor, y: Tensor) -> Tensor:
        return F.relu(y) if is_fast else y

    def remember(value: bool) -> None:
        nonlocal is_fast
        is_fast = value

    return between, remember


def with_default(_: Tensor, y: Tensor, options: dict[str, Any] = OPTIONS) -> Tensor:
    return F.relu(y) if options["fast"] else y


def prints(_: Tensor, y: Tensor) -> Tensor:
    if FAST:
        print("fast")
        y = F.relu(y)
    return y


def decorated(function: Between) -> Between:
    @functools.wraps(function)
    def wrapped(x: Tensor, y: Tensor) -> Tensor:
        return F.relu(function(x, y)) if FAST else function(x, y)

    return wrapped


@functools.cache
def kept() -> bool:
    return bool(OPTIONS["mode"] == "b")


def elapsed(_: Tensor, y: Tensor) -> Tensor:
    start = time.perf_counter()
    y = y * 1
    return F.relu(y) if time.perf_counter() - start > 3600 else y


class Ways:
    def way_of_a(self, y: Tensor) -> Tensor:
        return y

    def way_of_other(self, y: Tensor) -> Tensor:
        return F.relu(y)

    def taken(self, y: Tensor) -> Tensor:
        return getattr(self, f"way_of_{MODE}")(y)


@functools.singledispatch
def dispatched(number: Any, y: Tensor) -> Tensor:
    return y


@dispatched.register
def _(number: int, y: Tensor) -> Tensor:
    return F.relu(y) if number > 6 else y


WAYS = Ways()
IS_REMEMBERED, REMEMBER = remembered()


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    REMEMBER(True)
    try:
        yield
    finally:
        REMEMBER(False)


@contextlib.contextmanager
def in_context() -> Iterator[None]:
    token = IN_CONTEXT.set(True)
    try:
        yield
    finally:
        IN_CONTEXT.reset(token)


def here(**values: Any) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: mock.patch.multiple(HERE, **values)


def options(**values: Any) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: mock.patch.dict(OPTIONS, values)


def environment(**values: str) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: mock.patch.dict(os.environ, values)


def patched(name: str, value: Any) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: mock.patch(name, value)


# What is chosen by, a circumstance in which it is otherwise, and words of the refusal.
KINDS: dict[str, tuple[Between, Callable[[], AbstractContextManager[Any]], str]] = {
    "a flag": (chosen(lambda _: FAST), here(FAST=True), "where FAST is True"),
    "a flag in a function": (chosen(lambda _: asked_in_a_function()), here(PLAIN=False), "where PLAIN is False"),
    "a flag of a class": (
        chosen(lambda _: Settings.fast),
        lambda: mock.patch.object(Settings, "fast", True),
        "where Settings.fast is True",
    ),
    "a flag as an index": (lambda _, y: [torch.clone, F.relu][FAST](y), here(FAST=True), "FAST is True"),
    "a flag in a decorator": (decorated(lambda _, y: y), here(FAST=True), "FAST is True"),
    "a flag of a function that prints": (prints, here(FAST=True), "FAST is True"),
    "a number": (chosen(lambda _: STAGE > 5), here(STAGE=9), "STAGE is"),
    "a number by its rest": (chosen(lambda _: STAGE % 2 == 0), here(STAGE=8), "STAGE is 4"),
    "a number through locals": (through_locals, here(STAGE=20), "STAGE is"),
    "a number as an index": (
        lambda _, y: [torch.neg, torch.neg, F.relu, torch.clone][STAGE](y),
        here(STAGE=2),
        "STAGE is 2",
    ),
    "a number of layers": (lambda _, y: repeated(y, STAGE), here(STAGE=4), "STAGE is"),
    "a number of a lambda": (lambda _, y: (lambda n: F.relu(y) if n > 4 else y)(STAGE), here(STAGE=5), "STAGE is"),
    "a fraction": (chosen(lambda _: LEVEL > 0.75), here(LEVEL=0.8), "LEVEL is"),
    "a text": (chosen(lambda _: MODE == "b"), here(MODE="b"), "MODE is 'b'"),
    "any other text": (chosen(lambda _: MODE != "a"), here(MODE="c"), "MODE is"),
    "the length of a text": (chosen(lambda _: len(MODE) > 4), here(MODE="abcde"), "MODE is"),
    "a text that is passed on": (lambda _, y: helped(y, MODE), here(MODE="b"), "MODE is 'b'"),
    "a text in a partial": (lambda _, y: functools.partial(helped, mode=MODE)(y), here(MODE="b"), "MODE is 'b'"),
    "a text in match": (matched, here(MODE="b"), "MODE is 'b'"),
    "a key": (lambda x, y: ACTIVATIONS[MODE](x, y), here(MODE="b"), "MODE is 'b'"),
    "a key of get": (lambda _, y: {"b": F.relu}.get(MODE, torch.clone)(y), here(MODE="b"), "MODE is 'b'"),
    "a member": (chosen(lambda _: COLOUR is Colour.BLUE), here(COLOUR=Colour.BLUE), "COLOUR is"),
    "nothing": (lambda _, y: y if HOOK is None else F.relu(y), here(HOOK=True), "HOOK is"),
    "a function that may come": (lambda _, y: HOOK(y) if HOOK else y, here(HOOK=torch.tanh), "HOOK is"),
    "an option": (chosen(lambda _: OPTIONS["fast"]), options(fast=True), "OPTIONS['fast'] is True"),
    "an option inside": (
        chosen(lambda _: OPTIONS["inner"]["depth"] > 1),
        lambda: mock.patch.dict(OPTIONS["inner"], depth=2),
        "OPTIONS['inner']['depth'] is 2",
    ),
    "an option that is not there": (chosen(lambda _: OPTIONS.get("new")), options(new=True), "OPTIONS['new'] is"),
    "whether there is an option": (chosen(lambda _: "new" in OPTIONS), options(new=1), "OPTIONS['new'] is"),
    "an option that is passed on": (lambda x, y: with_default(x, y, OPTIONS), options(fast=True), "is True"),
    "a default that may change": (with_default, options(fast=True), "is True"),
    "an item": (chosen(lambda _: FLAGS[0]), lambda: mock.patch.object(HERE, "FLAGS", [True, True]), "FLAGS[0]"),
    "an item of an item": (chosen(lambda _: any(n > 3 for _, n in STEPS)), here(STEPS=[("a", 4)]), "STEPS[0][1]"),
    "a member of a set": (chosen(lambda _: "fast" in WORDS), here(WORDS={"fast"}), "'fast' in WORDS is True"),
    "a part of a pair": (unpacked, here(PAIR=(3, "b")), "PAIR[1] is 'b'"),
    "a part with a name": (chosen(lambda _: NAMED.mode == "b"), here(NAMED=Shape(2, "b")), "NAMED.mode is 'b'"),
    "of an object": (chosen(lambda _: SLOTS.depth > 2), lambda: mock.patch.object(SLOTS, "depth", 3), "SLOTS.depth"),
    "of a frozen object": (chosen(lambda _: FROZEN.mode == "b"), here(FROZEN=Frozen("b")), "FROZEN.mode is 'b'"),
    "of an object that is passed on": (lambda _, y: configured(y, FROZEN), here(FROZEN=Frozen("b")), "mode is 'b'"),
    "a property": (chosen(lambda _: SETTINGS.is_fast), here(FAST=True), "FAST is True"),
    "what __getattr__ gives": (chosen(lambda _: SETTINGS.is_deep), here(STAGE=6), "STAGE is"),
    "getattr": (
        chosen(lambda _: getattr(SETTINGS, "fast", 0)),
        lambda: mock.patch.object(Settings, "fast", True),
        "fast is True",
    ),
    "of a module": (
        chosen(lambda _: ELSEWHERE.mode == "b"),
        lambda: mock.patch.object(ELSEWHERE, "mode", "b"),
        "ELSEWHERE.mode is 'b'",
    ),
    "of a module that is imported late": (imported, lambda: mock.patch.object(ELSEWHERE, "mode", "b"), "mode is 'b'"),
    "a variable of a closure": (IS_REMEMBERED, remembering, "is_fast is True"),
    "two things at once": (
        chosen(lambda _: FAST and MODE == "b"),
        here(FAST=True, MODE="b"),
        "where FAST is True and MODE is 'b'",
    ),
    "a dtype of a global": (chosen(lambda _: DTYPE is torch.float16), here(DTYPE=torch.float16), "DTYPE is"),
    "a flag at a size": (
        lambda x, y: F.relu(y) if FAST and x.shape[0] > 1 else y,
        here(FAST=True),
        "where FAST is True",
    ),
    "the end of a name": (lambda _, y: WAYS.taken(y), here(MODE="other"), "MODE is 'other'"),
    "a part of a text": (chosen(lambda _: f"{MODE}-2" == "b-2"), here(MODE="b"), "MODE is 'b'"),
    "bytes": (chosen(lambda _: BYTES == b"b"), here(BYTES=b"b"), "BYTES is b'b'"),
    "a number or nothing": (chosen(lambda _: STAGE is None), here(STAGE=None), "STAGE is None"),
    "a logarithm": (chosen(lambda _: np.log2(STAGE) > 5), here(STAGE=64), "STAGE is"),
    "a kind": (chosen(lambda _: isinstance(STAGE, str)), here(STAGE="3"), "STAGE is ''"),
    "members together": (chosen(lambda _: Side.RIGHT in BOTH), here(BOTH=Side.LEFT | Side.RIGHT), "BOTH is"),
    "a number of NumPy": (chosen(lambda _: SCALAR > 5), here(SCALAR=np.int64(6)), "SCALAR is"),
    "an item of an array": (chosen(lambda _: ARRAY[0] > 5), here(ARRAY=np.full(2, 9.0)), "ARRAY[0] is"),
    "in a namespace": (
        chosen(lambda _: SPACE.inner.depth > 1),
        lambda: mock.patch.object(SPACE.inner, "depth", 2),
        "SPACE.inner.depth is 2",
    ),
    "in a deque": (chosen(lambda _: LINE[0] > 1), here(LINE=collections.deque([2])), "LINE[0] is 2"),
    "in a chain of dicts": (
        chosen(lambda _: LAYERS["mode"] == "b"),
        lambda: mock.patch.dict(LAYERS.maps[0], mode="b"),
        "LAYERS['mode'] is 'b'",
    ),
    "in a counter": (chosen(lambda _: COUNTED["calls"] > 3), lambda: mock.patch.dict(COUNTED, calls=4), "COUNTED["),
    "of a thread": (chosen(lambda _: LOCAL.is_fast), lambda: mock.patch.object(LOCAL, "is_fast", True), "is_fast is"),
    "of a context": (chosen(lambda _: IN_CONTEXT.get()), in_context, "IN_CONTEXT.get is"),
    "an attribute that is made up": (
        chosen(lambda _: MADE_UP.kind == "b"),
        lambda: mock.patch.dict(vars(MADE_UP)["items"], kind="b"),
        "is 'b'",
    ),
    "the kind of an argument": (lambda _, y: dispatched(STAGE, y), here(STAGE=8), "STAGE is"),
    "threads": (
        chosen(lambda _: torch.get_num_threads() > 1000),
        patched("torch.get_num_threads", lambda: 1001),
        "torch.get_num_threads() is",
    ),
    "environ": (chosen(lambda _: os.environ.get("FOLD_FAST")), environment(FOLD_FAST="1"), "FOLD_FAST of the env"),
    "getenv": (chosen(lambda _: os.getenv("FOLD_FAST")), environment(FOLD_FAST="1"), "FOLD_FAST of the environment"),
    "in environ": (chosen(lambda _: "FOLD_FAST" in os.environ), environment(FOLD_FAST="0"), "FOLD_FAST of the env"),
    "a text of it": (
        chosen(lambda _: os.environ.get("FOLD_MODE", "slow") == "fast"),
        environment(FOLD_MODE="fast"),
        "where FOLD_MODE of the environment is 'fast'",
    ),
    "the clock": (chosen(lambda _: time.time() < 5), patched("time.time", lambda: 1.0), "clock stands at 1970"),
    "what time has passed": (elapsed, patched("time.perf_counter", iter(range(0, 10**9, 9999)).__next__), "leaps"),
    "the date": (
        chosen(lambda _: datetime.date.today().year < 2000),
        patched("datetime.date", mock.Mock(today=lambda: datetime.datetime(1999, 1, 1))),
        "clock stands at 1970",
    ),
    "chance": (chosen(lambda _: random.random() < 0.01), patched("random.random", lambda: 0.0), "when chance gives 0"),
    "chance of NumPy": (chosen(lambda _: np.random.rand() > 0.99), patched("numpy.random.rand", lambda: 1.0), "chance"),
    "a way that is drawn": (
        lambda _, y: y if random.randint(0, 99) else F.relu(y),
        patched("random.randint", lambda *_: 0),
        "when chance gives 0",
    ),
    "the default dtype": (
        chosen(lambda _: torch.get_default_dtype() is torch.half),
        patched("torch.get_default_dtype", lambda: torch.half),
        "get_default_dtype() is torch.float16",
    ),
    "whether there is a GPU": (
        chosen(lambda _: torch.cuda.is_available() is not torch.cuda._is_compiled()),
        patched("torch.cuda.is_available", lambda: not torch.cuda._is_compiled()),
        "torch.cuda.is_available() is",
    ),
    "autocast of a GPU": (
        chosen(lambda _: torch.is_autocast_enabled()),
        patched("torch.is_autocast_enabled", lambda: True),
        "under autocast",
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_norm_whose_place_is_decided_outside_stays(name: str) -> None:
    """Another value is tried, named in the refusal, and put back; the result is right with that value too."""
    between, otherwise, words = KINDS[name]
    before = copied()
    model, x = randomise(Chooses(between)), torch.randn(2, 3, 8, 8)
    result = fold(model, (x,))
    assert not result.report.folded
    assert words in result.report.refused[0].reason
    assert copied() == before
    assert not {"FOLD_FAST", "FOLD_MODE"} & set(os.environ)
    assert_same(model, result.model, x, otherwise)


@pytest.mark.parametrize("name", KINDS)
def test_a_choice_behind_a_norm_costs_no_norm(name: str) -> None:
    """The place of the norm is the same in every circumstance, and so are the numbers."""
    between, otherwise, _ = KINDS[name]
    model, x = randomise(ChoosesAfter(between)), torch.randn(2, 3, 8, 8)
    result = fold(model, (x,))
    assert len(result.report.folded) == 1
    assert not result.report.notes
    assert_same(model, result.model, x, otherwise)


@pytest.mark.parametrize("name", ["a number", "a text", "an option", "two things at once", "the clock", "chance"])
def test_a_graph_of_a_choice_outside_is_refused(name: str) -> None:
    """It would go one way whatever lies outside."""
    with pytest.raises(FoldError, match="the folded form of it cannot follow"):
        fold(randomise(AsGraph(KINDS[name][0])), (torch.randn(2, 3, 8, 8),))


def copied() -> tuple[Any, ...]:
    """What the cases choose by, as it is now."""
    held = {name: vars(HERE)[name] for name in vars(HERE) if name.isupper() and name not in ("KINDS", "HERE")}
    kinds = (vars(Settings)["fast"], SLOTS.depth, ELSEWHERE.mode, time.time, datetime.date, torch.cuda.is_available)
    return repr(held), kinds, random.getstate(), "print" in vars(HERE)


def assert_same(
    model: nn.Module, folded: nn.Module, x: Tensor, otherwise: Callable[[], AbstractContextManager[Any]]
) -> None:
    """The numbers are the same as things are, and otherwise."""
    for circumstance in (contextlib.nullcontext, otherwise):
        kept.cache_clear()
        outputs = []
        for one in (model, folded):
            with circumstance(), torch.no_grad():
                random.seed(0)
                np.random.seed(0)
                outputs.append(one(x))
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


CACHED = (chosen(lambda _: kept()), options(mode="b"))


@pytest.mark.parametrize("is_called_before", [True, False])
def test_what_a_function_keeps_hides_nothing(is_called_before: bool) -> None:
    """A function that keeps what it returned is asked anew while another value is tried, and keeps it afterwards."""
    kept.cache_clear()
    if is_called_before:
        kept()
    report = fold(randomise(Chooses(CACHED[0])), (torch.randn(2, 3, 8, 8),)).report
    assert not report.folded
    assert "OPTIONS['mode'] is 'b'" in report.refused[0].reason
    assert not kept()


SAID: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a dtype": (lambda x: x.dtype == torch.float16, "dtype is torch.float16"),
    "one of some dtypes": (lambda x: (dtype := x.dtype) in (torch.half, torch.bfloat16) and dtype, "torch.float16"),
    "on a GPU": (lambda x: x.is_cuda, "device is cuda"),
    "the type of a device": (lambda x: x.device.type != "cpu", "device is cuda"),
    "not under a mode": (lambda x: not torch.overrides.has_torch_function((x,)), "has_torch_function() is False"),
}


@pytest.mark.parametrize("name", SAID)
def test_a_norm_stays_whose_place_is_decided_by_what_tensors_say(name: str) -> None:
    """Tensors say another dtype or device to the user's code, which computes in the true one all the same."""
    asks, words = SAID[name]
    model, x = randomise(Chooses(chosen(asks))), torch.randn(2, 3, 8, 8)
    result = fold(model, (x,))
    assert not result.report.folded
    assert words in result.report.refused[0].reason
    for dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            outputs = [one.to(dtype)(x.to(dtype)) for one in (model, result.model)]
        torch.testing.assert_close(*outputs)
    assert len(fold(randomise(ChoosesAfter(chosen(asks))), (x,)).report.folded) == 1


class Holds(Chooses):
    """It holds an object with a number and a text, which are parts of it, as weights are."""

    def __init__(self) -> None:
        super().__init__(lambda _, y: y)
        self.settings, self.depth = {"mode": "a", "of": Slots()}, 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.settings["mode"] == "b" or self.settings["of"].depth > 2 or self.depth > 1:
            y = F.relu(y)
        return self.norm(y)


def test_what_a_model_holds_is_a_part_of_it() -> None:
    """The fold is of the model as it is; its copy holds what it held, and follows no change of the original."""
    model, x = randomise(Holds()), torch.randn(2, 3, 8, 8)
    result = fold(model, (x,))
    assert len(result.report.folded) == 1
    with torch.no_grad():
        before = model(x)
        model.settings["mode"], model.settings["of"].depth, model.depth = "b", 3, 2
        torch.testing.assert_close(result.model(x), before, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(model(x), before, atol=1e-2)


class Shared(Chooses):
    """Its class has a flag, which copies of the model share."""

    is_fast = False

    def __init__(self) -> None:
        super().__init__(lambda _, y: y)
        self.kind = Settings

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(F.relu(y) if self.is_fast or self.kind.depth > 5 else y)


def test_what_copies_of_a_model_share_is_outside() -> None:
    """Attributes of its class, and of a class that it holds, may change for both."""
    report = fold(randomise(Shared()), (torch.randn(2, 3, 8, 8),)).report
    assert not report.folded
    assert "Shared.is_fast is True" in report.refused[0].reason


def with_mode(mode: str, is_fast: bool = False) -> Between:
    def between(_: Tensor, y: Tensor) -> Tensor:
        return F.relu(y) if mode == "b" or is_fast else y

    return between


def test_a_variable_of_a_closure_that_is_set_once_is_code() -> None:
    """Nothing gives it another value, as nothing does of a literal: a factory of networks costs no norm."""
    model, x = randomise(Chooses(with_mode("a"))), torch.randn(2, 3, 8, 8)
    assert len(fold(model, (x,)).report.folded) == 1
    assert not fold(randomise(Chooses(with_mode("b"))), (x,)).report.folded


class Draws(Chooses):
    def __init__(self, own: Any) -> None:
        super().__init__(lambda _, y: y)
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(F.relu(y) if (self.own or OWN).random() < 0.5 else y)


@pytest.mark.parametrize("own", [None, random.Random(1), np.random.RandomState(1), np.random.default_rng(1)])
def test_a_choice_by_a_generator_of_its_own_cannot_be_judged(own: Any) -> None:
    """Each call moves it on, wherever the generator is held."""
    report = fold(randomise(Draws(own)), (torch.randn(2, 3, 8, 8),)).report
    assert not report.folded
    assert "a generator of its own" in report.refused[0].reason


NOTED: dict[str, tuple[Between, str]] = {
    "a flag that would stop the program": (lambda _, y: stops(y), "FAST"),
    "a logger": (chosen(lambda _: logging.getLogger("fold").isEnabledFor(1)), "the level of a logger"),
    "a file": (chosen(lambda _: os.path.exists("fast")), "os.path.exists()"),
    "numbers that nothing repeats": (chosen(lambda _: os.urandom(1) == b""), "os.urandom()"),
    "whether numbers are floating-point": (chosen(lambda x: not x.is_floating_point()), "is_floating_point"),
}


@pytest.mark.parametrize("name", NOTED)
def test_what_cannot_be_tried_is_named_in_the_report(name: str) -> None:
    """The fold is of what is now, and says so."""
    between, words = NOTED[name]
    report = fold(randomise(Chooses(between)), (torch.randn(2, 3, 8, 8),)).report
    assert len(report.folded) == 1
    (note,) = report.notes
    assert words in note
    assert "what is proved holds for that as it is now" in note


def normed(x: Tensor, norm: nn.BatchNorm2d, eps: float) -> Tensor:
    mean, var = (one.reshape(1, -1, 1, 1) for one in (norm.running_mean, norm.running_var))
    return (x - mean) / torch.sqrt(var + eps)


class ByHand(Chooses):
    def forward(self, x: Tensor) -> Tensor:
        return normed(self.conv(x), self.norm, EPS)


SILENT: dict[str, Callable[[], nn.Module]] = {
    "a constant": lambda: Chooses(lambda _, y: y + EPS - EPS),
    "a constant that is passed on": lambda: ByHand(lambda _, y: y),
    "a flag that changes no place": lambda: Chooses(lambda _, y: y * 1 if FAST else y),
    "a text that only one way accepts": lambda: Chooses(lambda _, y: {"a": y}[MODE]),
    "a dtype that is passed on": lambda: Chooses(lambda x, y: y.to(x.dtype)),
    "a measured time": lambda: Chooses(lambda _, y: y if time.time() > 5 else y * 1),
}


@pytest.mark.parametrize("name", SILENT)
def test_what_chooses_no_place_costs_nothing(name: str) -> None:
    """No norm, and no word in the report."""
    report = fold(randomise(SILENT[name]()), (torch.randn(2, 3, 8, 8),)).report
    assert len(report.folded) == 1
    assert not report.notes


AXES = (2, 3, 4)


def test_a_table_of_constants_costs_no_run() -> None:
    """What a number of the input is looked up in is a constant, as a literal is, also where it has a name."""
    assert not code_of(Chooses(lambda x, y: y if x.ndim in AXES else F.relu(y))).outside.all
    assert code_of(Chooses(lambda _, y: y if STAGE in AXES else F.relu(y))).outside.values


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
