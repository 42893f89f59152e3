"""The proof is attacked: every mutant of a right fold is caught, by the site proof and end to end."""

import pytest
import torch
from torch import nn

from foldserve.training.errors import FoldError
from foldserve.training.fold import fold, verify
from foldserve.training.fold.pytorch.fold_plan import make_fold_plan
from foldserve.training.fold.pytorch.parameters import Value
from foldserve.training.fold.pytorch.result import checked
from foldserve.training.fold.pytorch.site_proof import prove_sites
from tests.support.fold_cases import randomise
from tests.support.fold_mutants import MUTANTS, Given


def network() -> nn.Module:
    """A grouped convolution behind which a sigmoid hides what is wrong."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, eps=1e-3), nn.Sigmoid(), nn.Conv2d(6, 2, 3)]
    return randomise(nn.Sequential(*layers))


INPUTS = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),)


def given(model: nn.Module) -> Given:
    """What the mutants are made from."""
    conv, norm = model[0], model[1]
    tensors = (conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return Given(*(t.detach().double().numpy() for t in tensors), norm.eps, conv.groups)


BELOW_THE_LIMIT = {"eps_in_float32"}  # 2e-12 of an output; the proof of the site sees it


@pytest.mark.parametrize("mutant", MUTANTS)
def test_site_proof_catches(mutant: str) -> None:
    """A site whose folded parameters are wrong in any of these ways is refused by its own proof."""
    model = network()
    plan = make_fold_plan(model, INPUTS, True, "refuse")
    assert not prove_sites(plan.graph, plan.placement, plan.changes)[1]
    change = plan.changes[0]
    weight, bias = MUTANTS[mutant](given(model))
    change.weight, change.bias = Value(weight, "float32"), Value(bias, "float32")
    errors, refused = prove_sites(plan.graph, plan.placement, plan.changes)
    assert not errors
    assert [refusal.code for refusal in refused.values()] == ["unjudged"]


@pytest.mark.parametrize("mutant", [name for name in MUTANTS if name not in BELOW_THE_LIMIT])
def test_verify_catches(mutant: str) -> None:
    """Two models that differ in any of these ways are told apart end to end, through the sigmoid."""
    model = network()
    result = fold(model, INPUTS)
    exact = dict(zip(("0.weight", "0.bias"), MUTANTS[mutant](given(model)), strict=True))
    mutated = type(result)(result.model, result.report, exact)
    verify(model, result, INPUTS)
    with pytest.raises(FoldError, match="does not compute what the original computes"):
        verify(model, mutated, INPUTS)


def test_a_stored_parameter_off_by_one_bit_is_caught() -> None:
    """Stored parameters equal the float64 result rounded once, bit for bit."""
    result = fold(network(), INPUTS)
    values = {name: Value(exact, "float32") for name, exact in result.exact.items()}
    checked(result.model, values)
    with torch.no_grad():
        result.model[0].bias[3] = torch.nextafter(result.model[0].bias[3], torch.tensor(9.0))
    with pytest.raises(FoldError, match=r"'0\.bias' is not the folded value rounded once"):
        checked(result.model, values)


def test_verify_compares_any_two_models() -> None:
    """Models from elsewhere agree to the rounding of their parameters, or raise; shapes and counts are compared too."""
    model = network()
    proof = verify(model, fold(model, INPUTS).model, INPUTS)
    assert proof.algebra_error < 1e-6
    with pytest.raises(FoldError, match="differs by"):
        verify(model, nn.Sequential(*list(model)[:1], nn.Identity(), *list(model)[2:]).eval(), INPUTS)
    with pytest.raises(FoldError, match="returns shape"):
        verify(model, nn.Sequential(model[0]).eval(), INPUTS)
