"""Every lesson runs from end to end, and each number stands beside a formula that does not know how it was measured."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from foldserve.training.command import main
from foldserve.training.studies.learn import (
    catalogue,
    command,
    depth,
    formula,
    kalman,
    landscape,
    layer_norm,
    saturation,
    starting_values,
)
from foldserve.training.studies.learn.lesson import Setting
from foldserve.training.studies.learn.report import report, text
from tests.training.conftest import made_up_data

BY_NAME = {lesson.name: lesson for lesson in catalogue.LESSONS}


@pytest.fixture
def setting(tmp_path, made_up):
    """As little as possible, on made-up images."""
    return Setting(1, lambda: made_up, tmp_path / command.STORE, "foldserve learn", quick=True, tell=lambda _: None)


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in ("batch-size", "learning-rates")])
def test_every_lesson_leaves_figures_findings_and_a_picture(name, setting, tmp_path):
    """What it printed can be read out of its figures again, as JSON has them."""
    lesson = BY_NAME[name]
    report(lesson, setting, tmp_path)
    held = json.loads((tmp_path / f"{name}.json").read_text())
    assert [finding.as_dict() for finding in lesson.read(held["figures"]).findings] == held["findings"]
    assert held["origins"][0]["command"] == "foldserve learn"
    assert (tmp_path / f"{name}.png").exists() == (lesson.draw is not None)
    assert lesson.says in text(lesson, lesson.read(held["figures"]))


def test_learn_alone_lists_lessons_and_studies(capsys):
    """And a count below 1 is refused before anything is trained."""
    assert main(["learn"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in (*BY_NAME, *command.STUDIES))
    assert main(["learn", "kalman", "--seeds", "0"]) == 2
    assert "--seeds 0: expected at least 1" in capsys.readouterr().err
    assert main(["learn", "noise", "--jobs", "0"]) == 2


def test_learn_writes_where_it_is_told_and_says_what_was_typed(tmp_path, capsys):
    """The command in the record is the one that gives the figures again."""
    assert main(["learn", "kalman", "--seeds", "2", "--quick", "--out", str(tmp_path)]) == 0
    held = json.loads((tmp_path / "kalman.json").read_text())
    assert held["origins"][0]["command"] == "foldserve learn kalman --seeds 2 --quick"
    assert f"wrote {tmp_path / 'kalman.png'}" in capsys.readouterr().out


def test_a_report_can_be_made_anew_of_its_figures(tmp_path, capsys):
    """Findings and picture follow an edited figure; who made the figures stays; without figures it says what to do."""
    words = ["learn", "kalman", "--report-only", "--out", str(tmp_path)]
    assert main(words) == 1
    assert "measure it without --report-only" in capsys.readouterr().err
    assert main(["learn", "kalman", "--seeds", "1", "--quick", "--out", str(tmp_path)]) == 0
    path = tmp_path / "kalman.json"
    held = json.loads(path.read_text())
    held["origins"][0]["revision"] = "then"
    held["figures"]["settled"] = 0.2
    path.write_text(json.dumps(held))
    assert main(words) == 0
    again = json.loads(path.read_text())
    assert again["origins"] == held["origins"]
    assert [each["agrees"] for each in again["findings"]].count(False) >= 1
    assert "0.2000" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", ["formula", "softmax"])
def test_what_the_text_prints_is_what_is_computed(name, setting):
    """To the four decimals that are printed."""
    lesson = BY_NAME[name]
    assert all(finding.agrees for finding in lesson.read(lesson.measure(setting)).findings)


def test_a_table_that_is_off_is_not_as_said(setting):
    """One wrong value of nine."""
    figures = formula.measure_formula(setting)
    figures["small"][1][1] = 0.001
    assert [finding.agrees for finding in formula.read_formula(figures).findings].count(False) == 1


@pytest.mark.parametrize("ratio", [1e-6, 0.3, 1.0, 50.0, 1e6])
def test_gains_of_a_constant_are_those_of_least_squares(ratio):
    """The first guess weighs as 1 / ratio measurements: K_k = 1 / (k + 1 / ratio), whatever the recursion."""
    expected = [1 / (step + 1 / ratio) for step in range(1, 21)]
    np.testing.assert_allclose(kalman.gains(ratio, 20), expected, rtol=1e-9)


def test_gain_has_its_two_limits_and_a_drift_settles_it():
    """Believe the measurement, keep the estimate, and 0.1 under the drift that belongs to it."""
    assert kalman.gain(1e9, 1.0) == pytest.approx(1.0)
    assert kalman.gain(1.0, 1e9) == pytest.approx(0.0, abs=1e-8)
    assert kalman.gains(7.0, 300, drift=kalman.drift_of(0.1))[-1] == pytest.approx(0.1)


def test_simulated_errors_are_those_of_the_formula_and_least_at_the_gain():
    """Within the scatter of ten thousand steps; the derivative of the formula is 0 at the settled gain."""
    drift = kalman.drift_of(0.1)
    for momentum in (0.05, 0.1, 0.4):
        simulated = kalman.simulated_error(momentum, drift, 10_000, seed=3)
        assert simulated == pytest.approx(kalman.expected_error(momentum, drift), rel=0.15)
    below, at, above = (kalman.expected_error(momentum, drift) for momentum in (0.099, 0.1, 0.101))
    assert at < min(below, above)
    assert at == pytest.approx(0.1)  # P = K · e_m


def test_what_a_start_leaves_falls_by_a_tenth_a_step_and_changes_no_weight():
    """0.9^k of it, and networks that started otherwise have the same weights bit for bit."""
    data = made_up_data(600).on(torch.device("cpu"))
    made = starting_values.twins(0, data.test_images)
    result = starting_values.train_twins(made, data, 0, (1, 2, 6))
    np.testing.assert_allclose(result["left"], [0.9, 0.81, 0.9**6], rtol=1e-4)
    first, *others = made.values()
    for other in others:
        for one, two in zip(first.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two)


def test_plain_means_are_the_mean_of_all_batches():
    """The third start keeps nothing of its start: after one batch it has that batch's mean."""
    data = made_up_data(300).on(torch.device("cpu"))
    made = starting_values.twins(0, data.test_images)
    untrained = made[starting_values.STARTS[2]].conv1.weight.detach().clone()
    starting_values.train_twins(made, data, 0, (1,))
    order = starting_values.epoch_order(300, 0, 1)[:256]
    conv = made[starting_values.STARTS[2]].conv1
    outputs = F.conv2d(data.train_images[order].float() / 255, untrained) + made[
        starting_values.STARTS[0]
    ].conv1.bias.view(1, -1, 1, 1)
    mean = made[starting_values.STARTS[2]].norm1.running_mean
    torch.testing.assert_close(mean, outputs.detach().mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    assert conv.weight.shape == untrained.shape


def test_flat_units_are_as_many_as_the_normal_distribution_has():
    """And behind a norm the scale of the input changes nothing."""
    network, x = saturation.layer(0, norm=False)
    for scale in (3.0, 30.0):
        assert saturation.measure_at(network, scale * x)["flat"] == pytest.approx(
            saturation.expected_flat(scale), abs=0.05
        )
    assert saturation.expected_flat(1.0) == pytest.approx(
        2 * (1 - 0.5 * (1 + math.erf(2.9932 / math.sqrt(2)))), rel=1e-3
    )
    network, x = saturation.layer(0, norm=True)
    shares = [saturation.measure_at(network, scale * x)["flat"] for scale in (1.0, 100.0)]
    assert shares[0] == pytest.approx(shares[1], abs=1e-4)


def test_gradients_by_depth_are_those_of_the_chain_rule():
    """Multiplied out by hand with matrices, and below the bound of a quarter of each layer's norm."""
    network = depth.deep("sigmoid", seed=1)
    images, labels = torch.rand(8, 1, 28, 28), torch.arange(8)
    found = depth.gradients(network, images, labels)
    linears = [module for module in network if isinstance(module, nn.Linear)]
    x, slopes = images.flatten(1).double(), []
    for linear in linears[:-1]:
        y = torch.sigmoid(x @ linear.weight.detach().double().T + linear.bias.detach().double())
        slopes.append(y * (1 - y))
        x = y
    logits = x @ linears[-1].weight.detach().double().T + linears[-1].bias.detach().double()
    delta = (F.softmax(logits, 1) - F.one_hot(labels, 10)) / len(labels)
    expected = [float(delta.norm())]
    for linear, slope in zip(reversed(linears[1:]), reversed(slopes), strict=True):
        delta = delta @ linear.weight.detach().double() * slope
        expected.insert(0, float(delta.norm()))
    np.testing.assert_allclose(found["gradient"], expected, rtol=1e-3)
    assert found["gradient"][0] / found["gradient"][-1] <= depth.bound(found["norm"])


def test_norms_keep_gradients_alive_in_eight_layers():
    """Without them a millionth of the gradient arrives at the first layer; with large weights, a thousand times."""
    images, labels = torch.rand(64, 1, 28, 28), torch.arange(64) % 10
    reach = {}
    for kind in depth.KINDS:
        found = depth.gradients(depth.deep(kind, seed=0).train(), images, labels)["gradient"]
        reach[kind] = found[0] / found[-1]
    assert reach["sigmoid"] < 1e-3 * reach["sigmoid and BN"]
    assert reach["ReLU, large weights"] > 100 * reach["ReLU, large weights and BN"]


def test_on_a_quadratic_the_line_is_known_in_closed_form():
    """Of ½ xᵀAx the gradient moves by length · A g, and the smoothness constant is at most the largest eigenvalue."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    matrix = root @ root.T
    x = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    gradient = (matrix @ x).detach()
    found = landscape.along_gradient(lambda: 0.5 * x @ matrix @ x, [x], (0.1, 0.5))
    moved = [float(length * (matrix @ gradient).norm()) for length in (0.1, 0.5)]
    ends = [(x - length * gradient).detach() for length in (0.1, 0.5)]
    np.testing.assert_allclose(found["moved"], moved, rtol=1e-10)
    np.testing.assert_allclose(found["loss"], [float(0.5 * end @ matrix @ end) for end in ends], rtol=1e-10)
    assert max(found["smoothness"]) <= float(torch.linalg.eigvalsh(matrix).max()) + 1e-9
    np.testing.assert_allclose(x.detach() @ matrix, gradient)


def test_before_a_norm_twice_the_weights_have_half_the_gradient():
    """The loss does not depend on their size, so large steps correct themselves: why larger rates work."""
    torch.manual_seed(0)
    x, labels = torch.randn(64, 12), torch.arange(64) % 10
    network = nn.Sequential(nn.Linear(12, 16, bias=False), nn.BatchNorm1d(16, eps=1e-12), nn.ReLU(), nn.Linear(16, 10))
    network.double()
    first = torch.autograd.grad(F.cross_entropy(network(x.double()), labels), network[0].weight)[0]
    with torch.no_grad():
        network[0].weight.mul_(2)
    second = torch.autograd.grad(F.cross_entropy(network(x.double()), labels), network[0].weight)[0]
    torch.testing.assert_close(second, first / 2)
    assert abs((first * network[0].weight).sum().item()) < 1e-8 * first.norm().item()


def test_layer_normalization_bends_and_batch_normalization_does_not():
    """An affine map sends the middle to the middle; a row's own deviation in the divisor does not."""
    batch, layer = nn.BatchNorm2d(6, dtype=torch.float64).eval(), nn.GroupNorm(1, 6, dtype=torch.float64)
    assert layer_norm.bend(batch) < 1e-12
    assert layer_norm.bend(layer) > 0.1
    assert layer_norm.company(layer) < 1e-12
    assert layer_norm.company(nn.BatchNorm2d(6, dtype=torch.float64)) > 0.01


@pytest.mark.parametrize("rows", [2, 3, 16])
def test_a_batch_bounds_what_is_left_of_a_row(rows):
    """Of N rows none is further out than √(N − 1); of two only which one is larger is left, ±1."""
    x = 5 * torch.randn(rows, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = F.batch_norm(x, None, None, training=True, eps=1e-12)
    assert y.abs().max() <= math.sqrt(rows - 1) + 1e-9
    if rows == 2:
        torch.testing.assert_close(y[0], torch.sign(x[0] - x[1]))


def test_the_noise_of_a_batch_falls_with_the_root_of_its_size():
    """A batch's mean scatters by σ / √N around the population's: what a norm adds to a row's answer."""
    generator = torch.Generator().manual_seed(1)
    population = 3 * torch.randn(2_000, 64, generator=generator, dtype=torch.float64)
    for rows in (2, 8, 64):
        assert population[:, :rows].mean(1).std().item() == pytest.approx(3 / math.sqrt(rows), rel=0.06)
