"""Networks in the style of well-known ones fold as far as exact rules go, and keep their outputs and their classes."""

import pytest
import torch

from foldserve.training.fold import fold
from tests.support.fold_networks import NETWORKS, build
from tests.training.fold.test_cases import run


@pytest.mark.parametrize("name", NETWORKS)
def test_network_folds_as_far_as_it_can(name: str) -> None:
    """The count of folded norms and the codes of the others are those that the architecture allows."""
    model, (_, shape, folded, refused) = build(name), NETWORKS[name]
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    result = fold(model, (inputs,))
    codes = tuple(sorted(str(site.code) for site in result.report.refused))
    assert (len(result.report.folded), codes) == (folded, refused), str(result.report)
    assert result.report.form == "module"
    other = torch.randn((3, *shape[1:]), generator=torch.Generator().manual_seed(2))  # another batch size
    for expected, got in zip(run(model, other), run(result.model, other), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
