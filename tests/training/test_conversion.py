"""Conversion between the hand-written norm and PyTorch's: the same answers now, and after more training."""

import copy

import pytest
import torch
from torch import nn

from foldserve.training.batchnorm import BatchNorm
from foldserve.training.conversion import from_torch, to_torch, to_torch_model
from foldserve.training.errors import ConfigError
from foldserve.training.model import lenet

BATCHES = (8, 5, 12)  # unequal on purpose: Bessel's factor differs from batch to batch


def batch(rows, seed=0):
    """Return (rows, 3) float64 with a mean and deviation of its own in each column."""
    x = torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x * torch.tensor([0.5, 1.0, 2.0]) + torch.tensor([-1.0, 0.0, 4.0])


def train(*norms, batches=BATCHES):
    """Show every norm the same batches."""
    for seed, rows in enumerate(batches):
        for norm in norms:
            norm(batch(rows, seed))


def filled(norm):
    """Give a norm affine parameters that are not the identity."""
    with torch.no_grad():
        for seed, parameter in enumerate(norm.parameters()):
            parameter.copy_(torch.rand(3, generator=torch.Generator().manual_seed(seed)) + 0.5)
    return norm.double()


def assert_same_state(found, expected):
    """Compare state dicts value by value, in order; the names differ between the layers."""
    for ours, theirs in zip(found.state_dict().values(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_to_torch_is_exact_and_trains_on(unbiased, momentum):
    """The converted layer is what PyTorch's would be after the same unequal batches, before and after three more."""
    ours = filled(BatchNorm(3, 2, unbiased=unbiased, momentum=momentum))
    theirs = filled(nn.BatchNorm1d(3, momentum=momentum))
    train(ours, theirs)
    converted = to_torch(ours)
    assert type(converted) is nn.BatchNorm1d
    assert_same_state(converted, theirs)
    train(converted, theirs)
    assert_same_state(converted, theirs)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_from_torch_is_exact_and_trains_on(momentum):
    """The other way round, into the same convention."""
    ours = filled(BatchNorm(3, 2, momentum=momentum))
    theirs = filled(nn.BatchNorm1d(3, momentum=momentum))
    train(ours, theirs)
    converted = from_torch(theirs)
    assert_same_state(converted, ours)
    train(converted, ours)
    assert_same_state(converted, ours)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_from_torch_into_the_biased_convention_is_exact(momentum):
    """With the size of the batches known, the biased variance is that of a layer that kept it from the start."""
    biased = filled(BatchNorm(3, 2, unbiased=False, momentum=momentum))
    theirs = filled(nn.BatchNorm1d(3, momentum=momentum))
    train(biased, theirs, batches=(8, 8, 8))
    converted = from_torch(theirs, unbiased=False, values_per_channel=8)
    for key, value in biased.state_dict().items():
        torch.testing.assert_close(converted.state_dict()[key], value, rtol=1e-13, atol=1e-14)
    assert_same_state(to_torch(converted), theirs)


def test_biased_convention_without_batch_size_is_refused():
    """PyTorch's layer does not keep it; a guess would be wrong by up to a factor of two."""
    norm = nn.BatchNorm1d(3).double()
    assert from_torch(norm, unbiased=False).moving_var.tolist() == [1, 1, 1]  # nothing seen yet: nothing to convert
    train(norm)
    with pytest.raises(ConfigError, match="values_per_channel None"):
        from_torch(norm, unbiased=False)


@pytest.mark.parametrize(("num_dims", "kind"), [(2, nn.BatchNorm1d), (3, nn.BatchNorm1d), (4, nn.BatchNorm2d)])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1}])
def test_there_and_back_gives_the_same_layer(num_dims, kind, options):
    """Kind, options, mode, dtype and every tensor return."""
    norm = BatchNorm(3, num_dims, **options).double().eval()
    there = to_torch(norm)
    back = from_torch(there, num_dims=num_dims)
    assert type(there) is kind
    assert (back.eps, back.affine, back.training, back.num_dims) == (norm.eps, norm.affine, False, num_dims)
    assert back.track_running_stats == norm.track_running_stats
    for key, value in norm.state_dict().items():
        assert back.state_dict()[key].dtype == value.dtype
        assert torch.equal(back.state_dict()[key], value)


def test_network_is_converted_as_a_whole_and_left_alone():
    """Every norm of the LeNet is PyTorch's afterwards, the logits agree, and the argument keeps its own."""
    model = lenet(norm="scratch").train()
    model(torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    model.eval()
    before = copy.deepcopy(model.state_dict())
    converted = to_torch_model(model)
    assert not any(isinstance(module, BatchNorm) for module in converted.modules())
    assert [name for name, _ in converted.named_children()] == [name for name, _ in model.named_children()]
    images = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(images)
        assert (converted(images) - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_norm_alone_is_converted_too():
    """A model that is nothing but a norm has no parent to put the new one into."""
    assert isinstance(to_torch_model(BatchNorm(3, 4)), nn.BatchNorm2d)


@pytest.mark.parametrize(("norm", "num_dims"), [(nn.BatchNorm3d(3), None), (nn.BatchNorm1d(3), 4)])
def test_other_layers_are_refused(norm, num_dims):
    """What this layer cannot stand for is named."""
    with pytest.raises(ConfigError, match=type(norm).__name__):
        from_torch(norm, num_dims=num_dims)
