"""The pipeline: what it hands from step to step, apart from the command line."""

import pytest
import torch
from torch import nn

from foldserve.training.batchnorm import BatchNorm
from foldserve.training.config import Recipe
from foldserve.training.conversion import from_torch
from foldserve.training.dataset import FashionMNIST
from foldserve.training.errors import FoldError
from foldserve.training.pipeline import fold_network, train
from tests.support.hand_fold import fold_by_hand, trained_like_lenet


def test_norms_and_pixel_scale_are_folded_with_one_rounding(made_up: FashionMNIST) -> None:
    """The package's fold gives, bit for bit, the parameters of a fold written out by hand in float64."""
    network = trained_like_lenet()
    folded, report = fold_network(network, made_up.test_images[:8])
    expected = dict(fold_by_hand(network).named_parameters())
    found = dict(folded.named_parameters())
    assert [site.path for site in report.folded] == ["norm1", "norm2", "norm3", "norm4"]
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


class Disguised(BatchNorm):
    """Computes what its base does, by a function that no front end takes for a norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.gamma * torch.rsqrt(self.moving_var + self.eps)
        shift = self.beta - self.moving_mean * scale
        return torch.einsum("nc...,c->nc...", x, scale) + torch.einsum("nc...,c->nc...", torch.ones_like(x), shift)


def by_hand(network: nn.Sequential, kind: type[BatchNorm] = BatchNorm) -> nn.Sequential:
    """Put the hand-written twin in the place of every norm of PyTorch's."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            twin = from_torch(module)
            twin.__class__ = kind
            network.set_submodule(name, twin)
    return network


def test_norms_by_hand_fold_to_the_same_bits(made_up: FashionMNIST) -> None:
    """Who wrote the norm makes no difference to the parameters that are served."""
    network = trained_like_lenet()
    expected, _ = fold_network(network, made_up.test_images[:8])
    folded, report = fold_network(by_hand(network), made_up.test_images[:8])
    assert len(report.folded) == 4
    found = folded.state_dict()
    assert found.keys() == expected.state_dict().keys()
    assert [name for name, value in expected.state_dict().items() if not torch.equal(found[name], value)] == []


def test_a_norm_that_the_fold_does_not_see_is_refused(made_up: FashionMNIST) -> None:
    """Nothing is published that only looks folded because its norm was not recognised."""
    with pytest.raises(FoldError, match=r"(?s)norm1.*norm2.*norm3.*norm4"):
        fold_network(by_hand(trained_like_lenet(), Disguised), made_up.test_images[:8])


def test_both_sets_of_statistics_are_kept_and_the_wanted_one_serves(made_up: FashionMNIST) -> None:
    """Running and population statistics of one training lie beside each other over the same weights."""
    trained = {
        kind: train(Recipe(epochs=1, batch_size=64, learning_rate=0.5, statistics=kind), made_up, torch.device("cpu"))
        for kind in ("running", "population")
    }
    for kind, result in trained.items():
        serving = result.network.state_dict()
        assert set(result.weights.statistics) == {"running", "population"}
        assert set(result.test_accuracy) == {"running", "population"}
        for name, buffer in result.weights.statistics[kind].items():
            assert torch.equal(serving[name], buffer)
    one, other = (trained[kind].weights for kind in ("running", "population"))
    assert all(torch.equal(one.parameters[name], other.parameters[name]) for name in one.parameters)
    assert not torch.equal(
        one.statistics["running"]["norm1.running_mean"], one.statistics["population"]["norm1.running_mean"]
    )


def test_a_network_without_norms_has_one_accuracy_and_no_statistics(made_up: FashionMNIST) -> None:
    """Nothing is recomputed where there is nothing to recompute."""
    trained = train(Recipe(epochs=1, batch_size=64, norm="none", statistics="none"), made_up, torch.device("cpu"))
    assert set(trained.test_accuracy) == {"none"}
    assert trained.weights.statistics == {}
