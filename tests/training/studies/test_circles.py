"""The circles against scikit-learn's numbers, and evaluation mode against training mode."""

import numpy as np
import pytest
import torch
from torch import nn

from foldserve.training.errors import ConfigError
from foldserve.training.studies.circles import build, circles, make_circles, split, train


def test_points_are_those_of_scikit_learn():
    """The first and last of 2,000 points with noise 0.1, factor 0.4 and seed 42, as scikit-learn 1.9 prints them."""
    points, labels = make_circles()
    np.testing.assert_allclose(points[0], [0.1255014483273854, -0.1921226183724637], rtol=1e-12)
    np.testing.assert_allclose(points[1], [-0.649699661820214, 0.8324448277116425], rtol=1e-12)
    np.testing.assert_allclose(points[-1], [0.355425165473557, 0.26412660449724246], rtol=1e-12)
    assert labels[:10].tolist() == [1, 0, 1, 0, 1, 1, 0, 1, 0, 1]
    assert points.shape == (2000, 2)
    assert labels.sum() == 1000


def test_an_odd_number_of_points_gives_the_inner_circle_one_more():
    """Seven points are three outside and four inside; without noise they lie on radius 1 and on the factor."""
    points, labels = make_circles(7, noise=0.0, factor=0.5, seed=0)
    assert np.bincount(labels).tolist() == [3, 4]
    np.testing.assert_allclose(np.hypot(*points.T), np.where(labels == 0, 1.0, 0.5))


def test_split_keeps_every_point_once():
    """1,400 points to train on and 600 to test with, none in both."""
    points, labels = make_circles()
    data = split(points, labels)
    assert data.train_points.shape == (1400, 2)
    assert data.test_labels.shape == (600,)
    together = torch.cat([data.train_points, data.test_points])
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, points.astype(np.float32).tolist()))


def test_split_is_that_of_scikit_learn():
    """The first points of both parts as its `train_test_split(test_size=0.3, random_state=42)` gives them."""
    data = split(*make_circles())
    np.testing.assert_allclose(data.train_points[0], [0.8445298504588258, 0.8100507278422691], rtol=1e-6)
    np.testing.assert_allclose(data.test_points[0], [-0.3230886726410389, -0.12018209901069367], rtol=1e-6)
    assert data.train_labels[:8].tolist() == [0, 1, 1, 0, 1, 0, 0, 1]
    assert data.test_labels[:8].tolist() == [1, 1, 0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("wrong", [{"points": 3}, {"noise": -0.1}, {"factor": 1.0}])
def test_impossible_circles_are_refused(wrong):
    """Too few points, negative noise, and circles that coincide."""
    with pytest.raises(ConfigError, match="expected at least 4"):
        make_circles(**wrong)


@pytest.mark.parametrize("norm", ["torch", "scratch"])
def test_evaluation_mode_answers_as_training_mode_after_500_full_batches(norm):
    """Their losses differ by less than 3 %, and the network has learnt the circles."""
    training = train(build(norm, seed=0), circles())
    assert abs(training.mode_gap) < 0.03
    assert training.test_accuracies[-1] > 0.99


def test_that_check_fails_when_averaging_is_switched_off():
    """With momentum 0 the statistics stay at mean 0 and variance 1, and evaluation mode answers otherwise."""
    network = build("scratch", seed=0)
    network.norm1.momentum = network.norm2.momentum = 0.0
    assert abs(train(network, circles()).mode_gap) > 0.03


def test_a_training_has_every_step_and_leaves_statistics_alone_when_it_measures():
    """One loss a step, an evaluation before each and at the end, and as many batches tracked as steps."""
    network = build("torch", seed=1)
    training = train(network, circles(), steps=12, keep=(5, 12))
    assert len(training.losses) == 12
    assert len(training.eval_losses) == len(training.test_accuracies) == 13
    assert int(network.norm1.num_batches_tracked) == 12
    assert not network.training
    assert list(training.kept) == [5, 12]
    assert int(training.kept[5].norm1.num_batches_tracked) == 5


def test_the_initial_weights_are_the_ones_that_pytorch_draws():
    """As in the commentary: a plain Sequential of the same seed has the same bits; the book's Xavier has others."""
    torch.manual_seed(3)
    plain = nn.Sequential(
        *(nn.Linear(2, 64), nn.BatchNorm1d(64), nn.ReLU()),
        *(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2)),
    )
    ours = build("torch", seed=3)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("pairs", [[(42, 0), (42, 1), (42, 2)], [(0, 0), (1, 0), (2, 0)]])
def test_with_norms_the_circles_are_learnt_in_half_the_steps(pairs):
    """Whether weights or data are varied; the commentary's own code needs about 12 steps against 53."""
    steps = {
        norm: [train(build(norm, weights), circles(data), steps=100).steps_to_learn for data, weights in pairs]
        for norm in ("torch", "none")
    }
    assert 2 * sum(steps["torch"]) < sum(step or 100 for step in steps["none"])
