"""`fold`, `explain`, `fold_input` and `register_norm`: what they promise of their argument and their result."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import FakeQuantize

from foldserve.training.errors import FoldError
from foldserve.training.fold import Affine, explain, fold, fold_input, register_norm, verify
from foldserve.training.fold.pytorch.float64 import run_in_float64, sharing_copy
from foldserve.training.fold.refusals import Refusal, RefusalCode
from tests.support.fold_cases import Forward, randomise
from tests.support.fold_networks import BookNorm, build

IMAGES = torch.rand((2, 3, 9, 9), generator=torch.Generator().manual_seed(0))


def pair(**options: object) -> nn.Sequential:
    torch.manual_seed(0)
    return randomise(nn.Sequential(nn.Conv2d(3, 5, 3, **options), nn.BatchNorm2d(5), nn.ReLU()))


def test_names_dtypes_formats_and_flags_are_kept() -> None:
    """The result has the user's classes and names; a new bias follows its weight; the norm alone is gone."""
    model = pair(bias=False).to(torch.float64).to(memory_format=torch.channels_last)
    model.requires_grad_(False)
    folded = fold(model, (IMAGES.double(),)).model
    assert [type(m) for m in folded] == [nn.Conv2d, nn.Identity, nn.ReLU]
    assert list(folded.state_dict()) == ["0.weight", "0.bias"]
    assert {p.dtype for p in folded.parameters()} == {torch.float64}
    assert folded[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(p.requires_grad for p in folded.parameters())
    assert fold(pair(), (IMAGES,)).model[0].weight.requires_grad


def test_the_argument_is_untouched() -> None:
    """Parameters, buffers, plain-tensor statistics and modules are the same objects with the same bits afterwards."""
    model = nn.Sequential(nn.Conv2d(3, 5, 3), BookNorm(5, 4), nn.Conv2d(5, 5, 3), nn.BatchNorm2d(5)).eval()
    tensors = [*model.parameters(), *model.buffers(), model[1].moving_mean, model[1].moving_var]
    copies, modules = [t.clone() for t in tensors], list(model)
    fold(model, (IMAGES,))
    assert all(one is other for one, other in zip(modules, model, strict=True))
    now = [*model.parameters(), *model.buffers(), model[1].moving_mean, model[1].moving_var]
    assert all(one is other and torch.equal(other, old) for one, other, old in zip(tensors, now, copies, strict=True))


def test_two_folds_are_bit_identical_and_the_second_changes_nothing() -> None:
    """Folding is deterministic, and idempotent."""
    one, other = fold(pair(), (IMAGES,)), fold(pair(), (IMAGES,))
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    again = fold(one.model, (IMAGES,))
    assert not again.report.folded
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), again.model.parameters(), strict=True))


def test_explain_is_the_report_of_fold() -> None:
    """A dry run gives the same sites, without the proof of a model that was not made."""
    model = build("densenet")
    assert (explain(model, (IMAGES,)).folded, explain(model, (IMAGES,)).refused) == (
        (result := fold(model, (IMAGES,)).report).folded,
        result.refused,
    )


def test_the_cost_of_layers_that_are_computed_twice_is_stated() -> None:
    """5 x 27 numbers, and for each of 2 x 5 x 7 x 7 outputs a multiplication with the 27 of its channel."""
    model = randomise(Forward(lambda m, x: m.bn(y := m.conv(x)) + y, conv=nn.Conv2d(3, 5, 3), bn=nn.BatchNorm2d(5)))
    report = fold(model, (IMAGES,), duplicate="allow").report
    assert report.notes == (
        "1 layers are computed twice for 1 norms: 135 more parameters and 13,230 more multiplications for inputs of "
        "the example's sizes",
    )
    assert explain(model, (IMAGES,), duplicate="allow").folded == report.folded
    assert explain(model, (IMAGES,)).refused[0].code is RefusalCode.MULTI_USE
    with pytest.raises(FoldError, match='duplicate is \'yes\'; expected "refuse" or "allow"'):
        fold(model, (IMAGES,), duplicate="yes")


def test_strict_raises_with_what_stayed() -> None:
    """Strict mode is an error that names each refused norm, and nothing when all fold."""
    fold(pair(), (IMAGES,), strict=True)
    with pytest.raises(FoldError, match=r"1 \(activation-between\)"):
        fold(randomise(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU())), (IMAGES,), strict=True)


def test_a_model_in_training_mode_is_refused() -> None:
    """Statistics of the batch are no constants; the message says what to call."""
    with pytest.raises(Refusal, match=r"model\.eval\(\)") as refusal:
        fold(pair().train(), (IMAGES,))
    assert refusal.value.code is RefusalCode.TRAINING


def test_lazy_meta_and_other_unfit_models_are_refused() -> None:
    """Models without shapes or values, inputs that do not fit and arguments of the wrong kind are told apart."""
    lazy = nn.Sequential(nn.LazyConv2d(5, 3), nn.LazyBatchNorm2d()).eval()
    with pytest.raises(Refusal, match="lazy: the module '0'"):
        fold(lazy, (IMAGES,))
    with pytest.raises(FoldError, match=r"'0\.weight' is on the meta device"):
        fold(pair().to("meta"), (IMAGES,))
    with pytest.raises(
        FoldError, match=r"does not run on inputs of \(2, 2, .*; expected inputs that model\(\*inputs\) takes"
    ):
        fold(pair(), (IMAGES[:, :2],))
    with pytest.raises(FoldError, match="expected a tuple"):
        fold(pair(), IMAGES)
    with pytest.raises(FoldError, match='expected "refuse" or "exact"'):
        fold(pair(), (IMAGES,), padding="zeros")


def test_a_model_for_quantisation_keeps_its_norms() -> None:
    """Also one that still computes in floats: its tools look for the norms, and scales are chosen with them."""
    model = Forward(lambda m, x: m.body(m.sum.add(x, x)), body=pair(), sum=FloatFunctional()).eval()
    report = fold(model, (IMAGES,)).report
    assert [(site.path, site.code) for site in report.refused] == [("body.1", RefusalCode.QUANTISED)]
    assert "the module 'sum' is FloatFunctional" in report.refused[0].reason
    with pytest.raises(Refusal, match="quantised: the module '0' is FakeQuantize"):  # torch.export cannot read it
        fold(nn.Sequential(FakeQuantize(), pair()).eval(), (IMAGES,))


def test_a_path_that_depends_on_values_is_control_flow() -> None:
    """What torch.export cannot read is refused with what it tripped over."""
    model = Forward(lambda m, x: m.pair(x) if float(x.sum()) > 0 else x, pair=pair()).eval()
    with pytest.raises(FoldError, match=r"torch\.export cannot read the model"):
        fold(model, (IMAGES,))


def test_norm_and_input_scale_are_rounded_once() -> None:
    """fold then fold_input gives, bit for bit, the float64 product of both; so does fold with input_scale."""
    model = pair()
    chained, at_once = fold_input(fold(model, (IMAGES,)).model, 1 / 255), fold(model, (IMAGES,), input_scale=1 / 255)
    bn, weight = model[1], model[0].weight.detach().double()
    scale = bn.weight.detach().double() / (bn.running_var.double() + bn.eps).sqrt()
    expected = (weight * (1 / 255) * scale.reshape(-1, 1, 1, 1)).float()
    assert torch.equal(chained[0].weight, expected)
    assert torch.equal(at_once.model[0].weight, expected)
    assert torch.equal(chained[0].bias, at_once.model[0].bias)
    assert at_once.report.folded[0].kind == "input"


@pytest.mark.parametrize("padding", [0, 1, "same"])
def test_mean_and_std_fold_with_any_padding(padding: int | str) -> None:
    """(x / 255 - mean) / std goes into a padded convolution exactly, borders included."""
    model, mean, std = pair(padding=padding), [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    pixels = torch.randint(0, 256, (2, 3, 9, 9), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    folded = fold_input(model, 1 / 255, mean, std, example_inputs=(IMAGES,), padding="exact", uint8=True)
    columns = (torch.tensor(v, dtype=torch.float64).reshape(1, 3, 1, 1) for v in (mean, std))
    expected = run_in_float64(sharing_copy(model), ((pixels.double() / 255 - next(columns)) / next(columns),))
    got = copy.deepcopy(folded)(pixels).double()
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6 * float(expected.detach().abs().max()))


def test_input_folding_refuses_what_is_not_exact() -> None:
    """A mean before zero padding, a wrong number of channels, a zero scale and a missing sample are refused."""
    with pytest.raises(Refusal, match="pad"):
        fold_input(pair(padding=1), 1 / 255, 0.5, example_inputs=(IMAGES,))
    with pytest.raises(FoldError, match="2 channels, the input has shape"):
        fold_input(pair(), 1.0, [0.1, 0.2], example_inputs=(IMAGES,))
    with pytest.raises(FoldError, match="expected no zero"):
        fold_input(pair(), 0.0, example_inputs=(IMAGES,))
    with pytest.raises(FoldError, match="needs example_inputs"):
        fold_input(pair(), 1 / 255)


def test_changed_parameters_are_not_taken_back_to_their_float64_values() -> None:
    """After a folded model was tuned further, fold_input folds into what it holds now."""
    folded = fold(pair(), (IMAGES,)).model
    with torch.no_grad():
        folded[0].weight.mul_(1.5)
    tuned = folded[0].weight.detach().double()
    assert torch.equal(fold_input(folded, 1 / 255)[0].weight, (tuned * (1 / 255)).float())


class Opaque(nn.Module):
    """A norm whose forward branches on values, which no graph can read."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + 1 if float(self.factor) else torch.zeros_like(x)


def test_a_registered_norm_is_folded_and_a_wrong_reader_is_found_out() -> None:
    """The owner of a class states its affine; the proof runs the class itself."""

    class Unread(Opaque):
        pass

    model = nn.Sequential(nn.Conv2d(3, 5, 3), Unread(-2.5), nn.ReLU()).eval()
    register_norm(Unread, lambda m: Affine(torch.full((5,), m.factor).numpy(), torch.ones(5).numpy()))
    result = fold(model, (IMAGES,), strict=True)
    assert isinstance(result.model[1], nn.Identity)
    register_norm(Unread, lambda m: Affine(torch.full((5,), m.factor).numpy(), torch.zeros(5).numpy()))
    with pytest.raises(FoldError, match="does not compute"):
        fold(model, (IMAGES,))


@dataclass
class Output:
    values: Tensor
    images: Tensor


def test_a_data_class_among_the_outputs_is_kept() -> None:
    """Its tensors are compared, and the folded module still returns it."""
    model = Forward(lambda m, x: Output(m.body(x), x), body=pair()).eval()
    result = fold(model, (IMAGES,), strict=True)
    output = result.model(IMAGES)
    assert type(output) is Output
    torch.testing.assert_close(output.values, model(IMAGES).values)


def test_arguments_may_be_given_by_keyword() -> None:
    """Keyword-only inputs are read, proved and folded like positional ones, in both forms of a result."""

    class TwoInputs(nn.Module):
        def __init__(self, functional: bool):
            super().__init__()
            self.body, self.functional = pair(bias=False), functional

        def forward(self, *, image: Tensor, weight: Tensor) -> dict[str, Tensor]:
            values = self.body(image) * weight
            return {"values": nn.functional.conv2d(values, torch.ones(1, 5, 1, 1)) if self.functional else values}

    given = {"image": IMAGES, "weight": torch.rand(2, 1, 1, 1)}
    for functional in (False, True):
        model = TwoInputs(functional).eval()
        result = fold(model, given)
        assert [site.path for site in result.report.folded] == ["body.1"]
        torch.testing.assert_close(result.model(**given), model(**given))
        assert verify(model, result, given).algebra_error < 1e-11
        raw = fold_input(result, scale=0.5)
        doubled = {**given, "image": IMAGES * 2}
        torch.testing.assert_close(raw(**doubled), model(**given))
