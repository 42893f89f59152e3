"""The fused blocks against plain autograd on the same modules, in float64 and as the loop uses it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foldserve.training.conv_pool import from_blocks, to_blocks
from foldserve.training.fused import fused
from foldserve.training.model import lenet
from foldserve.training.worker_threads import WorkerThreads


def batch(rows, dtype=torch.float64):
    generator = torch.Generator().manual_seed(rows)
    images = torch.rand(rows, 1, 28, 28, generator=generator, dtype=dtype)
    return images, torch.randint(0, 10, (rows,), generator=generator)


def off_the_start(dtype=torch.float64):
    """Return BN-LeNet with gamma and beta away from 1 and 0, where a wrong formula could hide."""
    torch.manual_seed(0)
    network = lenet().to(dtype).train()
    for name, parameter in network.named_parameters():
        if "norm" in name:
            parameter.data += 0.5 * torch.randn(parameter.shape, dtype=dtype)
    return network


def one_step(forward, network, rows, dtype):
    """Train one step and return loss and gradients."""
    images, labels = batch(rows, dtype)
    loss = F.cross_entropy(forward(images), labels)
    network.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 0.5 * parameter.grad
    return {"loss": loss.detach()} | {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_steps_are_those_of_plain_autograd(dtype, tolerance, threads):
    """Loss, every gradient, every weight and every buffer agree over three steps whose rows do not split evenly."""
    plain = off_the_start(dtype)
    ours = copy.deepcopy(plain)
    threads = WorkerThreads(threads)
    forward = fused(ours, threads)
    assert forward is not ours
    for rows in (12, 5, 9):
        expected = one_step(plain, plain, rows, dtype)
        with threads.open():
            found = one_step(forward, ours, rows, dtype)
        largest = max(float(value.abs().max()) for value in expected.values())
        for name, value in expected.items():
            assert (found[name] - value).abs().max() <= tolerance * largest, name
        for name, value in plain.state_dict().items():
            assert (ours.state_dict()[name] - value).abs().max() <= tolerance * max(1, value.abs().max()), name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel", [3, 4])
def test_the_gradient_of_the_input_is_right_too(channels, kernel):
    """In blocks and without, with an even and an odd number of rows, against finite differences."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 2, kernel), nn.BatchNorm2d(2), nn.Sigmoid(), nn.AvgPool2d(2)]
    block = fused(nn.Sequential(*layers).double().train())
    x = torch.rand(3, channels, kernel + 3, kernel + 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, x)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_that_no_window_takes_is_left_out_as_pooling_does(channels):
    """7×7 images give 5×5 positions, of which pooling reads 4×4: the layers are then called as they are."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(channels, 2, 3), nn.BatchNorm2d(2), nn.Sigmoid(), nn.AvgPool2d(2)).train()
    forward = fused(copy.deepcopy(plain))
    x = torch.rand(3, channels, 7, 7)
    torch.testing.assert_close(forward(x), plain(x))


def test_blocks_hold_the_four_outputs_of_each_window():
    """A convolution with the larger kernel at stride 2 gives the plain one's outputs, window by window."""
    torch.manual_seed(0)
    weight, x = torch.randn(6, 2, 5, 5, dtype=torch.float64), torch.randn(3, 2, 28, 28, dtype=torch.float64)
    plain = F.conv2d(x, weight)
    blocks = F.conv2d(x, to_blocks(weight), stride=2).view(3, 6, 2, 2, 12, 12)
    for i in range(2):
        for j in range(2):
            torch.testing.assert_close(blocks[:, :, i, j], plain[:, :, i::2, j::2], rtol=1e-12, atol=1e-12)


def test_from_blocks_is_the_transpose_of_to_blocks():
    """<to_blocks(w), g> equals <w, from_blocks(g)> for every w and g: what a chain rule asks for."""
    torch.manual_seed(0)
    weight, grad = torch.randn(3, 2, 5, 5, dtype=torch.float64), torch.randn(12, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close((to_blocks(weight) * grad).sum(), (weight * from_blocks(grad)).sum())


def watched():
    network = lenet()
    network.sigmoid1.register_forward_hook(lambda *_: None)
    return network


@pytest.mark.parametrize(
    "network",
    [lenet(pool="max"), lenet(norm="scratch"), lenet(norm="none"), watched(), nn.Linear(2, 2)],
    ids=["maximum pooling", "norms by hand", "no norms", "hooks", "no Sequential"],
)
def test_what_it_does_not_cover_is_left_as_it_is(network):
    """The model itself comes back, so that nothing is skipped: neither another layer nor a hook."""
    assert fused(network) is network


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Sigmoid(), nn.AvgPool2d(2)],
        [nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Sigmoid(), nn.AvgPool2d(2)],
        [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, momentum=None), nn.Sigmoid(), nn.AvgPool2d(2)],
        [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sigmoid(), nn.AvgPool2d(3)],
        [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.AvgPool2d(2)],
    ],
)
def test_layers_with_other_settings_are_left_as_they_are(layers):
    """Padding, no bias, cumulative averages, other windows, another activation."""
    network = nn.Sequential(*layers)
    assert fused(network) is network
