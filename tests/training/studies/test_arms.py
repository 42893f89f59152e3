"""The seed of a case decides its weights."""

import pytest
import torch

from foldserve.training.config import Recipe
from foldserve.training.errors import ConfigError
from foldserve.training.studies.arms import Arm


def test_the_seed_of_a_case_decides_its_weights_and_an_unknown_network_is_refused():
    """Every network of the plan is built twice alike, and the random state outside is not touched."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for network in ("lenet", "lenet-plain", "norm-after", "noisy-norm", "dropout"):
        arm = Arm(name="any", network=network)
        first, second, other = (arm.build(arm.recipe(seed)) for seed in (1, 1, 2))
        assert torch.equal(first.conv1.weight, second.conv1.weight)
        assert not torch.equal(first.conv1.weight, other.conv1.weight)
    assert torch.equal(torch.rand(1), expected)
    with pytest.raises(ConfigError, match="network 'resnet'"):
        Arm(name="any", network="resnet").build(Recipe())
