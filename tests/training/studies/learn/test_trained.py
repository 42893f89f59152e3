"""Variants trained over seeds: what is kept of them, how it is averaged, and what the sweeps make of it."""

import statistics

import pytest
import torch

from foldserve.training.fit import fit
from foldserve.training.model import count_parameters, lenet
from foldserve.training.studies import variants
from foldserve.training.studies.arms import Case
from foldserve.training.studies.learn import book_lessons, speed_lessons, trained
from foldserve.training.studies.learn.lesson import Setting
from foldserve.training.studies.measurement import measure


def arms_of(**tests):
    """Figures as `measure_arms` gives them, made up: the test accuracy of each seed by arm."""
    return {
        "arms": {
            label: [
                {
                    "seed": at,
                    "diverged": None,
                    "loss": 0.5,
                    "train_accuracy": value + 0.05,
                    "test": value,
                    "curve": [value],
                }
                for at, value in enumerate(values)
            ]
            for label, values in tests.items()
        }
    }


def test_a_second_time_nothing_is_trained_and_the_same_comes_out(tmp_path, made_up):
    """Lessons share their trainings, so a network is trained once for all of them."""
    lines = []
    setting = Setting(2, lambda: made_up, tmp_path / "t.jsonl", "x", quick=True, tell=lines.append)
    arms = {"BN": trained.book_arm("lenet"), "none": trained.book_arm("lenet", norm="none")}
    first = trained.measure_arms(arms, setting)
    again = trained.measure_arms({"the same": arms["BN"]}, setting)
    assert again["arms"]["the same"] == first["arms"]["BN"]
    assert lines[-1].startswith("nothing to train")
    assert [run["seed"] for run in first["arms"]["none"]] == [0, 1]
    assert len(first["runs_made_by"]) == 4
    assert "test_running" in first["arms"]["BN"][0]
    assert "test_running" not in first["arms"]["none"][0]


def test_means_and_differences_are_those_of_the_seeds():
    """Beside Python's own statistics; a run that diverged counts as chance."""
    figures = arms_of(one=[0.8, 0.9, 0.7], other=[0.5, 0.7, 0.6])
    assert trained.mean_of(figures, "one") == pytest.approx(0.8)
    away = trained.difference(figures, "one", "other")
    assert away.mean == pytest.approx(0.2)
    assert away.sd == pytest.approx(statistics.stdev([0.3, 0.2, 0.1]))
    figures["arms"]["one"][0] = {"seed": 0, "diverged": "loss is nan"}
    assert trained.mean_of(figures, "one") == pytest.approx((0.1 + 0.9 + 0.7) / 3)
    assert trained.rows_of(figures)[0][:2] == ("one", 2)


def test_a_network_that_diverged_in_every_seed_has_a_row_too():
    """The largest learning rates without norms end so."""
    figures = {"arms": {"none": [{"seed": 0, "diverged": "loss is nan"}]}}
    assert trained.rows_of(figures) == [("none", "0 of 1", *["diverged"] * 4)]


def test_findings_turn_with_the_figures():
    """Noisy norms that trained worse, or dropout that helped, are not as said."""
    names = dict.fromkeys(book_lessons.NOISY, 0.8)
    good = arms_of(**{name: [value] for name, value in (names | {"no norm": 0.4, "dropout alone": 0.4}).items()})
    assert all(finding.agrees for finding in book_lessons.read_noise(good).findings)
    bad = arms_of(**{name: [value] for name, value in (names | {"noisy BN": 0.7, "dropout beside BN": 0.9}).items()})
    bad["arms"]["dropout beside BN"][0]["train_accuracy"] = 0.9  # no gap at all
    assert [finding.agrees for finding in book_lessons.read_noise(bad).findings] == [False] * 4


def test_sweeps_find_the_largest_rate_and_what_small_batches_cost():
    """From means over the seeds at each value."""
    rates = {f"{label}, {rate:g}": [0.8 if rate <= limit else 0.1] for label, limit in (("BN", 3.0), ("no norm", 0.3))
             for rate in speed_lessons.RATES}  # fmt: skip
    findings = speed_lessons.read_rates({"values": list(speed_lessons.RATES), **arms_of(**rates)}).findings
    assert findings[0].measured == "3, 0.3"
    assert findings[0].agrees
    sizes = {f"{label}, {size:g}": [0.8 - lost / size] for label, lost in (("BN", 0.4), ("no norm", 0.0))
             for size in speed_lessons.SIZES}  # fmt: skip
    findings = speed_lessons.read_sizes({"values": list(speed_lessons.SIZES), **arms_of(**sizes)}).findings
    assert findings[1].measured.startswith("0.1992, 0.0000")
    assert all(finding.agrees for finding in findings)


@pytest.mark.parametrize("size", [2, 512])
def test_every_size_of_a_sweep_can_be_trained(made_up, size):
    """One epoch of few rows, smaller than the largest batch."""
    arm = speed_lessons.sweep("batch-size", (size,))[f"BN, {size}"].shortened(epochs=1, rows=64)
    assert measure(Case(arm, 0), made_up, torch.device("cpu"))["diverged"] is None


def test_a_bias_before_a_norm_is_taken_off_again():
    """Any bias gives the same logits in training mode, and its gradient is nothing but rounding."""
    torch.manual_seed(0)
    model, images = lenet().double().train(), torch.rand(16, 1, 28, 28, dtype=torch.float64)
    before = model(images)
    before.square().sum().backward()
    assert model.conv1.bias.grad.abs().max() < 1e-10 * model.conv1.weight.grad.abs().max()
    with torch.no_grad():
        model.conv1.bias.add_(3.0)
        model.dense1.bias.add_(-2.0)
    torch.testing.assert_close(model(images), before)
    model = variants.without_redundant_biases(lenet())
    assert [name for name, _ in model.named_parameters() if name.endswith("bias") and not name.startswith("norm")] == [
        "dense3.bias"
    ]


def test_norms_stand_on_the_input_of_every_layer_with_weights():
    """As many features as the layer takes in."""
    model = variants.norms_on_inputs(lenet(norm="none"))
    names = [name for name, _ in model.named_children()]
    assert [names[names.index(f"norm_{name}") + 1] for name in ("conv1", "conv2", "dense1", "dense2", "dense3")] == [
        "conv1", "conv2", "dense1", "dense2", "dense3",
    ]  # fmt: skip
    assert [model.get_submodule(f"norm_{name}").num_features for name in ("conv1", "conv2", "dense1")] == [1, 6, 256]
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_layer_normalization_is_pytorchs_own_and_has_as_many_parameters_as_bn():
    """On rows of features `nn.LayerNorm` gives the same; on maps each image has mean 0 and variance 1."""
    model = variants.layer_norms(lenet(norm="none"))
    assert count_parameters(model) == count_parameters(lenet()) == 44_878
    x = torch.randn(5, 120) * 3 + 1
    torch.testing.assert_close(model.norm3(x), nn_layer_norm(x))
    y = model.norm1(torch.randn(5, 6, 24, 24) * 4 + 2).flatten(1)
    torch.testing.assert_close(y.mean(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(1, correction=0), torch.ones(5), atol=1e-4, rtol=0)


def nn_layer_norm(x):
    return torch.nn.LayerNorm(x.shape[1])(x)


def test_norms_can_be_left_out_and_gamma_and_beta_fixed(made_up):
    """Those that are named stay; what is fixed does not move in a training."""
    names = [name for name, _ in variants.only_norms(lenet(), "13").named_children() if name.startswith("norm")]
    assert names == ["norm1", "norm3"]
    arm = trained.book_arm("norm-fixed").shortened(epochs=1, rows=128)
    network = arm.build(arm.recipe(0))
    fit(network, made_up, arm.recipe(0), torch.device("cpu"))
    assert torch.equal(network.norm1.weight, torch.ones(6))
    assert torch.equal(network.norm4.bias, torch.zeros(84))
    assert not torch.equal(network.norm1.running_mean, torch.zeros(6))
