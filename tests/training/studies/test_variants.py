"""Networks that differ from BN-LeNet in one thing: which layers move or are added, and what noise does."""

import torch

from foldserve.training.model import count_parameters, lenet
from foldserve.training.studies import variants


def names(model):
    return [name for name, _ in model.named_children()]


def test_norms_move_behind_their_sigmoids_and_nothing_else_moves():
    """Norm and sigmoid change places four times; layers, parameters and the rest of the order stay."""
    model = variants.norms_after_activations(lenet())
    assert names(model)[:4] == ["conv1", "sigmoid1", "norm1", "pool1"]
    assert names(model)[-3:] == ["sigmoid4", "norm4", "dense3"]
    assert sorted(names(model)) == sorted(names(lenet()))
    assert count_parameters(model) == count_parameters(lenet())
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_noise_stands_behind_every_norm_and_acts_in_training_alone():
    """Four of them; in evaluation the network is the one without noise."""
    model, plain = variants.noise_after_norms(lenet()), lenet()
    plain.load_state_dict(model.state_dict())
    assert [name for name in names(model) if name.startswith("noise")] == ["noise1", "noise2", "noise3", "noise4"]
    assert names(model)[1:3] == ["norm1", "noise1"]
    images = torch.rand(4, 1, 28, 28)
    assert torch.equal(model.eval()(images), plain.eval()(images))
    assert not torch.equal(model.train()(images), plain.train()(images))


def test_noise_has_a_mean_and_a_size_of_its_own_in_every_channel():
    """Over many rows a channel's mean is its drawn shift and its deviation its drawn size, other ones in each call."""
    noise = variants.ShiftingNoise(shift=2.0, scale=3.0).train()
    torch.manual_seed(0)
    first, second = noise(torch.zeros(20_000, 4)), noise(torch.zeros(20_000, 4))
    assert (first.mean(0) - second.mean(0)).abs().min() > 0.1
    assert first.mean(0).abs().max() < 2.1
    assert first.std(0).max() < 3.1
    assert first.std(0).min() < first.std(0).max() - 0.3


def test_dropout_stands_behind_the_two_dense_sigmoids():
    """With or without norms."""
    for norm in ("torch", "none"):
        model = variants.dropout_in_classifier(lenet(norm=norm))
        assert [name for name in names(model) if name.startswith("dropout")] == ["dropout3", "dropout4"]
        assert names(model)[-3:] == ["sigmoid4", "dropout4", "dense3"]
