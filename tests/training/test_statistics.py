"""Population statistics against one forward pass over everything, and what they must leave alone."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from foldserve.training.batchnorm import BatchNorm
from foldserve.training.config import Recipe
from foldserve.training.dataset import scale_pixels
from foldserve.training.errors import ConfigError, DivergenceError
from foldserve.training.fit import fit
from foldserve.training.model import build, lenet
from foldserve.training.pipeline import train
from foldserve.training.statistics import Moments, population_statistics


@pytest.fixture(params=["torch", "scratch"])
def trained(request, made_up):
    """A network after a few steps, so that its running statistics are stale, with its training images."""
    recipe = Recipe(epochs=1, batch_size=64, norm=request.param)
    model = build(recipe)
    fit(model, made_up, recipe, torch.device("cpu"))
    return model, torch.as_tensor(made_up.train_images)


def statistics_of(norm):
    """Return mean and variance of either kind of norm."""
    return (norm.moving_mean, norm.moving_var) if isinstance(norm, BatchNorm) else (norm.running_mean, norm.running_var)


def test_equals_numpy_moments_of_what_each_norm_meets(trained):
    """For every norm: run the layers before it in evaluation mode on all images at once, take NumPy's moments."""
    model, images = trained
    population_statistics(model, images, batch_size=50)
    x = scale_pixels(images)
    with torch.no_grad():
        for layer in model.eval():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | BatchNorm):
                values = x.transpose(0, 1).flatten(1).double().numpy()
                mean, variance = statistics_of(layer)
                np.testing.assert_allclose(mean, values.mean(1), rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(variance, values.var(1, ddof=1), rtol=1e-5)
            x = layer(x)


def test_served_norms_answer_their_affine_moments(trained):
    """The point of it all: in evaluation mode each norm's output has mean beta and deviation |gamma|, all but eps."""
    model, images = trained
    population_statistics(model, images)
    outputs = {}
    for name in ("norm1", "norm4"):
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: outputs.update({name: out}))
    with torch.no_grad():
        model.eval()(scale_pixels(images))
    for name, out in outputs.items():
        norm = model.get_submodule(name)
        gamma, beta = (norm.gamma, norm.beta) if isinstance(norm, BatchNorm) else (norm.weight, norm.bias)
        values = out.transpose(0, 1).flatten(1)
        torch.testing.assert_close(values.mean(1), beta.detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(values.std(1), gamma.detach().abs(), rtol=2e-2, atol=1e-4)


def test_batch_size_changes_nothing_but_rounding(trained):
    """Unequal batches are pooled, not averaged: 352 images in batches of 351 and 1 give what one batch gives."""
    model, images = trained
    whole, split = copy.deepcopy(model), copy.deepcopy(model)
    population_statistics(whole, images, batch_size=352)
    population_statistics(split, images, batch_size=351)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(split.state_dict()[name], value, rtol=1e-6, atol=1e-7)


def test_leaves_weights_mode_and_counts_alone(trained):
    """Only mean and variance change; a model in training stays in training, and no gradient appears."""
    model, images = trained
    model.train()
    before = copy.deepcopy(model.state_dict())
    moments = population_statistics(model, images)
    assert list(moments) == ["norm1", "norm2", "norm3", "norm4"]
    assert all(module.training for module in model.modules())
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.rpartition(".")[2] for key in changed} <= {"running_mean", "running_var", "moving_mean", "moving_var"}
    assert len(changed) == 8
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_biased_norm_keeps_its_own_convention(made_up):
    """A layer that stores the biased variance is given the biased one, and the gap that leads to the other."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 3), BatchNorm(3, 2, unbiased=False))
    images = torch.as_tensor(made_up.train_images[:10])
    moments = population_statistics(model, images)["2"]
    torch.testing.assert_close(model[2].moving_var, moments.variance(unbiased=False).float())
    torch.testing.assert_close(model[2].moving_var + model[2].moving_gap, moments.variance().float())


def test_pooled_moments_survive_a_large_mean():
    """Where E[x²] − E[x]² loses every digit, pooling keeps them: mean 10⁶, deviation 10⁻³."""
    values = 1e6 + 1e-3 * torch.randn(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = [Moments.of(part) for part in values.split(700)]
    pooled = parts[0]
    for part in parts[1:]:
        pooled = pooled.pooled(part)
    np.testing.assert_allclose(pooled.variance(), np.var(values.numpy(), axis=0, ddof=1), rtol=1e-6)
    assert pooled.count == 4000


def test_model_without_norms_is_refused():
    """There is nothing to recompute, and saying so is better than doing nothing."""
    with pytest.raises(ConfigError, match="no batch normalization"):
        population_statistics(lenet(norm="none"), torch.zeros(2, 1, 28, 28, dtype=torch.uint8))


def test_norm_without_statistics_is_refused():
    """track_running_stats=False has no place to put them."""
    model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False))
    with pytest.raises(ConfigError, match="norm '0' keeps no statistics"):
        population_statistics(model, torch.zeros(2, 1, 28, 28, dtype=torch.uint8))


def test_norm_used_twice_is_refused():
    """One pair of statistics cannot be the moments of two inputs."""
    norm = nn.BatchNorm2d(1)
    with pytest.raises(ConfigError, match="each once"):
        population_statistics(nn.Sequential(norm, norm), torch.zeros(2, 1, 28, 28, dtype=torch.uint8))


def test_broken_weights_leave_the_model_as_it_was(trained):
    """A NaN behind the first norm is found, and the first norm's statistics are not replaced either."""
    model, images = trained
    with torch.no_grad():
        model.conv2.weight[0, 0, 0, 0] = float("nan")
    before = statistics_of(model.norm1)[0].clone()
    with pytest.raises(DivergenceError, match="norm 'norm2' meets values that are not finite"):
        population_statistics(model, images)
    assert torch.equal(statistics_of(model.norm1)[0], before)


def test_single_image_is_refused():
    """One value per channel has no variance."""
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784))
    with pytest.raises(ConfigError, match="at least 2 images"):
        population_statistics(model, torch.zeros(1, 1, 28, 28, dtype=torch.uint8))


def test_mirror_images_count_where_the_training_mirrors(trained):
    """With `mirrored` the statistics are those of the images and their mirror images together, in any batch size."""
    model, images = trained
    expected, found = copy.deepcopy(model), copy.deepcopy(model)
    population_statistics(expected, torch.cat([images, images.flip(3)]))
    population_statistics(found, images, mirrored=True, batch_size=70)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-6, atol=1e-7)
    population_statistics(found, images)
    assert not torch.allclose(statistics_of(found.norm1)[0], statistics_of(expected.norm1)[0], rtol=1e-6)


@pytest.mark.parametrize("augment", ["none", "mirror"])
def test_a_training_serves_with_the_statistics_of_what_it_was_trained_on(made_up, augment):
    """`train` counts mirror images exactly when the recipe mirrors."""
    recipe = Recipe(epochs=1, batch_size=64, augment=augment)
    weights = train(recipe, made_up, torch.device("cpu")).weights
    network = weights.network("running")
    population_statistics(network, torch.as_tensor(made_up.train_images), mirrored=augment == "mirror")
    for name, value in weights.statistics["population"].items():
        assert torch.equal(network.state_dict()[name], value), name
