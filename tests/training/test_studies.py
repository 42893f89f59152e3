"""Arms, variants, the store, the runner and what is measured, on made-up data."""

import dataclasses
import multiprocessing
import signal

import numpy as np
import pytest
import torch
from torch import nn

from foldserve.training import command as command_line
from foldserve.training.config import Recipe
from foldserve.training.errors import ArtifactError, CheckpointError, ConfigError
from foldserve.training.model import count_parameters, lenet
from foldserve.training.pipeline import train
from foldserve.training.run import Run
from foldserve.training.studies import plan, variants
from foldserve.training.studies.adoption import adopt
from foldserve.training.studies.arms import Arm, Case, cases_of
from foldserve.training.studies.measurement import measure, saturated
from foldserve.training.studies.runner import run, summary
from foldserve.training.studies.selection import held_out
from foldserve.training.studies.store import Store

CPU = torch.device("cpu")
SHORT = {"epochs": 2, "batch_size": 64, "learning_rate": 0.5}
ARM = Arm(name="short", options=SHORT)


def names(model):
    return [name for name, _ in model.named_children()]


def test_norms_move_behind_their_sigmoids_and_nothing_else_moves():
    """Norm and sigmoid change places four times; layers, parameters and the rest of the order stay."""
    model = variants.norms_after_activations(lenet())
    assert names(model)[:4] == ["conv1", "sigmoid1", "norm1", "pool1"]
    assert names(model)[-3:] == ["sigmoid4", "norm4", "dense3"]
    assert sorted(names(model)) == sorted(names(lenet()))
    assert count_parameters(model) == count_parameters(lenet())
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_noise_stands_behind_every_norm_and_acts_in_training_alone():
    """Four of them; in evaluation the network is the one without noise."""
    model, plain = variants.noise_after_norms(lenet()), lenet()
    plain.load_state_dict(model.state_dict())
    assert [name for name in names(model) if name.startswith("noise")] == ["noise1", "noise2", "noise3", "noise4"]
    assert names(model)[1:3] == ["norm1", "noise1"]
    images = torch.rand(4, 1, 28, 28)
    assert torch.equal(model.eval()(images), plain.eval()(images))
    assert not torch.equal(model.train()(images), plain.train()(images))


def test_noise_has_a_mean_and_a_size_of_its_own_in_every_channel():
    """Over many rows a channel's mean is its drawn shift and its deviation its drawn size, other ones in each call."""
    noise = variants.ShiftingNoise(shift=2.0, scale=3.0).train()
    torch.manual_seed(0)
    first, second = noise(torch.zeros(20_000, 4)), noise(torch.zeros(20_000, 4))
    assert (first.mean(0) - second.mean(0)).abs().min() > 0.1
    assert first.mean(0).abs().max() < 2.1
    assert first.std(0).max() < 3.1
    assert first.std(0).min() < first.std(0).max() - 0.3


def test_dropout_stands_behind_the_two_dense_sigmoids():
    """With or without norms."""
    for norm in ("torch", "none"):
        model = variants.dropout_in_classifier(lenet(norm=norm))
        assert [name for name in names(model) if name.startswith("dropout")] == ["dropout3", "dropout4"]
        assert names(model)[-3:] == ["sigmoid4", "dropout4", "dense3"]


def test_the_seed_of_a_case_decides_its_weights_and_an_unknown_network_is_refused():
    """Every network of the plan is built twice alike, and the random state outside is not touched."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for network in ("lenet", "lenet-plain", "norm-after", "noisy-norm", "dropout"):
        arm = Arm(name="any", network=network)
        first, second, other = (arm.build(arm.recipe(seed)) for seed in (1, 1, 2))
        assert torch.equal(first.conv1.weight, second.conv1.weight)
        assert not torch.equal(first.conv1.weight, other.conv1.weight)
    assert torch.equal(torch.rand(1), expected)
    with pytest.raises(ConfigError, match="network 'resnet'"):
        Arm(name="any", network="resnet").build(Recipe())


def test_a_measurement_has_every_epoch_and_both_kinds_of_statistics(made_up):
    """The book's figures, the same weights judged twice, and the sigmoids of all four layers before and after."""
    found = measure(Case(ARM, 3), made_up, CPU)
    assert [record["epoch"] for record in found["epochs"]] == [1, 2]
    assert all(0 <= record["population_accuracy"] <= 1 for record in found["epochs"])
    assert set(found["test_accuracy"]) == {"running", "population"}
    assert found["test_accuracy"]["running"] == found["epochs"][-1]["test_accuracy"]
    assert set(found["train_accuracy"]) == {"population"}
    for when in ("before", "after"):
        assert list(found["saturated"][when]) == ["sigmoid1", "sigmoid2", "sigmoid3", "sigmoid4"]
    assert (found["seed"], found["recipe"]["seed"], found["train_rows"], found["diverged"]) == (3, 3, 352, None)


def test_measuring_twice_gives_the_same_figures_with_dropout_too(made_up):
    """The seed decides noise and dropout as well; only the clock differs."""
    arm = Arm(name="dropout", options={**SHORT, "epochs": 1}, network="dropout")
    first, second = (measure(Case(arm, 1), made_up, CPU) for _ in range(2))
    assert first["epochs"][0]["loss"] == second["epochs"][0]["loss"]
    assert first["test_accuracy"] == second["test_accuracy"]


def test_a_divergence_is_a_finding(made_up):
    """The measurement ends with the reason and without accuracies."""
    arm = Arm(name="too-fast", options={**SHORT, "learning_rate": 1e38, "norm": "none"})
    found = measure(Case(arm, 0), made_up, CPU)
    assert "the loss became" in found["diverged"]
    assert "test_accuracy" not in found
    assert "too-fast seed 0: the loss became" in summary(found)


def test_selection_never_meets_the_test_set(made_up):
    """The last training rows take its place and are not trained on."""
    split = held_out(made_up, 52)
    assert np.array_equal(split.test_images, made_up.train_images[-52:])
    assert np.array_equal(split.train_images, made_up.train_images[:-52])
    assert np.array_equal(split.test_labels, made_up.train_labels[-52:])
    with pytest.raises(ConfigError, match="352 rows held out of 352"):
        held_out(made_up, 352)


def test_saturated_counts_the_flat_parts_of_a_sigmoid():
    """|x| = 4 is flat and 3 is not: of five values two."""
    network = nn.Sequential(nn.Flatten(), nn.Sigmoid())
    images = torch.zeros(1, 1, 1, 5)
    network[0] = nn.Sequential(nn.Flatten(), Fixed(torch.tensor([[-4.0, -3.0, 0.0, 3.0, 4.0]])))
    assert saturated(network, images)["1"] == pytest.approx(0.4)


class Fixed(nn.Module):
    """Answers the same whatever comes."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, _):
        return self.answer


def test_the_store_keeps_what_it_was_given_and_replaces_the_same_key(tmp_path):
    """Read back in order by another object; an addition under a known key takes its place."""
    store = Store(tmp_path / "deep" / "runs.jsonl")
    assert store.read() == {}
    for key, value in (("a/0", 1), ("b/0", 2), ("a/0", 3)):
        store.add(key, {"value": value})
    assert [(key, entry["value"]) for key, entry in Store(store.path).read().items()] == [("a/0", 3), ("b/0", 2)]
    assert [path.name for path in store.path.parent.iterdir()] == ["runs.jsonl"]


def test_the_store_refuses_a_file_of_something_else(tmp_path):
    """The message names the file and what to do."""
    path = tmp_path / "runs.jsonl"
    path.write_text("hello\n")
    with pytest.raises(ArtifactError, match="expected one measurement a line"):
        Store(path).read()


def _add_many(path, worker):
    for number in range(10):
        Store(path).add(f"{worker}/{number}", {})


def test_processes_that_add_at_once_lose_nothing(tmp_path):
    """Two writers with ten additions each leave twenty."""
    path = tmp_path / "runs.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_many, args=(path, worker)) for worker in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(Store(path).read()) == 20


def test_an_interrupted_study_goes_on_with_what_is_missing(tmp_path, made_up):
    """Ctrl-C after the first case keeps it; the second call trains the other two alone."""
    arm = dataclasses.replace(ARM, options={**SHORT, "epochs": 1})
    store, cases, told = Store(tmp_path / "runs.jsonl"), cases_of([arm], 3), []

    def interrupt_after_one(line):
        told.append(line)
        if line.startswith("1/3"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(cases, store, CPU, made_up, tell=interrupt_after_one)
    assert list(store.read()) == ["short/0"]
    found = run(cases, store, CPU, made_up, tell=told.append)
    assert list(found) == ["short/0", "short/1", "short/2"]
    assert sum(line.startswith(("1/2", "2/2")) for line in told) == 2


def test_figures_of_another_recipe_are_not_taken_for_this_one(tmp_path, made_up):
    """The same name with other options is refused, and the message says which option."""
    store = Store(tmp_path / "runs.jsonl")
    arm = dataclasses.replace(ARM, options={**SHORT, "epochs": 1})
    run([Case(arm, 0)], store, CPU, made_up, tell=lambda _: None)
    with pytest.raises(ConfigError, match="short/0 was measured with epochs 1, now it is 2"):
        run([Case(ARM, 0)], store, CPU, made_up, tell=lambda _: None)


@pytest.mark.slow
def test_side_by_side_gives_the_same_figures(tmp_path, made_up):
    """Two processes measure what one measures."""
    arm = dataclasses.replace(ARM, options={**SHORT, "epochs": 1})
    cases = cases_of([arm], 2)
    alone = run(cases, Store(tmp_path / "alone.jsonl"), CPU, made_up, tell=lambda _: None)
    together = run(cases, Store(tmp_path / "together.jsonl"), CPU, made_up, jobs=2, tell=lambda _: None)
    for key, found in alone.items():
        assert found["test_accuracy"] == together[key]["test_accuracy"]
        assert found["epochs"][0]["loss"] == together[key]["epochs"][0]["loss"]


def test_the_plan_has_no_name_twice_and_takes_turns():
    """Every case has a key of its own, every recipe is valid, and first seeds come first."""
    cases = plan.in_turns(plan.studies(8).values())
    assert len({case.key for case in cases}) == len(cases)
    assert [case.seed for case in cases] == sorted(case.seed for case in cases)
    assert all(case.arm.recipe(case.seed).epochs >= 1 for case in cases)
    quick = plan.quickened(cases)
    assert {case.arm.recipe(0).epochs for case in quick} == {1}
    assert all(case.arm.train_rows <= plan.QUICK_ROWS for case in quick)


def finished_run(folder, dataset, recipe):
    """Leave what `train-and-export` leaves of a training, and return the training."""
    run_folder = Run(folder)
    trained = train(recipe, dataset, CPU, run_folder.append)
    run_folder.write_config({"revision": "abc", "environment": {"threads": 1}})
    run_folder.write_weights(trained.weights)
    return trained


def test_a_finished_run_is_taken_in_with_its_own_figures(tmp_path, made_up):
    """What a study would measure of the same recipe is what it has of the run, but for the population's curve."""
    case = Case(ARM, 2)
    trained = finished_run(tmp_path / "run", made_up, ARM.recipe(2))
    found, adopted = adopt(tmp_path / "run", [Case(ARM, 1), case], made_up)
    measured = measure(case, made_up, CPU)
    assert found == case
    assert adopted["test_accuracy"] == measured["test_accuracy"] == dict(trained.test_accuracy)
    assert adopted["train_accuracy"] == measured["train_accuracy"]
    assert adopted["saturated"] == measured["saturated"]
    assert [record["loss"] for record in adopted["epochs"]] == [record["loss"] for record in measured["epochs"]]
    assert set(measured) - set(adopted) == set()


def test_a_run_of_another_recipe_or_an_unfinished_one_is_not_taken_in(tmp_path, made_up):
    """No case fits, and too few epochs: each is refused with the reason."""
    finished_run(tmp_path / "run", made_up, ARM.recipe(2))
    with pytest.raises(ConfigError, match="no training of this study has its recipe"):
        adopt(tmp_path / "run", [Case(ARM, 1)], made_up)
    metrics = tmp_path / "run" / "metrics.csv"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(CheckpointError, match="1 of 2 epochs"):
        adopt(tmp_path / "run", [Case(ARM, 2)], made_up)


def test_every_value_of_a_recipe_has_a_flag():
    """A hyperparameter that the command line cannot set could not be repeated with it."""
    flags = {"learning_rate": "--lr"}
    for field in dataclasses.fields(Recipe):
        flag = flags.get(field.name, f"--{field.name.replace('_', '-')}")
        value = getattr(Recipe(), field.name)
        arguments = command_line._parser().parse_args(["train-and-export", flag, str(value)])
        assert getattr(arguments, field.name) == value
    arguments = command_line._parser().parse_args(["train-and-export", "--preset", "best", "--optimizer", "adam"])
    recipe = command_line._recipe(arguments)
    assert (recipe.optimizer, recipe.augment, recipe.schedule) == ("adam", "mirror", "linear")
