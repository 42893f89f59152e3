"""The proof is attacked: every mutant of a right fold is caught, by the site proof and end to end."""

from collections.abc import Callable

import numpy as np
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


def network() -> nn.Module:
    """A grouped convolution behind which a sigmoid hides what is wrong."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, eps=1e-3), nn.Sigmoid(), nn.Conv2d(6, 2, 3)]
    return randomise(nn.Sequential(*layers))


INPUTS = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),)


def swap_channels(w: np.ndarray, b: np.ndarray, m: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    order = [1, 0, 2, 3, 4, 5]
    return w[order], b[order]


def flip_one_sign(w: np.ndarray, b: np.ndarray, m: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    return w * np.array([1, 1, -1, 1, 1, 1]).reshape(-1, 1, 1, 1), b


def refold(m: nn.Module, scale: Callable[[nn.Module], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    s = scale(m[1])
    mean, beta = (t.detach().double().numpy() for t in (m[1].running_mean, m[1].bias))
    w, b = (t.detach().double().numpy() for t in (m[0].weight, m[0].bias))
    return w * s.reshape(-1, 1, 1, 1), (b - mean) * s + beta


def gamma_over(m: nn.Module, denominator: Callable[[np.ndarray, float], np.ndarray]) -> np.ndarray:
    return m.weight.detach().double().numpy() / denominator(m.running_var.double().numpy(), m.eps)


def drop_eps(w: np.ndarray, b: np.ndarray, m: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    return refold(m, lambda bn: gamma_over(bn, lambda var, eps: np.sqrt(var)))


def variance_for_deviation(w: np.ndarray, b: np.ndarray, m: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    return refold(m, lambda bn: gamma_over(bn, lambda var, eps: var + eps))


def eps_in_float32(w: np.ndarray, b: np.ndarray, m: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    return refold(m, lambda bn: gamma_over(bn, lambda var, eps: np.sqrt(var + float(np.float32(eps)))))


def unscaled_bias(w: np.ndarray, b: np.ndarray, m: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    scale = gamma_over(m[1], lambda var, eps: np.sqrt(var + eps))
    return w, b + m[0].bias.detach().double().numpy() * (1 - scale)


def next_group(w: np.ndarray, b: np.ndarray, m: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    return np.roll(w, 3, axis=0), b


def shift_one_pixel(w: np.ndarray, b: np.ndarray, m: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    return np.roll(w, 1, axis=3), b


def one_last_bit(w: np.ndarray, b: np.ndarray, m: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    return w.astype(np.float32).astype(np.float64), b


MUTANTS = [
    swap_channels,
    flip_one_sign,
    drop_eps,
    variance_for_deviation,
    eps_in_float32,
    unscaled_bias,
    next_group,
    shift_one_pixel,
    one_last_bit,
]
BELOW_A_LIMIT = (eps_in_float32, one_last_bit)  # so small that the layers behind hide them; the site proof sees them


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_site_proof_catches(mutant) -> None:
    """A site whose folded parameters are wrong in any of these ways is refused by its own proof."""
    model = network()
    plan = make_fold_plan(model, INPUTS, True, "refuse")
    assert not prove_sites(plan.graph, plan.placement, plan.changes)[1]
    change = plan.changes[0]
    weight, bias = mutant(change.weight.exact, change.bias.exact, model)
    change.weight, change.bias = Value(weight, "float32"), Value(bias, "float32")
    errors, refused = prove_sites(plan.graph, plan.placement, plan.changes)
    assert not errors
    assert [refusal.code for refusal in refused.values()] == ["unjudged"]


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m not in BELOW_A_LIMIT], ids=lambda mutant: mutant.__name__)
def test_verify_catches(mutant) -> None:
    """Two models that differ in any of these ways are told apart end to end, through the sigmoid."""
    model = network()
    result = fold(model, INPUTS)
    exact = {"0.weight": result.exact["0.weight"], "0.bias": result.exact["0.bias"]}
    exact["0.weight"], exact["0.bias"] = mutant(exact["0.weight"], exact["0.bias"], model)
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
