"""A folded network is promised for the forward that was traced; where it would give other numbers, it raises."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from foldserve.training.errors import FoldError
from foldserve.training.fold import fold, fold_input, verify
from tests.support.fold_cases import randomise

X = torch.randn((4, 8), generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Has a flag, other methods and an auxiliary head that read the value between layer and norm."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.n, self.o, self.aux = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3), nn.Linear(6, 2)

    def embed(self, x: Tensor) -> Tensor:
        return self.f(x)

    def normalise(self, x: Tensor) -> Tensor:
        return self.n(x)

    def by_hand(self, x: Tensor) -> Tensor:
        return x @ getattr(self, "f").weight.t()

    def head(self, x: Tensor) -> Tensor:
        return self.o(x)

    def predict(self, x: Tensor) -> Tensor:
        return self(x).argmax(1)

    def size(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def save(self, path: Any) -> None:
        torch.save(self.state_dict(), path)

    def load(self, path: Any) -> None:
        self.load_state_dict(torch.load(path))

    def forward(self, x: Tensor, features: bool = False) -> Any:
        y = self.embed(x)
        if features:
            return y
        out = self.o(self.n(y).relu())
        return (out, self.aux(y)) if self.training else out


def network() -> Network:
    torch.manual_seed(0)
    return randomise(Network())  # type: ignore[return-value]


def other_ways(model: Any) -> dict[str, Callable[[], Any]]:
    return {
        "flag": lambda: model(X, features=True),
        "flag by position": lambda: model(X, True),
        "embed": lambda: model.embed(X),
        "by_hand": lambda: model.by_hand(X),
        "normalise": lambda: model.normalise(torch.randn(4, 6)),
        "train": model.train,
    }


def require_guards(model: Any) -> None:
    assert torch.allclose(model(X), network()(X), atol=1e-5)
    for way in other_ways(model).values():
        with pytest.raises(FoldError, match=r'entrances="any"'):
            way()
    assert not any(module.training for module in model.modules())


def test_other_ways_raise_and_are_named() -> None:
    """A flag, a method, a weight that is read in a roundabout way, the norm alone, and training mode."""
    result = fold(network(), (X,))
    require_guards(result.model)
    assert result.report.entrances == ("forward(features=...)", "by_hand()", "embed()", "normalise()")
    assert "embed()" in str(result.report)
    assert isinstance(result.model, Network)
    assert type(result.model).__name__ == "Network"


def test_what_reads_no_changed_weight_stays_open() -> None:
    """Other layers, the traced way itself, counting, saving and loading; eval mode is never refused."""
    model, expected = fold(network(), (X,)).model, network()
    hidden = torch.randn(2, 6)
    assert torch.equal(model.head(hidden), expected.head(hidden))
    assert torch.equal(model.predict(X), expected.predict(X))
    assert model.size() == expected.size() - 12
    state = io.BytesIO()
    model.save(state)
    state.seek(0)
    model.load(state)
    assert model.train(False) is model
    assert model.eval() is model


def test_any_leaves_all_ways_open() -> None:
    """The user says that it is meant; the report still names them."""
    result = fold(network(), (X,), entrances="any")
    assert type(result.model) is Network
    assert torch.equal(result.model.embed(X), result.model.f(X))
    assert result.model.train().training
    assert "embed()" in result.report.entrances
    with pytest.raises(FoldError, match='entrances is \'all\'; expected "traced" or "any"'):
        fold(network(), (X,), entrances="all")


def test_a_traced_flag_is_the_one_that_is_promised() -> None:
    """Folded with features=True nothing is in the way of features, and the other path raises."""
    net = network()
    net.n = nn.Identity()
    net.f = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))
    model = fold(randomise(net), {"x": X, "features": True}).model
    assert torch.allclose(model(x=X, features=True), net(X, True), atol=1e-5)
    with pytest.raises(FoldError, match="features=False, but it was folded with features=True"):
        model(X)


def test_a_tensor_of_another_rank_raises() -> None:
    """Behind a linear layer (N, C, L) is another norm than (N, C); with C == L it would be silent."""
    model = fold(randomise(nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))), (X,)).model
    with pytest.raises(FoldError, match="a tensor of 3 axes"):
        model(torch.randn(2, 6, 8))


def test_a_network_without_folded_norms_has_no_guards() -> None:
    """Nothing changed, so nothing can be other than before."""
    model = fold(nn.Sequential(nn.Linear(8, 6), nn.ReLU()).eval(), (X,)).model
    assert type(model) is nn.Sequential
    assert model.train().training


def saved(model: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    loaded: nn.Module = torch.load(stream, weights_only=False)
    return loaded


def with_loaded_state(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(lambda m: pickle.loads(pickle.dumps(m)), id="pickle"),
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(copy.copy, id="copy"),
        pytest.param(saved, id="torch.save"),
        pytest.param(with_loaded_state, id="state_dict"),
        pytest.param(lambda m: copy.deepcopy(m).half().float(), id="half"),
        pytest.param(lambda m: copy.deepcopy(m).to(torch.float64).to("cpu", torch.float32), id="to"),
    ],
)
def test_guards_survive(copied: Callable[[nn.Module], nn.Module]) -> None:
    """They are of the class, so a copy has them too; half precision costs its digits and nothing else."""
    model = copied(fold(network(), (X,)).model)
    assert torch.allclose(model(X), network()(X), atol=2e-2)
    for way in other_ways(model).values():
        with pytest.raises(FoldError):
            way()


class Around(nn.Module):
    """Calls a method of a module in it, which others may call as well."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([network(), network()])
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(sum(block.normalise(block.embed(x)).relu() for block in self.blocks))


def around() -> nn.Module:
    torch.manual_seed(0)
    return Around().eval()


@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(lambda m: m, id="as it is"),
        pytest.param(lambda m: pickle.loads(pickle.dumps(m)), id="pickle"),
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(saved, id="torch.save"),
        pytest.param(lambda m: copy.deepcopy(m).half().float(), id="half"),
        pytest.param(lambda m: torch.compile(m, backend="eager", fullgraph=True), id="compile"),
    ],
)
def test_methods_of_inner_modules_raise_too(copied: Callable[[nn.Module], Any]) -> None:
    """They are open within the traced forward of the network, and nowhere else."""
    result = fold(around(), (X,))
    assert len(result.report.folded) == 2
    assert {"blocks.0.embed()", "blocks.1.normalise()"} <= set(result.report.entrances)
    model = copied(result.model)
    assert torch.allclose(model(X), around()(X), atol=2e-2)
    for block in model.blocks:
        assert isinstance(block, Network)
        assert torch.allclose(block.head(torch.ones(1, 6)), around().blocks[0].head(torch.ones(1, 6)), atol=1e-2)
        for method in (block.embed, block.by_hand):
            with pytest.raises(FoldError, match="of a folded network"):
                method(X)
    assert not model.eval().training


def test_inner_methods_export_and_stay_open_when_that_is_meant() -> None:
    """torch.export goes through them; entrances="any" leaves the classes of the user."""
    model = fold(around(), (X,)).model
    assert torch.allclose(torch.export.export(model, (X,)).module()(X), model(X))
    left_open = fold(around(), (X,), entrances="any").model
    assert type(left_open.blocks[0]) is Network
    left_open.blocks[0].embed(X)
    assert fold(model, (X,)).report.folded == ()


@pytest.mark.parametrize("is_strict", [True, False])
def test_a_guarded_network_exports(is_strict: bool) -> None:
    """torch.export sees the arguments by their names."""
    model = fold(network(), (X,)).model
    shapes = {"x": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(model, (X,), dynamic_shapes=shapes, strict=is_strict)
    assert torch.allclose(program.module()(X[:3]), model(X[:3]))


def test_a_guarded_network_compiles_in_one_piece() -> None:
    """No graph break; the flag raises there as well, and so does training mode."""
    torch.compiler.reset()
    model = fold(network(), (X,)).model
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(X), model(X))
    with pytest.raises(Exception, match="FoldError"):
        compiled(X, features=True)
    with pytest.raises(FoldError):
        compiled.train()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_guarded_network_becomes_torchscript() -> None:
    """By script, without the guards, and by trace."""
    model = fold(randomise(nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6))), (X,)).model
    for made in (torch.jit.script(model), torch.jit.trace(model, X)):
        assert torch.allclose(made(X), model(X))


def test_a_guarded_network_works_in_ddp(tmp_path: Any) -> None:
    """One process and gloo: forward, backward, and the guard behind the wrapper."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(fold(network(), (X,)).model)
        assert torch.allclose(wrapped(X), network()(X), atol=1e-5)
        wrapped(X).sum().backward()
        with pytest.raises(FoldError):
            wrapped.train()
    finally:
        dist.destroy_process_group()


class InForward(nn.Module):
    """A norm in the model's own forward, which only a graph can express."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.n = nn.Linear(8, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor, features: bool = False) -> Tensor:
        y = self.f(x)
        n = self.n
        return y if features else nn.functional.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias)


class NamesItsKind(Network):
    """Its attributes are called as ours might be."""

    def __init__(self) -> None:
        super().__init__()
        self.kind, self.unguarded = "wide", True


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_network_may_have_attributes_of_any_name(copied: Callable[[nn.Module], nn.Module]) -> None:
    """What the guards keep is of the class, and under a name of its own."""
    torch.manual_seed(0)
    folded = fold(randomise(NamesItsKind()), (X,)).model
    assert vars(copied(folded))["kind"] == "wide"
    require_guards(copied(folded))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own, when a graph is copied
@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved])
def test_a_graph_has_the_same_guards(copied: Callable[[nn.Module], nn.Module]) -> None:
    """Training mode and another flag raise in the form "graph" too, also after copying and pickling."""
    original = randomise(InForward())
    result = fold(original, (X, False))
    assert result.report.form == "graph"
    assert result.report.entrances == ("forward(features=...)",)
    model = copied(result.model)
    assert torch.allclose(model(X, False), original(X), atol=1e-5)
    with pytest.raises(FoldError):
        model.train()
    with pytest.raises(FoldError, match="features=True, but this folded graph was read for features=False"):
        model(X, True)
    with pytest.raises(ValueError, match=r"input 0 has shape \(1, 4, 8\)"):
        model(X[None], False)
    assert model.eval() is model


def test_a_guarded_network_is_verified_folded_again_and_takes_an_input() -> None:
    """The other functions know the guards."""
    original, result = network(), fold(network(), (X,))
    assert verify(original, result, (X,)).algebra_error < 1e-12
    assert verify(original, result.model, (X,)).deployed_error < 1e-5
    again = fold(result.model, (X,))
    assert not again.report.folded
    require_guards(again.model)
    scaled = fold_input(result, 0.5)
    assert torch.allclose(scaled(X * 2), original(X), atol=1e-5)
    with pytest.raises(FoldError):
        scaled.train()


def test_two_networks_and_two_threads_do_not_open_each_other() -> None:
    """Being inside one traced way opens only that network, and only in that thread."""
    outer, inner = fold(network(), (X,)).model, fold(network(), (X,)).model
    seen: list[type[Exception]] = []

    def attempt(*_: Any) -> None:
        try:
            inner.embed(X)
        except FoldError as err:
            seen.append(type(err))

    outer.o.register_forward_hook(attempt)
    outer(X)
    assert seen == [FoldError]
