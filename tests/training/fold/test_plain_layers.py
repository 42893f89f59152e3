"""Networks of PyTorch's own layers alone cost no look at sizes and no copies; whatever may choose makes any other."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from foldserve.training.fold import fold
from foldserve.training.fold.pytorch import fold_plan, look, result
from foldserve.training.fold.pytorch.fold_plan import make_fold_plan
from foldserve.training.fold.pytorch.plain_layers import has_plain_layers_only
from foldserve.training.fold.pytorch.site_proof import prove_sites
from foldserve.training.model import lenet
from tests.support.fold_cases import randomise


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()


def test_nothing_is_recorded_of_plain_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof tries a second size by itself, and goes to the next where the network does not take one."""

    def recorded(*_: object, **__: object) -> None:
        raise AssertionError("a network of plain layers was recorded")

    monkeypatch.setattr(look, "recorded_calls", recorded)
    whole = fold(randomise(plain()), (torch.randn(2, 3, 12, 12),)).report
    assert len(whole.folded) == 1
    assert whole.proof is not None
    assert whole.proof.sizes == ("(2, 3, 12, 12)", "(1, 3, 13, 13)")
    of_one_size = nn.Sequential(plain(), nn.Flatten(), nn.Linear(2 * 10 * 10, 3)).eval()
    proof = fold(randomise(of_one_size), (torch.randn(2, 3, 12, 12),)).report.proof
    assert proof is not None
    assert proof.sizes == ("(2, 3, 12, 12)", "(1, 3, 12, 12)")


def test_what_was_folded_from_plain_layers_is_plain() -> None:
    """Its classes have guards, which choose by nothing either: folding its input needs no look at sizes."""
    assert has_plain_layers_only(fold(randomise(plain()), (torch.randn(2, 3, 12, 12),)).model)
    assert not has_plain_layers_only(nn.Sequential(plain(), OwnForward(2, 2, 1)).eval())


class OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[-1] > 20 else super().forward(x).relu()


class OwnTensor(Tensor):
    pass


def hooked(model: nn.Sequential) -> None:
    model[0].register_forward_hook(lambda _, __, output: output.relu())


def with_a_forward_of_its_own(model: nn.Sequential) -> None:
    model[0].forward = lambda x: x  # type: ignore[method-assign]


def in_training(model: nn.Sequential) -> None:
    model[1].train()


def without_statistics(model: nn.Sequential) -> None:
    model[1] = nn.BatchNorm2d(4, track_running_stats=False).eval()


def with_a_class_of_the_users(model: nn.Sequential) -> None:
    model[3] = OwnForward(4, 2, 1).eval()


def with_a_tensor_of_the_users(model: nn.Sequential) -> None:
    model[1].register_buffer("running_mean", torch.zeros(4).as_subclass(OwnTensor))


def parametrised(model: nn.Sequential) -> None:
    nn.utils.parametrizations.weight_norm(model[0])


MAKES: list[Callable[[nn.Sequential], None]] = [
    hooked,
    with_a_forward_of_its_own,
    in_training,
    without_statistics,
    with_a_class_of_the_users,
    with_a_tensor_of_the_users,
    parametrised,
]


@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
def test_whatever_may_choose_makes_it_any_network(make: Callable[[nn.Sequential], None]) -> None:
    """A forward, a hook, a tensor of the user's, or statistics of the input: then the sizes are looked at."""
    model = plain()
    assert has_plain_layers_only(model)
    make(model)
    assert not has_plain_layers_only(model)


def test_a_site_is_proved_without_tensors_that_have_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the exported graph say shapes; an operation on them costs more than the site itself."""
    plan = make_fold_plan(randomise(lenet()), (torch.randn(2, 1, 28, 28),), True, "refuse")

    def dispatched(*_: object) -> None:
        raise AssertionError("an operation ran on a tensor without values")

    monkeypatch.setattr(FakeTensor, "__torch_dispatch__", dispatched)
    errors, unproved = prove_sites(plan.graph, plan.placement, plan.changes)
    assert len(errors) == 4
    assert not unproved


def test_the_lenet_is_proved_in_less_time_than_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """In processor time: looking at sizes and all proofs take less than half of torch.export."""
    spent = dict.fromkeys(("read", "rest"), 0.0)

    def timed(module: object, name: str, kind: str) -> None:
        function = getattr(module, name)

        def run(*args: object, **more: object) -> object:
            start = time.process_time()
            try:
                return function(*args, **more)
            finally:
                spent[kind] += time.process_time() - start

        monkeypatch.setattr(module, name, run)

    timed(fold_plan, "read", "read")
    for module, name in (
        (fold_plan, "look_at_sizes"),
        (fold_plan, "prove_sites"),
        (result, "prove_model"),
        (result, "proved_sizes"),
    ):
        timed(module, name, "rest")
    for _ in range(3):
        assert len(fold(randomise(lenet()), (torch.randn(2, 1, 28, 28),)).report.folded) == 4
    assert spent["rest"] < spent["read"] / 2
