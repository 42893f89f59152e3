"""Checkpoints: a training that goes on from one cannot be told from one that never stopped; damage is refused."""

import contextlib
import copy
import dataclasses
import json
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foldserve.training.checkpoint import read_checkpoint, write_checkpoint
from foldserve.training.config import Recipe
from foldserve.training.dataset import FashionMNIST
from foldserve.training.errors import ArtifactError, CheckpointError, ConfigError, DivergenceError
from foldserve.training.fit import Snapshot, fit
from foldserve.training.model import build
from foldserve.training.run_folder import RunFolder
from foldserve.training.session import resume, start
from tests.training.conftest import made_up_images, run_config

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=4, batch_size=64, learning_rate=0.5, seed=3)
TRAINER = """
import sys, torch
from pathlib import Path
from tests.training.test_checkpoint import LONG, train_in
torch.set_num_threads(1)
print("begun", flush=True)
train_in(Path(sys.argv[1]), lambda record: print(record.epoch, flush=True))
"""
LONG = Recipe(epochs=30, batch_size=64, learning_rate=0.5, seed=3)


def made_up_data() -> FashionMNIST:
    return FashionMNIST(*made_up_images(352, 1), *made_up_images(100, 2), source="made up", digests={"file": "0"})


def train_in(folder: Path, on_epoch=None):
    """Start a run in `folder`, or resume the one there; return the trained model."""
    data = made_up_data()
    resumes = (folder / "config.json").exists()
    session = resume(folder, data, "cpu") if resumes else start(folder, run_config(LONG, data), CPU)
    model = build(LONG)
    with contextlib.closing(session.run):
        fit(model, data, LONG, CPU, on_epoch, resumed=session.resumed, on_snapshot=session.save)
    return model


def stopped_after(epoch: int, recipe: Recipe, data: FashionMNIST) -> Snapshot:
    """Train all epochs and return a copy of where the training stood after `epoch`."""
    kept: list[Snapshot] = []
    fit(build(recipe), data, recipe, CPU, on_snapshot=lambda snapshot: kept.append(copy.deepcopy(snapshot)))
    return kept[epoch - 1]


def same_bits(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


BEST = {"optimizer": "muon", "schedule": "linear", "augment": "mirror", "learning_rate": 0.1}


ADAM = {"optimizer": "adam", "learning_rate": 0.01}


@pytest.mark.parametrize(
    ("changes", "epoch"), [({}, 1), ({}, 3), ({}, 4), ({"norm": "scratch"}, 3), (BEST, 1), (BEST, 3), (ADAM, 3)]
)
def test_training_goes_on_bit_for_bit(made_up, tmp_path, changes, epoch):
    """Weights, buffers and records after a stop at any epoch are those of the training that was left alone."""
    recipe = Recipe(**{**RECIPE.as_dict(), **changes})
    whole, stopped = build(recipe), build(recipe)
    history = fit(whole, made_up, recipe, CPU)
    path = tmp_path / "last.pt"
    write_checkpoint(path, stopped_after(epoch, recipe, made_up), recipe, {})
    resumed = fit(stopped, made_up, recipe, CPU, resumed=read_checkpoint(path, recipe, {}))
    assert same_bits(stopped, whole)
    assert [record.loss for record in resumed.epochs] == [record.loss for record in history.epochs]
    assert resumed.last.wall_examples_per_second > 0


@pytest.mark.slow
def test_a_run_killed_three_times_ends_with_the_same_bits(tmp_path):
    """kill -9 right after the beginning and at two random moments leaves nothing that changes the weights."""
    folder, chance = tmp_path / "run", random.Random()
    for line in ("begun", "3", "12"):
        process = subprocess.Popen([sys.executable, "-c", TRAINER, str(folder)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for printed in process.stdout:
            if printed.strip() == line or (line != "begun" and printed.strip().isdigit() and int(printed) > int(line)):
                break
        try:
            process.wait(timeout=chance.uniform(0.0, 0.1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
    folder.mkdir(exist_ok=True)
    resumed, whole = train_in(folder), train_in(tmp_path / "whole")
    assert same_bits(resumed, whole)


def test_a_diverging_run_keeps_its_last_good_checkpoint(made_up, tmp_path):
    """The epoch whose loss is no number is not kept, and the message names step and file."""
    recipe = Recipe(epochs=3, batch_size=64, learning_rate=0.5, norm="none", statistics="none")
    session = start(tmp_path / "run", run_config(recipe, made_up), CPU)
    model = build(recipe)

    def spoil(record):
        if record.epoch == 2:
            with torch.no_grad():
                model.dense3.bias[0] = float("nan")

    with (
        pytest.raises(DivergenceError, match=r"in epoch 3 at step 1 of 6; lower --lr; .*last\.pt keeps"),
        session.resumable(),
    ):
        fit(model, made_up, recipe, CPU, spoil, on_snapshot=session.save)
    kept = read_checkpoint(session.run.checkpoint, recipe, {})
    assert len(kept.epochs) == 2
    assert all(torch.isfinite(tensor).all() for tensor in kept.model.values())


def test_weights_broken_by_the_last_step_are_not_kept(made_up):
    """The loss of the step that breaks them is still finite."""
    recipe = Recipe(epochs=1, batch_size=352, learning_rate=1e30, norm="none", statistics="none")
    kept, model = [], build(recipe)
    model.dense3.weight.register_hook(lambda grad: grad * 1e30)
    with pytest.raises(DivergenceError, match="last step of epoch 1"):
        fit(model, made_up, recipe, CPU, on_snapshot=kept.append)
    assert kept == []


@pytest.fixture
def kept(made_up, tmp_path):
    """A checkpoint on the disk."""
    path = tmp_path / "last.pt"
    write_checkpoint(path, stopped_after(1, RECIPE, made_up), RECIPE, {"file": "0"})
    return path


@pytest.fixture
def no_room():
    """Let the system refuse files beyond 4 kB inside a block, as a full disk does, after they were partly written."""

    @contextlib.contextmanager
    def limited():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


def test_no_room_for_a_checkpoint_leaves_the_last_one_whole(made_up, kept, no_room):
    """One sentence with the way on; the earlier epoch can still be read, and nothing half-written lies beside it."""
    before = kept.read_bytes()
    second = stopped_after(2, RECIPE, made_up)
    with no_room(), pytest.raises(ArtifactError, match=r"last\.pt cannot be written \(File too large\); .* --resume "):
        write_checkpoint(kept, second, RECIPE, {"file": "0"})
    assert kept.read_bytes() == before
    assert [path.name for path in kept.parent.iterdir()] == ["last.pt"]
    assert len(read_checkpoint(kept, RECIPE, {"file": "0"}).epochs) == 1


def other_byte(raw):
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 255]) + raw[middle + 1 :]


@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"{}" * 50, other_byte]
)
def test_a_damaged_checkpoint_is_refused(kept, spoil):
    """Cut off, empty, something else, or one byte of a weight: one sentence that names the file."""
    kept.write_bytes(spoil(kept.read_bytes()))
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read as a checkpoint"):
        read_checkpoint(kept, RECIPE, {"file": "0"})


def test_a_checkpoint_never_runs_code(kept):
    """A pickle that would call a function is refused unread."""
    torch.save({"format": 1, "recipe": print}, kept)
    with pytest.raises(CheckpointError, match=r"holds objects .* code in a file is never run") as refused:
        read_checkpoint(kept, RECIPE, {"file": "0"})
    assert "weights_only" not in str(refused.value), "PyTorch's advice is to run it all the same"


@pytest.mark.parametrize("content", [[1, 2], {"format": 1}, {"format": 2}])
def test_another_file_of_torch_is_refused(kept, content):
    """What torch can read is not yet a checkpoint."""
    torch.save(content, kept)
    with pytest.raises(CheckpointError, match="start a new run"):
        read_checkpoint(kept, RECIPE, {"file": "0"})


def test_a_checkpoint_of_another_training_is_refused(kept):
    """Another recipe and other data are named with both values."""
    other = Recipe(**{**RECIPE.as_dict(), "learning_rate": 0.25})
    with pytest.raises(CheckpointError, match=r"recipe has learning_rate 0\.5 instead of 0\.25"):
        read_checkpoint(kept, other, {"file": "0"})
    with pytest.raises(CheckpointError, match="its data has file '0' instead of '1'"):
        read_checkpoint(kept, RECIPE, {"file": "1"})


def test_a_checkpoint_of_another_architecture_is_refused(kept, made_up):
    """State that does not fit the model is an error of one sentence, before any step."""
    snapshot = read_checkpoint(kept, RECIPE, {"file": "0"})
    with pytest.raises(CheckpointError, match="another architecture") as refused:
        fit(build(Recipe(norm="none", statistics="none")), made_up, RECIPE, CPU, resumed=snapshot)
    assert "\n" not in str(refused.value)


def test_what_a_killed_process_left_half_done_is_removed(tmp_path, made_up):
    """Temporary files go, and metrics.csv states what the checkpoint knows: here nothing."""
    start(tmp_path / "run", run_config(RECIPE, made_up), CPU).run.close()
    (tmp_path / "run" / ".tmp-abc").write_bytes(b"half")
    (tmp_path / "run" / "metrics.csv").write_text("epoch\n1\n")
    session = resume(tmp_path / "run", made_up, "cpu")
    assert session.resumed is None
    assert session.config.recipe == RECIPE
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json"}


def test_a_run_killed_before_its_configuration_can_be_begun_anew(tmp_path, made_up):
    """What it had half written is no run, and does not stand in the way of one."""
    (tmp_path / ".tmp-abc").write_bytes(b"half")
    start(tmp_path, run_config(RECIPE, made_up), CPU)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json"}


def test_other_data_and_a_damaged_configuration_are_refused(tmp_path, made_up):
    """Neither goes on in silence."""
    start(tmp_path / "run", run_config(RECIPE, made_up), CPU).run.close()
    with pytest.raises(CheckpointError, match=r"started with other data than made up .* \(file\); .* by --data-dir"):
        resume(tmp_path / "run", made_up_data(), "cpu")
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not the configuration of a run"):
        resume(tmp_path / "run", made_up, "cpu")


def test_a_folder_without_a_run_is_refused(tmp_path):
    """There is nothing to go on with."""
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        RunFolder.reopen(tmp_path)


@pytest.mark.parametrize("changes", [{}, BEST])
def test_a_finished_run_trains_on(made_up, tmp_path, changes):
    """With more epochs than it was started for it continues; where the rate is constant, as if started with them."""
    recipe = Recipe(**{**RECIPE.as_dict(), **changes, "epochs": 2})
    session = start(tmp_path, run_config(recipe, made_up), CPU)
    fit(build(recipe), made_up, recipe, CPU, on_snapshot=session.save)
    session.run.write("MODEL_CARD.md", b"finished")
    session.run.close()
    with pytest.raises(ConfigError, match="finished and published; train it on with --epochs"):
        resume(tmp_path, made_up)
    with pytest.raises(ConfigError, match="the run has 2 epochs; expected more"):
        resume(tmp_path, made_up, epochs=2)
    longer = resume(tmp_path, made_up, epochs=4)
    assert longer.config.recipe == dataclasses.replace(recipe, epochs=4)
    assert not (tmp_path / "MODEL_CARD.md").exists()
    model, whole = build(recipe), build(recipe)
    fit(model, made_up, longer.config.recipe, CPU, resumed=longer.resumed, on_snapshot=longer.save)
    fit(whole, made_up, dataclasses.replace(recipe, epochs=4), CPU)
    assert same_bits(model, whole) == (recipe.schedule == "constant")
    longer.run.close()
    stopped_later = resume(tmp_path, made_up)
    assert len(stopped_later.resumed.epochs) == 4


def test_the_least_accuracy_of_a_run_can_be_changed(made_up, tmp_path):
    """It is kept with the run, and another one given with --resume takes its place."""
    config = dataclasses.replace(run_config(RECIPE, made_up), min_accuracy=0.9)
    start(tmp_path, config, CPU).run.close()
    for given, expected in ((None, 0.9), (0.0, 0.0), (None, 0.0)):
        session = resume(tmp_path, made_up, min_accuracy=given)
        assert session.config.min_accuracy == expected
        session.run.close()


def test_a_run_of_before_publishes_where_it_would_have(made_up, tmp_path):
    """A config.json that states no place means the one that the flag had when it was left out."""
    start(tmp_path, run_config(RECIPE, made_up), CPU).run.close()
    values = json.loads((tmp_path / "config.json").read_text())
    del values["models_dir"], values["min_accuracy"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert resume(tmp_path, made_up).config.models_dir == "models"


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
def test_a_run_of_a_gpu_continues_on_a_cpu_bit_for_bit(made_up, optimizer):
    """Its checkpoint says capturable, fused and a rate in a tensor; the options for this device take their place.

    As in PyTorch 2.13's optim/adam.py, line 410: a capturable step on a CPU is an assertion without a message of ours.
    """
    recipe = Recipe(epochs=2, optimizer=optimizer, schedule="linear", learning_rate=0.01, batch_size=64, seed=3)
    stopped = stopped_after(1, recipe, made_up)
    of_gpu = copy.deepcopy(dict(stopped.optimizer))
    for group in of_gpu["param_groups"]:  # what `optimizer_for(model, recipe, cuda)` puts there
        group |= {"lr": torch.tensor(0.01)} | {"adam": {"capturable": True}, "sgd": {"fused": True}}.get(optimizer, {})
    models = [build(recipe), build(recipe)]
    for model, snapshot in zip(models, (stopped, dataclasses.replace(stopped, optimizer=of_gpu)), strict=True):
        fit(model, made_up, recipe, CPU, resumed=snapshot)
    assert same_bits(*models)


@pytest.mark.parametrize(("optimizer", "option"), [("adam", "capturable"), ("sgd", "fused")])
def test_a_run_of_a_cpu_keeps_what_a_graph_needs_on_a_gpu(made_up, optimizer, option):
    """The options that a captured step needs stay as the optimizer was made for the GPU."""
    from foldserve.training.fit import _restore
    from foldserve.training.schedule import optimizer_for

    recipe = Recipe(epochs=2, optimizer=optimizer, learning_rate=0.01, batch_size=64)
    model = build(recipe)
    made_for_cuda = optimizer_for(model, recipe, torch.device("cuda"))
    _restore(model, made_for_cuda, stopped_after(1, recipe, made_up))
    assert [group[option] for group in made_for_cuda.param_groups] == [True]
