"""The training loop against a textbook loop, its measurements, its determinism and its refusals."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from foldserve.training.config import Recipe
from foldserve.training.dataset import scale_pixels
from foldserve.training.epoch import epoch_mirrored, epoch_order
from foldserve.training.errors import ConfigError, DivergenceError
from foldserve.training.fit import evaluate, fit
from foldserve.training.model import build

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=2, batch_size=64, learning_rate=0.5, seed=3)


def batches(order, recipe):
    """Return the rows of each step: the remainder first or last."""
    remainder = len(order) % recipe.batch_size if recipe.tail == "first" else 0
    return [part for part in (order[:remainder], *order[remainder:].split(recipe.batch_size)) if len(part)]


def textbook_loop(model, dataset, recipe):
    """Train with nothing but slices, autograd and `p -= lr * grad`; return the last epoch's loss and accuracy."""
    images, labels = scale_pixels(torch.as_tensor(dataset.train_images)), torch.as_tensor(dataset.train_labels)
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        loss_sum = correct = 0.0
        for rows in batches(epoch_order(len(labels), recipe.seed, epoch), recipe):
            logits = model(images[rows])
            loss = F.cross_entropy(logits, labels[rows])
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= recipe.learning_rate * parameter.grad
            loss_sum += loss.item() * len(rows)
            correct += (logits.argmax(1) == labels[rows]).sum().item()
    return loss_sum / len(labels), correct / len(labels)


@pytest.mark.parametrize(("norm", "tail"), [("torch", "first"), ("torch", "last"), ("scratch", "first")])
def test_equals_a_textbook_loop(made_up, norm, tail):
    """Weights, buffers, loss and accuracy after two epochs with a tail are those of the plain loop.

    The tolerance is what float32 allows: after these steps the plain loop is up to 2e-5 from its own run in float64.
    """
    recipe = Recipe(epochs=2, batch_size=64, learning_rate=0.5, seed=3, norm=norm, tail=tail)
    ours, plain = build(recipe), build(recipe)
    history = fit(ours, made_up, recipe, CPU)
    loss, accuracy = textbook_loop(plain, made_up, recipe)
    for name, expected in plain.state_dict().items():
        assert (ours.state_dict()[name] - expected).abs().max() <= 5e-5 * expected.abs().max(), name
    assert history.last.loss == pytest.approx(loss, rel=1e-5)
    assert history.last.train_accuracy == pytest.approx(accuracy)


def test_learns_and_reports_each_epoch(made_up):
    """The made-up classes are learnt, and the callback sees every record as it is measured."""
    seen = []
    recipe = Recipe(epochs=3, batch_size=32, learning_rate=0.5)
    history = fit(build(recipe), made_up, recipe, CPU, on_epoch=seen.append)
    assert seen == history.epochs
    assert [record.epoch for record in seen] == [1, 2, 3]
    assert seen[-1].loss < 0.5 * seen[0].loss
    assert seen[-1].train_accuracy > 0.9
    assert all(0 < record.wall_examples_per_second < record.examples_per_second for record in seen)
    assert set(seen[0].as_dict()) >= {"loss", "train_accuracy", "test_accuracy"}


def test_same_seed_gives_the_same_weights_bit_for_bit(made_up):
    """Two runs of one recipe cannot be told apart; another seed can."""
    first, second, other = build(RECIPE), build(RECIPE), build(RECIPE)
    fit(first, made_up, RECIPE, CPU)
    fit(second, made_up, RECIPE, CPU)
    fit(other, made_up, Recipe(**{**RECIPE.as_dict(), "seed": 4}), CPU)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_two_threads_give_the_same_weights_bit_for_bit_too(made_up):
    """Which of them is done first decides nothing, and PyTorch has its number of threads back afterwards."""
    torch.set_num_threads(2)
    first, second = build(RECIPE), build(RECIPE)
    fit(first, made_up, RECIPE, CPU)
    fit(second, made_up, RECIPE, CPU)
    assert torch.get_num_threads() == 2
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_every_epoch_takes_every_row_once_in_another_order():
    """The order is a permutation, changes with epoch and seed, and repeats when asked again."""
    first = epoch_order(1000, seed=0, epoch=1)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert torch.equal(first, epoch_order(1000, seed=0, epoch=1))
    assert not torch.equal(first, epoch_order(1000, seed=0, epoch=2))
    assert not torch.equal(first, epoch_order(1000, seed=1, epoch=1))


def test_norms_count_every_step_and_the_model_ends_in_evaluation_mode(made_up):
    """Six steps an epoch: five full ones and the tail; a model given in evaluation mode is trained all the same."""
    model = build(RECIPE).eval()
    fit(model, made_up, RECIPE, CPU)
    assert int(model.norm1.num_batches_tracked) == 12
    assert not model.training


def test_evaluate_equals_one_forward_pass_and_restores_the_mode(made_up):
    """Chunks change nothing, statistics stay, and a model in training goes on in training."""
    model = build(RECIPE).train()
    images, labels = torch.as_tensor(made_up.test_images), torch.as_tensor(made_up.test_labels)
    before = model.norm1.running_mean.clone()
    found = evaluate(model, images, labels, rows=33)
    assert model.training
    assert torch.equal(model.norm1.running_mean, before)
    with torch.no_grad():
        expected = (model.eval()(scale_pixels(images)).argmax(1) == labels).double().mean().item()
    assert found == pytest.approx(expected)


def test_divergence_names_epoch_and_step(made_up):
    """A loss that is no number any more ends the run with the place where it happened first."""
    recipe = Recipe(epochs=2, batch_size=64, learning_rate=1e37, norm="none", statistics="none")
    with pytest.raises(DivergenceError, match=r"nan|inf") as divergence:
        fit(build(recipe), made_up, recipe, CPU)
    assert "in epoch 1 at step " in str(divergence.value)
    assert "--lr" in str(divergence.value)


def test_remainder_of_one_is_refused_before_training(made_up):
    """352 rows in batches of 117 leave one row, whose variance norms cannot use; without norms it is a step."""
    model = build(RECIPE)
    before = model.conv1.weight.clone()
    with pytest.raises(ConfigError, match="--batch-size 117: 352 rows would leave a batch of 1"):
        fit(model, made_up, Recipe(epochs=1, batch_size=117), CPU)
    assert torch.equal(model.conv1.weight, before)
    bare = Recipe(epochs=1, batch_size=117, norm="none", statistics="none", learning_rate=0.1)
    assert math.isfinite(fit(build(bare), made_up, bare, CPU).last.loss)


def test_batch_larger_than_the_data_is_one_step(made_up):
    """The remainder is then the whole set."""
    few = dataclasses.replace(made_up, train_images=made_up.train_images[:20], train_labels=made_up.train_labels[:20])
    recipe = Recipe(epochs=1, batch_size=256)
    model = build(recipe)
    fit(model, few, recipe, CPU)
    assert int(model.norm1.num_batches_tracked) == 1


def test_mirroring_equals_training_on_images_mirrored_before(made_up):
    """One epoch on the fly and one epoch on a set that was mirrored by hand end with the same weights."""
    recipe = dataclasses.replace(RECIPE, epochs=1, augment="mirror")
    flipped = made_up.train_images.copy()
    rows = epoch_mirrored(len(flipped), recipe.seed, 1).numpy()
    flipped[rows] = flipped[rows, :, :, ::-1]
    by_hand = dataclasses.replace(made_up, train_images=flipped)
    ours, plain = build(recipe), build(recipe)
    fit(ours, made_up, recipe, CPU)
    fit(plain, by_hand, dataclasses.replace(recipe, augment="none"), CPU)
    assert torch.equal(ours.conv1.weight, plain.conv1.weight)
    fit(other := build(recipe), made_up, dataclasses.replace(recipe, augment="none"), CPU)
    assert not torch.equal(ours.conv1.weight, other.conv1.weight)


def test_only_full_batches_are_compiled(made_up, monkeypatch):
    """Five of 64 rows go through the compiler, the 32 of the remainder do not; the weights are the model's own."""
    sizes = []

    def spied(network):
        return lambda x: sizes.append(len(x)) or network(x)

    monkeypatch.setattr("foldserve.training.epoch.compiled", spied)
    recipe = dataclasses.replace(RECIPE, epochs=1)
    ours, plain = build(recipe), build(recipe)
    fit(ours, made_up, recipe, CPU, compiles=True)
    assert sizes == [64] * 5
    textbook_loop(plain, made_up, recipe)
    for name, expected in plain.state_dict().items():
        assert (ours.state_dict()[name] - expected).abs().max() <= 5e-5 * expected.abs().max(), name


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_linear_schedule_comes_to_rest(made_up, optimizer):
    """Both optimizers learn the classes, and the rate of the last step is next to nothing."""
    recipe = Recipe(epochs=4, batch_size=32, learning_rate=0.02, optimizer=optimizer, schedule="linear")
    seen = []
    history = fit(build(recipe), made_up, recipe, CPU, on_epoch=seen.append)
    assert history.last.loss < 0.3 * history.epochs[0].loss
    assert history.last.train_accuracy > 0.95


@pytest.mark.parametrize(
    "options", [{"norm": "scratch"}, {"norm": "none", "statistics": "none"}, {"pool": "max"}, {}], ids=str
)
def test_no_network_waits_for_pytorchs_own_threads(made_up, options):
    """Steps of small operations take one of PyTorch's threads each, and the caller's number is given back."""
    torch.set_num_threads(2)
    recipe, seen = Recipe(epochs=1, batch_size=64, **options), set()
    fit(build(recipe), made_up, recipe, CPU, on_step=lambda rows: seen.add(torch.get_num_threads()))
    assert seen == {1}
    assert torch.get_num_threads() == 2
