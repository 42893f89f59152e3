"""The proof costs no more than it has to: sites on crops, double convolutions in stretches; and it is as strong."""

import weakref

import numpy as np
import pytest
import torch
from torch import nn

from foldserve.training.errors import FoldError
from foldserve.training.fold import tiled, verify
from foldserve.training.fold.pytorch import tails
from foldserve.training.fold.pytorch.float64 import run_in_float64
from foldserve.training.fold.pytorch.fold_plan import FoldPlan, make_fold_plan
from foldserve.training.fold.pytorch.model_proof import Runnable
from foldserve.training.fold.pytorch.parameters import Value
from foldserve.training.fold.pytorch.reproducible import first_difference
from foldserve.training.fold.pytorch.site_crops import cropped_shapes
from foldserve.training.fold.pytorch.site_proof import prove_sites
from tests.support.fold_cases import randomise

torch.set_num_threads(1)

CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(4, 8, 3),
    "strided and padded": lambda: nn.Conv2d(4, 8, 7, 2, 3),
    "dilated, in groups": lambda: nn.Conv2d(4, 8, 3, 2, 2, 2, groups=2),
    "narrow": lambda: nn.Conv2d(4, 8, (1, 3), (3, 1), (0, 2)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("largest", [1, 500, 5000])
def test_a_convolution_in_stretches_gives_the_same_numbers(
    name: str, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row by row, some rows at a time, or whole: PyTorch's own double convolution says the same."""
    monkeypatch.setattr(tiled, "_LARGEST", largest)
    torch.manual_seed(0)
    conv, x = CONVOLUTIONS[name](), torch.randn(3, 4, 19, 12)
    got = run_in_float64(conv, (x,))
    torch.testing.assert_close(got, conv.double()(x.double()), rtol=1e-13, atol=1e-13)


def test_a_convolution_in_stretches_gives_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it read what nobody wrote, which would be taken for a network that is no function of its input."""
    monkeypatch.setattr(tiled, "_LARGEST", 1)
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 64, 64)
    assert first_difference(lambda: run_in_float64(conv, (x,))) == ""


def plan_of(*layers: nn.Module, size: int = 200) -> FoldPlan:
    torch.manual_seed(0)
    return make_fold_plan(randomise(nn.Sequential(*layers)), (torch.randn(2, 3, size, size),), True, "refuse")


def test_a_large_map_is_proved_on_a_crop() -> None:
    """What a site reads shrinks to its borders and an inside; a view, which is told a size, keeps the example's."""
    plan = plan_of(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    nodes = [node for node in plan.graph.nodes if node.op == "call_function"]
    ((_, _, height, width),) = cropped_shapes(nodes, [(2, 3, 200, 200)])
    assert height == width < 40
    assert height % 8 == 200 % 8
    viewed = plan_of(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(2), nn.BatchNorm1d(4))
    nodes = [node for node in viewed.graph.nodes if node.op == "call_function"]
    assert cropped_shapes(nodes, [(2, 3, 200, 200)]) == [(2, 3, 200, 200)]


def test_two_maps_keep_their_ratio() -> None:
    """Where a part reads maps of two sizes, both are divided alike."""
    plan = plan_of(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    nodes = [node for node in plan.graph.nodes if node.op == "call_function"]
    assert cropped_shapes(nodes, [(1, 3, 512, 256), (1, 3, 256, 128)]) == [(1, 3, 64, 32), (1, 3, 32, 16)]


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (3, 2, 6, 6), (1, 0, 3, 0)])
def test_one_wrong_weight_is_caught_on_a_crop(place: tuple[int, ...]) -> None:
    """Every single weight, at each corner of the kernel, has a part in the crop."""
    plan = plan_of(nn.Conv2d(3, 4, 7, 2, 3), nn.BatchNorm2d(4))
    change = plan.changes[0]
    weight: np.ndarray = change.weight.exact.copy()
    weight[place] *= 1 + 1e-8
    change.weight = Value(weight, "float32")
    assert prove_sites(plan.graph, plan.placement, plan.changes)[1]


TAILS = {
    "none": nn.Identity,
    "sigmoid": nn.Sigmoid,
    "relu, in place": lambda: nn.ReLU(inplace=True),
    "two of them": lambda: nn.Sequential(nn.Hardtanh(), nn.Flatten(), nn.Softmax(1)),
}


def network_with_tail(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
    return randomise(nn.Sequential(*layers, TAILS[name]()))


@pytest.mark.parametrize("name", TAILS)
def test_the_values_before_a_tail_are_found_without_keeping_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose activations are too large to be kept is run again, and gives the very same values."""
    inputs = (torch.randn(2, 3, 9, 9),)
    kept = Runnable("kept", network_with_tail(name, 0)).in_float64(inputs)
    monkeypatch.setattr(tails, "_MOST", 0)
    model = Runnable("not kept", network_with_tail(name, 0))
    for _ in range(2):  # the second time it is known what to keep
        again = model.in_float64(inputs)
        assert [len(group) for group in again] == [len(group) for group in kept]
        assert all(torch.equal(*pair) for groups in zip(again, kept, strict=True) for pair in zip(*groups, strict=True))
    assert len(kept[0]) > 1 or name == "none"


def test_large_networks_that_saturate_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a sigmoid that came to one two networks are equal; what was before it is compared."""
    monkeypatch.setattr(tails, "_MOST", 0)
    one, other = network_with_tail("sigmoid", 0), network_with_tail("sigmoid", 1)
    with torch.no_grad():
        for model in (one, other):
            model[4].weight.mul_(0.01)
            model[4].bias.fill_(60.0)
    with pytest.raises(FoldError, match="does not compute"):
        verify(one, other, (torch.randn(2, 3, 9, 9),))


def test_nothing_but_the_operand_of_a_tail_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a network runs, no activation outlives its last reader."""
    monkeypatch.setattr(tails, "_MOST", 0)
    alive: list[int] = []
    held: list[weakref.ref[torch.Tensor]] = []

    def watch(_: nn.Module, __: object, output: torch.Tensor) -> None:
        held.append(weakref.ref(output))
        alive.append(sum(one() is not None for one in held))

    model = nn.Sequential(*[nn.ReLU() for _ in range(12)], nn.Conv2d(3, 3, 1)).eval()
    for layer in model:
        layer.register_forward_hook(watch)
    Runnable("deep", model).in_float64((torch.randn(2, 3, 9, 9),))
    assert max(alive) <= 3
