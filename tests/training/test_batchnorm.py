"""The hand-written norm against `nn.BatchNorm`, finite differences, the commentaries' worked tables and itself."""

import copy
import io
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foldserve.training.batchnorm import BatchNorm, batch_norm, batch_norm_book
from foldserve.training.errors import ConfigError

SHAPES = {2: (6, 5), 3: (4, 5, 7), 4: (3, 5, 4, 2)}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}  # of each tensor's largest magnitude


def pytorch_norm(num_dims):
    """Return PyTorch's layer for inputs of that many axes."""
    return nn.BatchNorm2d if num_dims == 4 else nn.BatchNorm1d


def draw(num_dims, dtype=torch.float64, *, seed=0):
    """Return an input with a mean and deviation of its own in each of its 5 channels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPES[num_dims], dtype=torch.float64, generator=generator)
    channel = torch.arange(5, dtype=torch.float64).view([-1 if axis == 1 else 1 for axis in range(num_dims)])
    return (x * (channel + 0.5) + channel - 2).to(dtype)


def assert_close(found, expected, dtype):
    """Compare relative to the largest magnitude of the expected tensor."""
    difference = (found - expected).abs().max().item()
    assert difference <= TOLERANCE[dtype] * expected.abs().max().item()


def normalise(x, **options):
    """Return `x` normalised by its own statistics, gamma 1 and beta 0."""
    return batch_norm(x, None, None, None, None, **{"training": True, "eps": 1e-5, "momentum": 0.1, **options})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("num_dims", [2, 3, 4])
@pytest.mark.parametrize(
    "options",
    [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": 0.3, "eps": 1e-2}, {"momentum": None}],
    ids=["default", "no-affine", "no-statistics", "momentum-eps", "cumulative"],
)
def test_equals_pytorch_over_several_steps(num_dims, dtype, options):
    """Outputs, gradients of input and parameters, and buffers agree while both learn, and in evaluation afterwards."""
    ours = BatchNorm(5, num_dims, **options).to(dtype)
    theirs = pytorch_norm(num_dims)(5, **options).to(dtype)
    for step in range(5):
        values = draw(num_dims, dtype, seed=step)
        generator = torch.Generator().manual_seed(100 + step)
        upstream = torch.randn(SHAPES[num_dims], dtype=torch.float64, generator=generator).to(dtype)  # dloss / dy
        gradients = []
        for norm in (ours, theirs):
            x = values.clone().requires_grad_()
            y = norm(x)
            norm.zero_grad()
            y.backward(upstream)
            with torch.no_grad():
                for parameter in norm.parameters():
                    parameter -= 0.01 * parameter.grad
            gradients.append((y.detach(), x.grad, *[parameter.grad for parameter in norm.parameters()]))
        for found, expected in zip(*gradients, strict=True):
            assert_close(found, expected, dtype)
    for found, expected in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert_close(found, expected, dtype)
    x = draw(num_dims, dtype, seed=9)
    assert_close(ours.eval()(x), theirs.eval()(x), dtype)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_dims", [2, 3, 4])
def test_gradients_equal_finite_differences(num_dims, training):
    """Autograd through the written-out formula, for input, gamma and beta, in both modes."""
    gamma, beta, mean, variance = (torch.rand(5, dtype=torch.float64) + 0.5 for _ in range(4))
    inputs = [tensor.requires_grad_() for tensor in (draw(num_dims), gamma, beta)]

    def function(x, gamma, beta):
        return batch_norm(x, gamma, beta, mean.clone(), variance.clone(), training=training, eps=1e-5, momentum=0.1)

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_mode_alone_decides(training, grad):
    """The book's layer took gradients for training: ours uses and moves statistics by `training`, whatever grad is."""
    norm = BatchNorm(5, 2).double().train(training)
    x = draw(2)
    with torch.set_grad_enabled(grad):
        y = norm(x)
    by_batch = normalise(x)
    by_statistics = x / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(y.detach(), by_batch if training else by_statistics)
    assert int(norm.num_batches_tracked) == int(training)
    assert torch.equal(norm.moving_mean, torch.zeros(5)) is not training


def test_starts_as_the_textbook_says():
    """Gamma 1, beta 0, moving mean 0, moving variance 1."""
    norm = BatchNorm(3, 4)
    assert {key: value.tolist() for key, value in norm.state_dict().items()} == {
        "gamma": [1, 1, 1],
        "beta": [0, 0, 0],
        "moving_mean": [0, 0, 0],
        "moving_var": [1, 1, 1],
        "num_batches_tracked": 0,
    }


def test_statistics_move_in_place_and_survive_saving():
    """A captured graph or a state dict that holds the buffer sees every step; a saved layer answers as before."""
    norm = BatchNorm(5, 4)
    addresses = [buffer.data_ptr() for buffer in norm.buffers()]
    for step in range(3):
        norm(draw(4, torch.float32, seed=step))
    assert [buffer.data_ptr() for buffer in norm.buffers()] == addresses
    file = io.BytesIO()
    torch.save(norm.state_dict(), file)
    file.seek(0)
    again = BatchNorm(5, 4)
    again.load_state_dict(torch.load(file, weights_only=True))
    x = draw(4, torch.float32, seed=9)
    assert torch.equal(again.eval()(x), norm.eval()(x))


def test_moves_with_the_module():
    """`.to()` takes parameters and statistics along."""
    norm = BatchNorm(5, 2).to(torch.float64)
    assert norm.moving_mean.dtype == norm.gamma.dtype == torch.float64
    assert norm(draw(2)).dtype == torch.float64


# Conventions of averaging


def test_decay_weighs_the_old_value_and_momentum_the_new_one():
    """decay=0.9 is momentum=0.1, step by step."""
    by_decay, by_momentum = BatchNorm(5, 2, decay=0.9).double(), BatchNorm(5, 2, momentum=0.1).double()
    for step in range(3):
        by_decay(draw(2, seed=step))
        by_momentum(draw(2, seed=step))
    torch.testing.assert_close(by_decay.moving_mean, by_momentum.moving_mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(by_decay.moving_var, by_momentum.moving_var, rtol=1e-14, atol=0)


def test_exponential_average_by_hand():
    """One feature, batches of mean 10 and 20: 0.9·0 + 0.1·10 = 1, then 0.9·1 + 0.1·20 = 2.9."""
    norm = BatchNorm(1, 2).double()
    norm(torch.tensor([[9.0], [11.0]], dtype=torch.float64))
    assert norm.moving_mean.item() == pytest.approx(1.0)
    assert norm.moving_var.item() == pytest.approx(0.9 + 0.1 * 2.0)  # unbiased: ((−1)² + 1²) / (2 − 1)
    norm(torch.tensor([[19.0], [21.0]], dtype=torch.float64))
    assert norm.moving_mean.item() == pytest.approx(2.9)


@pytest.mark.parametrize(
    "options", [{"momentum": 0.1, "decay": 0.9}, {"momentum": None, "decay": 0.9}, {"momentum": 1.5}, {"decay": -0.1}]
)
def test_conventions_are_not_mixed(options):
    """Both keywords at once would leave open which one is meant; values outside 0 to 1 are no weights."""
    with pytest.raises(ConfigError, match=r"momentum|decay"):
        BatchNorm(5, 2, **options)


def test_cumulative_average_is_a_kalman_filter():
    """x ← x + k·(z − x), k = e_e / (e_e + e_m), e_e ← (1 − k)·e_e, with nothing known at first: k is 1/1, 1/2, 1/3."""
    norm = BatchNorm(1, 2, momentum=None).double()
    estimate, estimate_error, measurement_error = 0.0, 1e300, 1.0
    for step in range(6):
        batch = draw(2, seed=step)[:, 2:3]
        gain = estimate_error / (estimate_error + measurement_error)
        estimate += gain * (batch.mean().item() - estimate)
        estimate_error = measurement_error * gain  # (1 − k)·e_e, written so that it does not cancel
        norm(batch)
        assert gain == pytest.approx(1 / (step + 1))
        assert norm.moving_mean.item() == pytest.approx(estimate, rel=1e-12)


@pytest.mark.parametrize(("unbiased", "correction"), [(True, 1), (False, 0)])
def test_variance_conventions(unbiased, correction):
    """The moving variance averages with divisor n − 1 or n; what a batch is normalised by does not depend on it."""
    norm = BatchNorm(5, 4, momentum=1.0, unbiased=unbiased).double()
    x = draw(4)
    y = norm(x)
    torch.testing.assert_close(norm.moving_var, x.var((0, 2, 3), correction=correction))
    torch.testing.assert_close(y.detach(), normalise(x))


# The commentaries' worked tables


def test_table_of_columns():
    """[[0,1,2],[3,4,5],[6,7,8]]: each column becomes −1.2247, 0, 1.2247."""
    y = normalise(torch.arange(9.0).view(3, 3))
    expected = torch.tensor([-1.2247, 0.0, 1.2247]).view(3, 1).expand(3, 3)
    torch.testing.assert_close(y, expected, rtol=0, atol=5e-5)


def test_table_of_channels():
    """The 2×2×3 tensor of 0 to 11: both channels become the same six values, over batch and length together."""
    y = normalise(torch.arange(12.0).view(2, 2, 3))
    expected = torch.tensor([[-1.2865, -0.9649, -0.6433], [0.6433, 0.9649, 1.2865]])
    for channel in range(2):
        torch.testing.assert_close(y[:, channel], expected, rtol=0, atol=5e-5)


def test_table_of_batch_norm_1d():
    """BatchNorm1d(5) of three rows of random numbers, as printed."""
    x = torch.tensor(
        [
            [1.4356, 0.1787, 0.6224, 0.0602, 0.7122],
            [-1.2229, 0.5636, -0.6378, 0.3511, -0.2567],
            [-0.2492, -0.7034, -1.6082, -0.7513, 0.4328],
        ]
    )
    expected = torch.tensor(
        [
            [1.3183, 0.3125, 1.2742, 0.3719, 1.0219],
            [-1.1025, 1.0382, -0.1058, 0.9956, -1.3575],
            [-0.2158, -1.3507, -1.1684, -1.3676, 0.3357],
        ]
    )
    torch.testing.assert_close(BatchNorm(5, 2)(x).detach(), expected, rtol=0, atol=2e-4)  # four printed digits go in


@pytest.mark.parametrize("num_dims", [2, 3, 4])
def test_gamma_and_beta_can_undo_the_normalisation(num_dims):
    """gamma = √(σ² + ε) and beta = μ give the input back: the norm takes no power of expression away."""
    x = draw(num_dims)
    axes = [axis for axis in range(num_dims) if axis != 1]
    norm = BatchNorm(5, num_dims).double()
    with torch.no_grad():
        norm.gamma.copy_((x.var(axes, correction=0) + norm.eps).sqrt())
        norm.beta.copy_(x.mean(axes))
    torch.testing.assert_close(norm(x).detach(), x, rtol=1e-12, atol=1e-12)


def test_saturation_is_the_reason_for_it_all():
    """tanh(5) and tanh(40) cannot be told apart and pass no gradient; normalised, the two inputs differ again."""
    x = torch.tensor([[5.0], [40.0]], requires_grad=True)
    torch.testing.assert_close(torch.tanh(x[0]), torch.tanh(x[1]), rtol=1e-4, atol=0)
    torch.tanh(x).sum().backward()
    assert x.grad.max() < 2e-4
    assert torch.tanh(normalise(x)).diff(dim=0).item() > 1.5


def test_cross_entropy_is_the_negative_log_likelihood_of_log_softmax():
    """[1, 2, 3] with class 0: −log(e¹ / (e¹ + e² + e³)) = 2.4076, whichever way it is computed."""
    logits, label = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0])
    by_hand = -math.log(math.e / (math.e + math.e**2 + math.e**3))
    assert F.cross_entropy(logits, label).item() == pytest.approx(by_hand, rel=1e-6)
    assert F.nll_loss(F.log_softmax(logits, 1), label).item() == pytest.approx(2.4076, abs=5e-5)


def test_variance_survives_a_mean_far_from_zero():
    """Mean 10⁴, deviation 1, float32: two passes keep what E[x²] − E[x]² would lose."""
    values = torch.randn(1000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm = BatchNorm(1, 2, momentum=1.0)
    norm((values + 1e4).float())
    assert norm.moving_var.item() == pytest.approx(values.var().item(), rel=1e-3)


# As the book calls it


@pytest.mark.parametrize("num_dims", [2, 3, 4])
@pytest.mark.parametrize("shape", ["(C,)", "(1, C, ...)"])
def test_the_books_function_is_the_books_formula(num_dims, shape):
    """Positional arguments, three results, mode by gradients, momentum of the old value: against NumPy alone."""
    x = draw(num_dims)
    axes = tuple(axis for axis in range(num_dims) if axis != 1)
    layout = (5,) if shape == "(C,)" else (1, 5) + (1,) * (num_dims - 2)
    random = torch.Generator().manual_seed(1)
    gamma, beta, moving_mean, moving_var = torch.rand((4, *layout), dtype=torch.float64, generator=random) + 0.5
    given = moving_mean.clone(), moving_var.clone()
    y, mean, var = batch_norm_book(x, gamma, beta, moving_mean, moving_var, 1e-5, 0.9)
    values = x.numpy()
    batch_mean, batch_var = values.mean(axes, keepdims=True), values.var(axes, keepdims=True)
    in_place = (1, 5) + (1,) * (num_dims - 2)
    scale, shift = gamma.numpy().reshape(in_place), beta.numpy().reshape(in_place)
    np.testing.assert_allclose(
        y, scale * (values - batch_mean) / np.sqrt(batch_var + 1e-5) + shift, rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(mean, 0.9 * given[0].numpy() + 0.1 * batch_mean.reshape(layout), rtol=1e-12)
    np.testing.assert_allclose(var, 0.9 * given[1].numpy() + 0.1 * batch_var.reshape(layout), rtol=1e-12)
    assert torch.equal(moving_mean, given[0])
    with torch.no_grad():
        y, same_mean, same_var = batch_norm_book(x, gamma, beta, mean, var, 1e-5, 0.9)
    moved = (values - mean.numpy().reshape(in_place)) / np.sqrt(var.numpy().reshape(in_place) + 1e-5)
    np.testing.assert_allclose(y, scale * moved + shift, rtol=1e-12, atol=1e-12)
    assert same_mean is mean
    assert same_var is var


def test_the_books_function_trains_as_the_layer_with_its_decay_does():
    """Outputs, gradients and statistics over three batches are those of `BatchNorm(decay=0.9, unbiased=False)`."""
    norm = BatchNorm(5, 2, decay=0.9, unbiased=False).double()
    gamma, beta = torch.ones(1, 5).double().requires_grad_(), torch.zeros(1, 5).double().requires_grad_()
    mean, var = torch.zeros(1, 5).double(), torch.ones(1, 5).double()
    for seed in range(3):
        x = draw(2, seed=seed)
        y, mean, var = batch_norm_book(x, gamma, beta, mean, var, 1e-5, 0.9)
        y.pow(3).sum().backward()
        norm(x).pow(3).sum().backward()
        assert not mean.requires_grad
    assert_close(gamma.grad[0], norm.gamma.grad, torch.float64)
    assert_close(beta.grad[0], norm.beta.grad, torch.float64)
    assert_close(mean[0], norm.moving_mean, torch.float64)
    assert_close(var[0], norm.moving_var, torch.float64)


def test_one_row_is_normalised_to_zero_by_the_books_function():
    """Why batches must be large enough: nothing of the input is left but beta."""
    y, _, _ = batch_norm_book(
        torch.randn(1, 3), torch.ones(1, 3), torch.full((1, 3), 7.0), torch.zeros(1, 3), torch.ones(1, 3), 1e-5, 0.9
    )
    assert torch.equal(y, torch.full((1, 3), 7.0))


def test_a_momentum_that_is_rather_the_books_is_said(recwarn):
    """0.9 given as momentum is PyTorch's meaning, with a warning that names decay; what is usual says nothing."""
    with pytest.warns(UserWarning, match=r"momentum=0\.9 weighs the new value.* write decay=0\.9") as caught:
        norm = BatchNorm(5, 2, momentum=0.9)
    assert caught[0].filename == __file__
    assert norm.momentum == 0.9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({"momentum": 0.1}, {"momentum": 0.5}, {"decay": 0.1}, {"decay": 0.9}, {"momentum": None}):
            BatchNorm(5, 2, **options)


@pytest.mark.parametrize("num_dims", [2, 4])
@pytest.mark.parametrize("unbiased", [True, False])
def test_a_state_dict_of_the_books_class_loads(num_dims, unbiased):
    """Shapes (1, C) and (1, C, 1, 1), the moving statistics as buffers, no counters: the same evaluation."""
    shape = (1, 5) + (1,) * (num_dims - 2)
    names = ("gamma", "beta", "moving_mean", "moving_var")
    state = {f"norm.{name}": torch.rand(shape) + 0.5 for name in names}
    network = nn.Sequential()
    network.add_module("norm", BatchNorm(5, num_dims, unbiased=unbiased))
    assert network.load_state_dict(dict(state)) == ([], [])
    x = draw(num_dims, torch.float32)
    with torch.no_grad():
        expected, _, _ = batch_norm_book(x, *(state[f"norm.{name}"] for name in names), 1e-5, 0.9)
    torch.testing.assert_close(network.eval()(x), expected)
    state["norm.gamma"] = torch.rand(1, 6)
    with pytest.raises(RuntimeError, match=r"size mismatch for norm\.gamma"):
        network.load_state_dict(state)


# Half precision and empty batches, as PyTorch


def outcome(norm, x, *, autocast):
    """Return output, gradients and buffers of a step whose loss is a sum of cubes."""
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = norm(x)
    (y if y.dtype == torch.float64 else y.float()).pow(3).sum().backward()
    return [t.detach() for t in (y, x.grad, *(parameter.grad for parameter in norm.parameters()), *norm.buffers())]


@pytest.mark.parametrize("num_dims", [2, 3, 4])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_works_as_in_pytorchs_layers(num_dims, training, autocast):
    """Under autocast and as a bfloat16 module: PyTorch's dtypes, and within bfloat16's rounding of float64."""
    theirs = pytorch_norm(num_dims)(5).train(training)
    ours, exact = BatchNorm(5, num_dims).train(training), copy.deepcopy(theirs).double()
    if not autocast:
        ours, theirs = ours.bfloat16(), theirs.bfloat16()
    found = outcome(ours, draw(num_dims, torch.bfloat16), autocast=autocast)
    expected = outcome(theirs, draw(num_dims, torch.bfloat16), autocast=autocast)
    assert [each.dtype for each in found] == [each.dtype for each in expected]
    for each, value in zip(found, outcome(exact, draw(num_dims, torch.bfloat16).double(), autocast=False), strict=True):
        assert (each.double() - value).abs().max() <= 2e-2 * value.abs().max()


def test_autocast_trains_a_network_with_norms_by_hand():
    """Convolutions in bfloat16 before float32 statistics: a step that used to end in `lerp_` with two dtypes."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), BatchNorm(4, 4), nn.Sigmoid())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = network(torch.rand(3, 1, 8, 8))
    y.sum().backward()
    assert network[1].moving_mean.dtype == torch.float32
    assert network[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3), (0, 5, 3, 3), (2, 5, 0, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_is_as_pytorchs(shape, training):
    """Nothing comes out, gradients are 0, statistics stay where they are, and the batch is counted."""
    results = []
    for norm in (BatchNorm(5, len(shape)), pytorch_norm(len(shape))(5)):
        x = torch.zeros(shape, requires_grad=True)
        y = norm.train(training)(x)
        y.sum().backward()
        results.append((y, x.grad, *(parameter.grad for parameter in norm.parameters()), *norm.buffers()))
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


# Refusals


@pytest.mark.parametrize("shape", [(1, 5), (1, 5, 1), (1, 5, 1, 1)])
def test_one_value_per_channel_is_refused_in_training(shape):
    """Its variance is 0 and the answer would be beta, silently; in evaluation the same input is fine."""
    norm = BatchNorm(5, len(shape))
    with pytest.raises(ConfigError, match="one value per channel"):
        norm(torch.zeros(shape))
    assert norm.eval()(torch.zeros(shape)).shape == shape
    assert int(norm.num_batches_tracked) == 0


def test_one_value_per_channel_is_refused_without_statistics_in_evaluation_too():
    """Without moving statistics every batch is normalised by its own."""
    with pytest.raises(ConfigError, match="one value per channel"):
        BatchNorm(5, 2, track_running_stats=False).eval()(torch.zeros(1, 5))


@pytest.mark.parametrize("shape", [(5,), (4, 5, 2), (4, 6), (4, 5, 2, 2, 2)])
def test_other_shapes_are_refused(shape):
    """A layer for (N, 5) takes nothing else."""
    with pytest.raises(ConfigError, match="expected 2 axes with 5 features"):
        BatchNorm(5, 2)(torch.zeros(shape))


@pytest.mark.parametrize("arguments", [(5, 1), (5, 5), (0, 2)])
def test_impossible_layers_are_refused(arguments):
    """2 to 4 axes, at least one feature."""
    with pytest.raises(ConfigError, match=r"num_dims|num_features"):
        BatchNorm(*arguments)


def test_function_refuses_other_axes():
    """The function alone checks its input too."""
    with pytest.raises(ConfigError, match="expected"):
        normalise(torch.zeros(3))


def test_a_copy_is_independent():
    """A deep copy trains without moving the original's statistics."""
    norm = BatchNorm(5, 2)
    copy.deepcopy(norm)(draw(2, torch.float32))
    assert torch.equal(norm.moving_mean, torch.zeros(5))
