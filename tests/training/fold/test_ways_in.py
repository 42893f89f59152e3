"""Ways into a folded network beside its methods: what goes on later, its class in the hands of others, tracers."""

import asyncio
import functools
import io
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foldserve.training.errors import FoldError
from foldserve.training.fold import fold
from tests.support.fold_cases import randomise

X = torch.randn((4, 8), generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Reads the value between layer and norm in ways that are no plain method."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6)), nn.Linear(6, 3)

    def steps(self, x: Tensor) -> Iterator[Tensor]:
        for layer in self.stem:
            x = layer(x)
            yield x

    async def later(self, x: Tensor) -> Tensor:
        await asyncio.sleep(0)
        return self.stem[0](x)

    def scaled(self, factor: float, x: Tensor) -> Tensor:
        return self.stem[0](x) * factor

    twice = functools.partialmethod(scaled, 2.0)

    @property
    def kernel(self) -> Tensor:
        return self.stem[0].weight

    @functools.cached_property
    def kernel_norm(self) -> Tensor:
        return self.stem[0].weight.norm()

    @staticmethod
    def of(network: "Network", x: Tensor) -> Tensor:
        return network.stem[0](x)

    def forward(self, x: Tensor, features: bool = False) -> Tensor:
        y = self.stem(x)
        return y if features else self.head(y)


def make(cls: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(0)
    return randomise(cls())


def folded(cls: Callable[[], nn.Module]) -> Any:
    return fold(make(cls), (X,)).model


LATER: dict[str, Callable[[Any], Any]] = {
    "a generator": lambda model: list(model.steps(X)),
    "a generator that is asked to go on": lambda model: next(model.steps(X)),
    "a coroutine": lambda model: asyncio.run(model.later(X)),
    "a partial method": lambda model: model.twice(X),
}


@pytest.mark.parametrize("name", LATER)
def test_what_computes_later_raises_too(name: str) -> None:
    """A generator computes when it is asked for a value: the watch over the call that made it saw nothing."""
    LATER[name](make(Network))
    with pytest.raises(FoldError, match=r"of a folded network reads 'stem\.0\."):
        LATER[name](folded(Network))


class Steps(Network):
    """Its forward goes through its generator."""

    def forward(self, x: Tensor, features: bool = False) -> Tensor:
        return list(self.steps(x))[-1]


def test_generators_are_open_inside_the_forward() -> None:
    """They give what they gave, and send and return pass through the watch."""
    assert torch.allclose(folded(Steps)(X), make(Steps)(X), atol=1e-5)


class Sends(Network):
    def conversation(self) -> Iterator[int]:
        got = yield self.stem[0].weight.numel()
        return got + 1  # type: ignore[return-value]


def test_what_a_generator_is_sent_and_returns_passes_through() -> None:
    """One that computes nothing of other values is not in the way of anybody."""
    talk: Any = folded(Sends).conversation()
    assert next(talk) == 48
    with pytest.raises(StopIteration) as end:
        talk.send(1)
    assert end.value.value == 2


def test_properties_and_static_methods_are_named() -> None:
    """A property by its name alone; it cannot be given a value, so it stays open, as a static method does."""
    report = fold(make(Network), (X,)).report
    assert set(report.entrances) == {
        "forward(features=...)",
        "kernel",
        "kernel_norm",
        "later()",
        "of()",
        "scaled()",
        "steps()",
        "twice()",
    }


class Listed(Network):
    """Keeps a list of the classes below it, as model registries do."""

    below: dict[str, type]

    def __init_subclass__(cls, *, name: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        Listed.below[name] = cls


Listed.below = {}


class OfMetaclass(type):
    """Keeps a list of its classes."""

    made: list[str]

    def __new__(cls, name: str, bases: tuple[type, ...], defined: dict[str, Any]) -> "OfMetaclass":
        OfMetaclass.made.append(name)
        return super().__new__(cls, name, bases, defined)


OfMetaclass.made = []


class Made(Network, metaclass=OfMetaclass):
    pass


class Final(Network):
    """Lets nobody derive from it."""

    def __init_subclass__(cls) -> None:
        raise TypeError("final")


class Frozen(Network):
    """Lets nobody set anything once it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["is_made"] = True

    def __setattr__(self, name: str, value: object) -> None:
        if "is_made" in vars(self) and name != "training":
            raise AttributeError("frozen")
        super().__setattr__(name, value)


@pytest.mark.parametrize("cls", [Listed, Made, Final, Frozen])
def test_the_class_of_the_user_is_asked_nothing(cls: type[Network]) -> None:
    """Its lists hold what they held, and it forbids nothing: guards are no class of the user's."""
    before = dict(Listed.below), list(OfMetaclass.made)
    model = folded(cls)
    assert (Listed.below, OfMetaclass.made) == before
    assert isinstance(model, cls)
    assert torch.allclose(model(X), make(cls)(X), atol=1e-5)
    with pytest.raises(FoldError):
        model(X, True)


def test_a_new_network_of_the_class_of_a_folded_one_is_a_usual_one() -> None:
    """`type(model)()` as copies by hand make it: nothing in it is folded, so nothing is refused."""
    new = make(type(folded(Network)))
    assert torch.equal(new(X, True), make(Network)(X, True))
    assert torch.equal(new.twice(X), make(Network).twice(X))
    assert asyncio.run(new.later(X)).shape == (4, 6)
    assert new.train().training
    new.load_state_dict(make(Network).state_dict())


def exported(model: nn.Module) -> Any:
    stream = io.BytesIO()
    torch.onnx.export(model, (X,), stream, dynamo=False)
    return stream.getvalue()


class Plain(Network):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.head(self.stem(x))


@pytest.mark.filterwarnings("ignore")
def test_tracers_go_through_the_guards() -> None:
    """The older ONNX exporter makes a tensor of a default, and torch.fx gives a stand-in for a tensor."""
    assert exported(folded(Network)) != b""
    graph = torch.fx.symbolic_trace(folded(Plain))
    assert torch.allclose(graph(X), make(Plain)(X), atol=1e-5)
    with pytest.raises(FoldError, match="features=True"):
        torch.jit.trace(folded(Network), (X, torch.tensor(True)))


@pytest.mark.parametrize("is_strict", [True, False])
def test_weights_of_the_original_are_refused(is_strict: bool) -> None:
    """With strict=False they were taken without the norms: other numbers, and not a word."""
    model, weights = folded(Network), make(Network).state_dict()
    for one, values in ((model, weights), (nn.Sequential(model), {f"0.{name}": w for name, w in weights.items()})):
        with pytest.raises(FoldError, match=r"'(0\.)?stem\.1\.weight', of a norm .* fold it again"):
            one.load_state_dict(values, strict=is_strict)
    model.load_state_dict(folded(Network).state_dict(), strict=is_strict)
    model.load_state_dict({"head.bias": torch.zeros(3), "other": torch.zeros(1)}, strict=False)


def test_a_forward_that_was_set_on_the_network_takes_its_own_arguments() -> None:
    """It has another signature than the class, and is found before it: a graph keeps to the way that was traced."""
    model = make(Plain)
    model.forward = types.MethodType(lambda self, x, factor: self.head(self.stem(x)) * factor, model)  # type: ignore[method-assign]
    result = fold(model, (X, 2.0))
    assert [site.path for site in result.report.folded] == ["stem.1"]
    assert torch.allclose(result.model(X, 2.0), model(X, 2.0), atol=1e-5)
    with pytest.raises(FoldError, match=r"factor=3\.0"):
        result.model(X, 3.0)
