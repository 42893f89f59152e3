"""The networks: sizes, shapes, initial weights, and the same function whichever norm stands in them."""

import pytest
import torch
from torch import nn

from foldserve.training.batchnorm import BatchNorm, BatchNormLayer
from foldserve.training.config import Recipe
from foldserve.training.conversion import from_torch
from foldserve.training.dataset import Interface
from foldserve.training.errors import ConfigError
from foldserve.training.model import build, count_parameters, lenet, lenet_plain, mlp
from foldserve.training.resnet import ResidualBlock


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize(("norm", "parameters"), [("torch", 44_878), ("scratch", 44_878), ("none", 44_426)])
def test_lenet_has_the_published_size(pool, norm, parameters):
    """The counts that the literature gives, for either pooling."""
    model = lenet(pool=pool, norm=norm)
    assert count_parameters(model) == parameters
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_plain_lenet_has_the_published_size():
    """The network that the book compares with is a larger one."""
    assert count_parameters(lenet_plain()) == 61_706
    assert lenet_plain(pool="max")(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(("norm", "parameters"), [("none", 2_338), ("torch", 2_530), ("scratch", 2_530)])
def test_circles_net_has_the_published_size(norm, parameters):
    """2-64-32-2, and 192 values of gamma and beta more with norms."""
    model = mlp((2, 64, 32, 2), norm=norm)
    assert count_parameters(model) == parameters
    assert model(torch.zeros(3, 2)).shape == (3, 2)


def test_small_mlp_takes_images_and_normalises_before_the_activation():
    """Linear, norm, ReLU; the logits are neither normalised nor rectified."""
    model = mlp()
    assert [name for name, _ in model.named_children()] == ["flatten", "dense1", "norm1", "relu1", "dense2"]
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(ConfigError, match="sizes"):
        mlp((784,))


def test_layers_are_named_in_order():
    """State dict keys say which layer they belong to."""
    names = [name for name, _ in lenet().named_children()]
    assert names[:4] == ["conv1", "norm1", "sigmoid1", "pool1"]
    assert names[-3:] == ["norm4", "sigmoid4", "dense3"]
    assert "dense1.weight" in lenet(norm="none").state_dict()


def test_pooling_is_the_one_asked_for():
    """--pool changes the layer and nothing else."""
    assert isinstance(lenet(pool="max").pool1, nn.MaxPool2d)
    assert isinstance(lenet(pool="avg").pool2, nn.AvgPool2d)


def test_weights_are_xavier_uniform():
    """Bounded by √(6 / (fan in + fan out)) and filling that range, for convolutions and linear layers."""
    model = lenet()
    for layer, fans in [(model.conv2, 6 * 25 + 16 * 25), (model.dense1, 256 + 120)]:
        bound = (6 / fans) ** 0.5
        assert bound * 0.95 < layer.weight.abs().max() <= bound


def test_build_depends_on_the_seed_alone():
    """Equal seeds give equal weights, others other ones, and the caller's random numbers go on undisturbed."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = build(Recipe(seed=1)), build(Recipe(seed=1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.conv1.weight, build(Recipe(seed=2)).conv1.weight)


def test_scratch_and_torch_start_as_the_same_function():
    """From one seed both networks have the same weights, and give the same logits in both modes."""
    by_torch, by_hand = build(Recipe(norm="torch")), build(Recipe(norm="scratch"))
    assert isinstance(by_hand.norm3, BatchNorm)
    images = torch.rand(8, 1, 28, 28)
    for training in (True, False):
        expected, found = by_torch.train(training)(images), by_hand.train(training)(images)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    converted = from_torch(by_torch.norm1)
    torch.testing.assert_close(by_hand.norm1.moving_var, converted.moving_var)


@pytest.mark.parametrize("options", [{"pool": "min"}, {"norm": "layer"}])
def test_unknown_kind_is_refused(options):
    """A pool or norm that does not exist is named in the error."""
    with pytest.raises(ConfigError, match=next(iter(options.values()))):
        lenet(**options)


def test_the_biased_variance_reaches_every_hand_written_norm():
    """Four of them average the divisor n, as the book's do; by default none does."""
    for variance, expected in (("biased", False), ("unbiased", True)):
        model = build(Recipe(norm="scratch", variance=variance, statistics="running"))
        assert [layer.unbiased for layer in model if isinstance(layer, BatchNorm)] == [expected] * 4


@pytest.mark.parametrize("network", ["lenet-bn", "mlp", "resnet-small"])
@pytest.mark.parametrize("norm", ["torch", "scratch", "none"])
def test_networks_are_for_images_and_classes_of_any_number(network, norm):
    """Three channels, sides that no pooling divides, and five classes: one logit for each class and image."""
    recipe = Recipe(network=network, norm=norm, statistics="none" if norm == "none" else "population")
    model = build(recipe, Interface((3, 33, 47), 5))
    assert model(torch.rand(2, 3, 33, 47)).shape == (2, 5)
    norms = [module for module in model.modules() if isinstance(module, BatchNormLayer)]
    assert bool(norms) == (norm != "none")


def test_the_books_network_is_the_same_whether_its_images_are_named_or_not():
    """Names and bits of the state dict for 1 x 28 x 28 and ten classes do not depend on how they were asked for."""
    named, plain = build(Recipe(seed=4), Interface((1, 28, 28), 10)).state_dict(), build(Recipe(seed=4)).state_dict()
    assert list(named) == list(plain)
    assert all(torch.equal(named[name], plain[name]) for name in plain)


def test_images_too_small_for_two_poolings_are_refused():
    """15 pixels leave nothing after the second pooling, 16 leave one; the message names what helps."""
    assert build(Recipe(), Interface((1, 16, 16), 2))(torch.rand(2, 1, 16, 16)).shape == (2, 2)
    with pytest.raises(ConfigError, match="--size"):
        build(Recipe(), Interface((1, 28, 15), 2))


def test_the_small_residual_network_is_the_paper_s():
    """Its blocks agree with one written out in PyTorch's functions, in evaluation mode with filled statistics."""
    torch.manual_seed(3)
    block = ResidualBlock(4, 6, 2, "torch", "unbiased")
    for norm in block.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
    x, block = torch.rand(2, 4, 9, 9), block.eval()

    def convolved(x, part, stride, padding):
        norm = part.norm
        y = torch.nn.functional.conv2d(x, part.conv.weight, None, stride, padding)
        return torch.nn.functional.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    inner = convolved(x, block.first, 2, 1).clamp(min=0)
    expected = (convolved(inner, block.second, 1, 1) + convolved(x, block.past, 2, 0)).clamp(min=0)
    torch.testing.assert_close(block(x), expected)
