"""Forwards that write into parameters, hooks for all modules, tensors without values, and threads beside each other."""

import contextlib
import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from foldserve.training.errors import FoldError
from foldserve.training.fold import fold, fold_pair, verify
from tests.support.fold_cases import randomise

torch.set_num_threads(1)

IMAGES = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
WORDS = torch.arange(8).reshape(2, 4)


class MaxNorm(nn.Conv2d):
    """EEGNet's convolution, which holds its weight to a norm in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.3)
        return super().forward(x)


class Clipped(nn.Conv2d):
    """Clips its weight in place."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.clamp_(-0.05, 0.05)
        return super().forward(x)


class Decaying(nn.Conv2d):
    """Has another weight at each call."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.weight.data.mul_(0.9)
        return y


def network(first: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return randomise(nn.Sequential(first, nn.BatchNorm2d(4)))


def embedding() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Embedding(10, 6, max_norm=0.5), nn.Flatten(), nn.Linear(24, 5), nn.BatchNorm1d(5)]
    return randomise(nn.Sequential(*layers))


WRITING: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "assigns": (lambda: network(MaxNorm(3, 4, 3)), IMAGES),
    "in place": (lambda: network(Clipped(3, 4, 3)), IMAGES),
    "another one each time": (lambda: network(Decaying(3, 4, 3)), IMAGES),
    "an embedding's norm": (embedding, WORDS),
}
DOORS: dict[str, Callable[[Any, Tensor], Any]] = {
    "fold": lambda model, x: fold(model, (x,)),
    "fold_pair": lambda model, x: fold_pair(model[0], model[1]),
    "verify": lambda model, x: verify(model, copy.deepcopy(model), (x,)),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", WRITING)
def test_what_a_forward_writes_is_not_left_in_the_users_model(name: str, door: str) -> None:
    """Every parameter is the same tensor with the same values, dtype and version, whether it folds or is refused."""
    make, x = WRITING[name]
    model = make()
    before = [(id(p), p.dtype, p.data_ptr(), p._version, p.detach().clone()) for p in model.parameters()]
    with contextlib.suppress(FoldError):
        DOORS[door](model, x)
    for (*known, value), p in zip(before, model.parameters(), strict=True):
        assert known == [id(p), p.dtype, p.data_ptr(), p._version]
        assert torch.equal(value, p)


def test_a_norm_beside_what_is_written_folds() -> None:
    """An embedding that holds its rows to a norm costs the other layers nothing."""
    model = embedding()
    expected = copy.deepcopy(model)(WORDS)
    result = fold(model, (WORDS,))
    assert [site.path for site in result.report.folded] == ["3"]
    torch.testing.assert_close(result.model(WORDS), expected, rtol=1e-4, atol=1e-5)


def test_a_weight_that_is_assigned_in_the_forward_is_refused_with_a_remedy() -> None:
    """What torch.export says of it helps nobody."""
    with pytest.raises(FoldError, match=r"the forward writes into parameters .*; do that once, before the fold"):
        fold(network(MaxNorm(3, 4, 3)), (IMAGES,))


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_a_hook_for_all_modules_refuses_every_norm(register: str) -> None:
    """It may change values now and be gone later: the fold would hold with it, or without it, but not both."""
    hook = getattr(nn.modules.module, register)(lambda module, *values: None)
    try:
        report = fold(network(nn.Conv2d(3, 4, 3)), (IMAGES,)).report
    finally:
        hook.remove()
    assert [str(site.code) for site in report.refused] == ["hook"]
    assert not report.folded


def inference() -> nn.Module:
    with torch.inference_mode():
        return network(nn.Conv2d(3, 4, 3))


def fake() -> nn.Module:
    with FakeTensorMode():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()


def compressed() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).eval()
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse_csr())
    return model


NO_VALUES: dict[str, tuple[Callable[[], nn.Module], Any, Callable[[], Any], str]] = {
    "made in inference mode": (inference, IMAGES, contextlib.nullcontext, "was made in torch.inference_mode"),
    "a fake model": (fake, IMAGES, contextlib.nullcontext, "'0.weight' is a FakeTensor"),
    "compressed weights": (compressed, torch.ones(3, 6), contextlib.nullcontext, "'0.weight' is torch.sparse_csr"),
    "an input on the meta device": (
        lambda: network(nn.Conv2d(3, 4, 3)),
        IMAGES.to("meta"),
        contextlib.nullcontext,
        "an input is on the meta device",
    ),
    "a mode without values": (lambda: network(nn.Conv2d(3, 4, 3)), IMAGES, FakeTensorMode, "leave the meta device"),
    "a device without values": (
        lambda: network(nn.Conv2d(3, 4, 3)),
        IMAGES,
        lambda: torch.device("meta"),
        "leave the meta device",
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("name", NO_VALUES)
def test_tensors_that_nothing_can_be_proved_of_are_named(name: str) -> None:
    """A fake model of torch's own ended the process; at every door it is refused in a sentence."""
    make, x, within, words = NO_VALUES[name]
    model = make()
    for door in ("fold", "verify"):
        with within(), pytest.raises(FoldError, match=words):
            DOORS[door](model, x) if door == "fold" else verify(model, model, (x,))


def test_threads_fold_beside_each_other() -> None:
    """torch.export's tracing is of the process: two at once ended in refusals that named its insides."""

    def folded(seed: int) -> list[str]:
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)]
        result = fold(nn.Sequential(*layers).eval(), (IMAGES,))
        return [site.path for site in result.report.folded]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(folded, range(8))) == [["1", "4"]] * 8
