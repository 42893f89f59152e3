"""Every adversarial case gets its verdict, and what is folded computes what it computed before."""

import pytest
import torch
from torch import Tensor, nn

from foldserve.training.fold import fold
from foldserve.training.fold.pytorch.float64 import sharing_copy
from tests.support.fold_cases import BN, CASES, PERMUTATIONS, C, Case, Forward, randomise


def flat(value: object) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]


def run(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [t.double() for t in flat(sharing_copy(model)(inputs.clone()))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_verdict_and_agreement(case: Case) -> None:
    """A case folds as many norms as it must, refuses the others with the right code, and keeps its outputs."""
    model, inputs = case.build(), torch.randn(case.shape, generator=torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    result = fold(model, (inputs,), **dict(case.options))

    report = result.report
    assert (len(report.folded), tuple(sorted(map(str, (s.code for s in report.refused))))) == (
        case.folded,
        case.refused,
    )
    assert report.form == case.form
    assert all(site.reason and site.remedy for site in report.refused)
    for expected, got in zip(run(model, inputs), run(result.model, inputs), strict=True):
        assert torch.allclose(
            expected, got, rtol=0, atol=2e-5 * float(expected.abs().nan_to_num().max()), equal_nan=True
        )
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) or before[name].isnan().any() for name in before)


@pytest.mark.parametrize("shape", [(1, 8, 9, 9), (1, 8, 3, 9), (1, 8, 3, 3)])
@pytest.mark.parametrize("name", [name for name, (folds, _) in PERMUTATIONS.items() if folds])
def test_permutations_are_followed_at_sizes_of_one(name: str, shape: tuple[int, ...]) -> None:
    """A graph for one row, or for maps of one place, does not say which axis a size of one was; it folds alike."""
    parts = {"conv": C(8, 8, 3, groups=2), "bn": BN(8), "order": nn.Buffer(torch.randperm(8))}
    model = randomise(Forward(lambda m, x: m.bn(PERMUTATIONS[name][1](m, m.conv(x))), **parts))
    x = torch.randn(shape)
    result = fold(model, (x,), dynamic=False)
    assert len(result.report.folded) == 1, result.report.table()
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), model(x), rtol=1e-5, atol=1e-5)
