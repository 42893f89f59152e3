"""The pipeline: what it hands from step to step, apart from the command line."""

import torch

from training.config import Recipe
from training.dataset import FashionMNIST
from training.pipeline import fold_network, train

from .hand_fold import fold_by_hand, trained_like_lenet


def test_norms_and_pixel_scale_are_folded_with_one_rounding(made_up: FashionMNIST) -> None:
    """The package's fold gives, bit for bit, the parameters of a fold written out by hand in float64."""
    network = trained_like_lenet()
    folded, report = fold_network(network, made_up.test_images[:8])
    expected = dict(fold_by_hand(network).named_parameters())
    found = dict(folded.named_parameters())
    assert [site.path for site in report.folded] == ["norm1", "norm2", "norm3", "norm4"]
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


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
