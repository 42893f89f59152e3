"""The proof costs no more than it has to: sites on crops, double convolutions in stretches; and it is as strong."""

import numpy as np
import pytest
import torch
from torch import nn

from foldserve.training.fold import tiled
from foldserve.training.fold.pytorch.float64 import run_in_float64
from foldserve.training.fold.pytorch.fold_plan import FoldPlan, make_fold_plan
from foldserve.training.fold.pytorch.parameters import Value
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
    assert cropped_shapes(nodes, [(1, 3, 512, 256), (1, 3, 256, 128)]) == [(1, 3, 128, 64), (1, 3, 64, 32)]


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (3, 2, 6, 6), (1, 0, 3, 0)])
def test_one_wrong_weight_is_caught_on_a_crop(place: tuple[int, ...]) -> None:
    """Every single weight, at each corner of the kernel, has a part in the crop."""
    plan = plan_of(nn.Conv2d(3, 4, 7, 2, 3), nn.BatchNorm2d(4))
    change = plan.changes[0]
    weight: np.ndarray = change.weight.exact.copy()
    weight[place] *= 1 + 1e-8
    change.weight = Value(weight, "float32")
    assert prove_sites(plan.graph, plan.placement, plan.changes)[1]
