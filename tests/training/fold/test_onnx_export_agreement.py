"""Two ways to one model: fold the export, or export the fold; on the LeNets, as published and with norms by hand."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from foldserve.training.fold.api import fold
from foldserve.training.fold.onnx.api import fold_onnx

torch.set_num_threads(1)

EXACT_EPSILON = 2.0**-10  # a number that float32 and double both hold
BOOK_EPSILON = 1e-5


class NormByHand(nn.Module):
    """The affine of the book's batch normalization in prediction mode, statistics as plain tensors."""

    def __init__(self, channels: int, axes: int, epsilon: float):
        super().__init__()
        shape = (1, channels) if axes == 2 else (1, channels, 1, 1)
        self.gamma, self.beta = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape))
        self.moving_mean, self.moving_var = torch.randn(shape), torch.rand(shape) + 0.1
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * ((x - self.moving_mean) / torch.sqrt(self.moving_var + self.epsilon)) + self.beta


def lenet(*, by_hand: bool, epsilon: float, bias: bool) -> nn.Module:
    torch.manual_seed(5)

    def norm(channels: int, axes: int) -> nn.Module:
        if by_hand:
            return NormByHand(channels, axes, epsilon)
        module = (nn.BatchNorm1d if axes == 2 else nn.BatchNorm2d)(channels, eps=epsilon)
        nn.init.normal_(module.weight)
        nn.init.normal_(module.bias)
        module.running_mean.normal_()
        module.running_var.uniform_(0.05, 3)
        return module

    return nn.Sequential(
        nn.Conv2d(1, 6, 5, bias=bias), norm(6, 4), nn.Sigmoid(), nn.AvgPool2d(2, 2),
        nn.Conv2d(6, 16, 5, bias=bias), norm(16, 4), nn.Sigmoid(), nn.AvgPool2d(2, 2),
        nn.Flatten(), nn.Linear(256, 120, bias=bias), norm(120, 2), nn.Sigmoid(),
        nn.Linear(120, 84, bias=bias), norm(84, 2), nn.Sigmoid(), nn.Linear(84, 10),
    ).eval()  # fmt: skip


def export(model: nn.Module) -> onnx.ModelProto:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = (torch.zeros(2, 1, 28, 28),)
        program = torch.onnx.export(model, images, dynamic_shapes=({0: "batch"},), optimize=False, verbose=False)
    return program.model_proto


def parameters(model: onnx.ModelProto) -> list[np.ndarray]:
    """The float parameters in the order in which the layers read them."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    return [arrays[name] for node in layers for name in node.input[1:]]


def both_ways(*, by_hand: bool, epsilon: float, bias: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    model = lenet(by_hand=by_hand, epsilon=epsilon, bias=bias)
    folded_export = fold_onnx(export(model), strict=True).model
    exported_fold = export(fold(model, (torch.zeros(2, 1, 28, 28),), strict=True).model)
    assert len(parameters(folded_export)) == 10
    return list(zip(parameters(folded_export), parameters(exported_fold), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by_hand", "bias"),
    [(False, True), (False, False), (True, True)],
    ids=["torch norm", "torch norm, no bias", "norm by hand"],
)
def test_parameters_are_equal_bit_for_bit_when_eps_is_the_same_number(by_hand, bias):
    """With an eps that float32 can hold, both ways give the same bits."""
    for one, other in both_ways(by_hand=by_hand, epsilon=EXACT_EPSILON, bias=bias):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_parameters_are_within_one_ulp_with_the_book_s_eps():
    """ONNX keeps eps in float32, PyTorch in double: that moves a parameter by at most one unit in the last place."""
    for one, other in both_ways(by_hand=False, epsilon=BOOK_EPSILON, bias=True):
        np.testing.assert_array_max_ulp(one, other, maxulp=1)
