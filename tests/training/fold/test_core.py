"""The float64 core against PyTorch's own layers, for every weight layout."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foldserve.training.fold.core import Affine, Layout, border_kernel, concatenate, fold_consumer, fold_producer
from foldserve.training.fold.refusals import Refusal


def random_affine(channels: int, seed: int = 0) -> Affine:
    rng = np.random.default_rng(seed)
    return Affine(rng.normal(size=channels), rng.normal(size=channels))


def along_axis_1(affine: Affine, x: torch.Tensor) -> torch.Tensor:
    sizes = [1, -1] + [1] * (x.ndim - 2)
    return x * torch.from_numpy(affine.scale).reshape(sizes) + torch.from_numpy(affine.shift).reshape(sizes)


def layer(layout: Layout, weight: np.ndarray, bias: np.ndarray | None, groups: int, x: torch.Tensor) -> torch.Tensor:
    w, b = torch.from_numpy(weight), None if bias is None else torch.from_numpy(bias)
    if layout is Layout.CONV:
        return F.conv2d(x, w, b, groups=groups)
    if layout is Layout.CONV_TRANSPOSE:
        return F.conv_transpose2d(x, w, b, stride=2, groups=groups)
    if layout is Layout.LINEAR:
        return F.linear(x, w, b)
    return x @ w + (0 if b is None else b)


SHAPES = [
    (Layout.CONV, 1, (6, 4, 3, 3), (2, 4, 5, 5)),
    (Layout.CONV, 2, (6, 2, 3, 3), (2, 4, 5, 5)),
    (Layout.CONV, 4, (4, 1, 3, 3), (2, 4, 5, 5)),
    (Layout.CONV_TRANSPOSE, 1, (4, 4, 3, 3), (2, 4, 5, 5)),
    (Layout.CONV_TRANSPOSE, 2, (4, 3, 3, 3), (2, 4, 5, 5)),
    (Layout.CONV_TRANSPOSE, 4, (4, 1, 3, 3), (2, 4, 5, 5)),
    (Layout.LINEAR, 1, (5, 5), (3, 5)),
    (Layout.MATMUL, 1, (5, 5), (3, 5)),
]
UNPADDED = [shape for shape in SHAPES if shape[0] is not Layout.CONV_TRANSPOSE]


@pytest.mark.parametrize(("layout", "groups", "weight_shape", "input_shape"), SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_producer_computes_the_affine_of_the_layer(layout, groups, weight_shape, input_shape, with_bias) -> None:
    """Folding behind a layer equals applying the affine to its output, for square weights and all groups alike."""
    rng = np.random.default_rng(1)
    weight, x = rng.normal(size=weight_shape), torch.from_numpy(rng.normal(size=input_shape))
    out = layer(layout, weight, None, groups, x).shape[1]
    bias, affine = rng.normal(size=out) if with_bias else None, random_affine(out)
    folded = layer(layout, *fold_producer(weight, bias, affine, layout, groups), groups, x)
    torch.testing.assert_close(folded, along_axis_1(affine, layer(layout, weight, bias, groups, x)), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("layout", "groups", "weight_shape", "input_shape"), UNPADDED)
def test_consumer_computes_the_layer_of_the_affine(layout, groups, weight_shape, input_shape) -> None:
    """Folding before an unpadded layer equals applying the affine to its input."""
    rng = np.random.default_rng(2)
    weight, x = rng.normal(size=weight_shape), torch.from_numpy(rng.normal(size=input_shape))
    affine = random_affine(input_shape[1])
    folded = layer(layout, *fold_consumer(weight, None, affine, layout, groups), groups, x)
    torch.testing.assert_close(folded, layer(layout, weight, None, groups, along_axis_1(affine, x)), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("groups", "stride", "dilation"), [(1, 1, 1), (2, 2, 1), (4, 1, 2)])
def test_border_kernel_makes_up_for_zero_padding(groups, stride, dilation) -> None:
    """Scaled weights plus the border map equal the convolution of the shifted, then zero-padded input."""
    rng = np.random.default_rng(3)
    weight, x = rng.normal(size=(8, 4 // groups, 3, 3)), torch.from_numpy(rng.normal(size=(2, 4, 7, 7)))
    affine = random_affine(4)
    options = {"stride": stride, "padding": 2, "dilation": dilation}
    scaled, _ = fold_consumer(weight, None, affine.without_shift(), Layout.CONV, groups)
    kernel, ones = torch.from_numpy(border_kernel(weight, affine, groups)), torch.ones(1, 1, 7, 7).double()
    folded = F.conv2d(x, torch.from_numpy(scaled), groups=groups, **options) + F.conv2d(ones, kernel, **options)
    expected = F.conv2d(along_axis_1(affine, x), torch.from_numpy(weight), groups=groups, **options)
    torch.testing.assert_close(folded, expected, rtol=0, atol=1e-13)


def test_affine_of_a_batch_norm_is_what_torch_computes() -> None:
    """The affine equals F.batch_norm in float64, with and without gamma and beta."""
    rng = np.random.default_rng(4)
    mean, var, gamma, beta = rng.normal(size=5), rng.uniform(0, 2, 5), rng.normal(size=5), rng.normal(size=5)
    x = torch.from_numpy(rng.normal(size=(3, 5)))
    for g, b in ((gamma, beta), (None, None)):
        statistics = [None if v is None else torch.from_numpy(v) for v in (mean, var, g, b)]
        expected = F.batch_norm(x, *statistics, eps=1e-3)
        got = along_axis_1(Affine.from_batch_norm(mean, var, g, b, 1e-3), x)
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("mean", "var", "eps", "code"),
    [
        (np.nan, 1.0, 1e-5, "non-finite"),
        (np.inf, 1.0, 1e-5, "non-finite"),
        (0.0, np.nan, 1e-5, "non-finite"),
        (0.0, -1e-3, 1e-5, "zero-denominator"),
        (0.0, -1e-9, 1e-5, "zero-denominator"),
        (0.0, 0.0, 0.0, "zero-denominator"),
    ],
)
def test_statistics_that_no_affine_describes_are_refused(mean, var, eps, code) -> None:
    """NaN, infinity, negative variance and a zero denominator each get their code."""
    with pytest.raises(Refusal) as refusal:
        Affine.from_batch_norm([1.0, mean], [1.0, var], None, None, eps)
    assert refusal.value.code == code


def test_weights_that_are_not_finite_are_refused() -> None:
    """A NaN weight is named, not folded; a product beyond float64 is an overflow."""
    weight, affine = np.ones((2, 2)), random_affine(2)
    weight[0, 1] = np.nan
    with pytest.raises(Refusal, match="non-finite"):
        fold_producer(weight, None, affine, Layout.LINEAR)
    with pytest.raises(Refusal, match="overflow"), np.errstate(over="ignore"):
        fold_producer(np.full((2, 2), 1e300), None, Affine(np.full(2, 1e300), np.zeros(2)), Layout.LINEAR)


def test_affines_compose_and_take_apart() -> None:
    """then, take, repeat and concatenate agree with applying the numbers one after the other."""
    one, two, x = random_affine(4, 1), random_affine(4, 2), np.random.default_rng(5).normal(size=4)
    both = one.then(two)
    np.testing.assert_allclose(both.scale * x + both.shift, two.scale * (one.scale * x + one.shift) + two.shift)
    again = concatenate([one.take(0, 1), one.take(1, 4)])
    assert np.array_equal(again.scale, one.scale)
    assert np.array_equal(again.shift, one.shift)
    assert one.repeat(2).scale.tolist() == [s for s in one.scale for _ in range(2)]
    with pytest.raises(ValueError, match="cannot serve"):
        one.spread(3)


def test_a_wrong_number_of_channels_is_an_error() -> None:
    """An affine for other channels than the layer's is never stretched to fit."""
    with pytest.raises(ValueError, match="3 channels, the layer produces 2"):
        fold_producer(np.ones((2, 5)), None, random_affine(3), Layout.LINEAR)
