"""What holds for every model: random small graphs either refuse or agree, twice is once, and the order is free."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from foldserve.training.fold import fold
from foldserve.training.fold.pytorch.float64 import run_in_float64, sharing_copy
from tests.support.fold_cases import randomise

CHANNELS = 4
STEPS = ["conv", "conv", "conv padded", "depthwise", "transposed", "norm", "norm", "norm", "relu", "avg", "max"]
STEPS += ["dropout", "skip", "cat", "shared conv"]
FEW = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


class RandomNetwork(nn.Module):
    """A chain of steps in which sums, concatenations and a shared convolution reach back to earlier values."""

    def __init__(self, steps: list[str]):
        super().__init__()
        self.steps = steps
        self.shared = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.layers = nn.ModuleList(self._layer(step) for step in steps)

    def _layer(self, step: str) -> nn.Module:
        made = {
            "conv": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, bias=False),
            "conv padded": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            "depthwise": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
            "transposed": lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, groups=2),
            "norm": lambda: nn.BatchNorm2d(CHANNELS),
            "relu": lambda: nn.ReLU(inplace=True),
            "avg": lambda: nn.AvgPool2d(2, 1),
            "max": lambda: nn.MaxPool2d(2, 1),
            "dropout": nn.Dropout,
            "cat": lambda: nn.Conv2d(2 * CHANNELS, CHANNELS, 1),
        }
        return made.get(step, nn.Identity)()

    def forward(self, x: Tensor) -> Tensor:
        x = earlier = torch.tanh(x)
        for step, layer in zip(self.steps, self.layers, strict=True):
            size = [min(a, b) for a, b in zip(x.shape[2:], earlier.shape[2:], strict=True)]
            cropped = [v[..., : size[0], : size[1]] for v in (x, earlier)]
            if step == "skip":
                x = cropped[0] + cropped[1]
            elif step == "shared conv":
                x = self.shared(x)
            else:
                x = layer(torch.cat(cropped, 1)) if step == "cat" else layer(x)
            earlier = x if step in ("conv", "cat") else earlier
        return x


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    return run_in_float64(sharing_copy(model), (x,))


networks = st.lists(st.sampled_from(STEPS), min_size=2, max_size=7)
INPUT = torch.randn(2, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(0))


@FEW
@given(networks, st.sampled_from(["refuse", "exact"]), st.integers(0, 99))
def test_random_graphs_refuse_or_agree(steps: list[str], padding: str, seed: int) -> None:
    """Every norm is folded or refused, outputs agree, the argument is as it was, and folding again changes nothing."""
    torch.manual_seed(seed)
    model = randomise(RandomNetwork(steps), seed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    result = fold(model, (INPUT,), padding=padding)

    assert len(result.report.folded) + len(result.report.refused) == steps.count("norm")
    expected, got = outputs(model, INPUT), outputs(result.model, INPUT)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()) + 1e-30)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    again = fold(model, (INPUT,), padding=padding).model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in result.model.state_dict().items())
    assert not fold(result.model, (INPUT,), padding=padding).report.folded


@FEW
@given(st.permutations(range(6)), st.booleans())
def test_permuting_channels_commutes_with_folding(order: list[int], bias: bool) -> None:
    """Folding permuted channels gives the permuted fold, bit for bit: nothing depends on where a channel stands."""
    torch.manual_seed(1)
    model = randomise(nn.Sequential(nn.Conv2d(3, 6, 3, bias=bias), nn.BatchNorm2d(6)))
    permuted = sharing_copy(model)
    index = torch.tensor(order)
    for module in permuted:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.ndim:
                kind = nn.Parameter if isinstance(tensor, nn.Parameter) else Tensor.clone
                setattr(module, name, kind(tensor.detach()[index]))
    x = torch.randn(2, 3, 5, 5)
    one, other = (fold(m, (x,)).model[0] for m in (model, permuted))
    assert torch.equal(one.weight[index], other.weight)
    assert torch.equal(one.bias[index], other.bias)


@FEW
@given(st.sampled_from([0.5, -2.0, 4.0]))
def test_scaling_gamma_scales_the_weights(factor: float) -> None:
    """A power of two in gamma is the same power of two in every folded weight, exactly."""
    model = randomise(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)))
    x = torch.randn(2, 3, 5, 5)
    plain = fold(model, (x,)).model[0].weight.detach().clone()
    model[1].weight.data.mul_(factor)
    assert torch.equal(fold(model, (x,)).model[0].weight, plain * factor)
