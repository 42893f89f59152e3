"""A run's folder: never overwritten, readable line by line, and its weights give the same network back."""

import csv
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch

from foldserve.training.config import Recipe
from foldserve.training.errors import ArtifactError, CheckpointError, ConfigError
from foldserve.training.fit import EpochRecord
from foldserve.training.model import build
from foldserve.training.run import (
    Run,
    Weights,
    buffers_of,
    default_folder,
    parameters_of,
    read_weights,
    weights_to_bytes,
)

RECIPE = Recipe(seed=3)


def record(epoch: int) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        loss=0.5,
        train_accuracy=0.8,
        test_accuracy=0.7,
        train_seconds=1.0,
        examples_per_second=10.0,
        wall_examples_per_second=9.0,
    )


def weights(recipe: Recipe = RECIPE) -> Weights:
    """Return weights whose two sets of statistics differ from one another and from a fresh network's."""
    network = build(recipe)
    running = {name: torch.full_like(buffer, 2) for name, buffer in buffers_of(network).items()}
    population = {name: torch.full_like(buffer, 3) for name, buffer in running.items()}
    statistics = {} if recipe.norm == "none" else {"running": running, "population": population}
    return Weights(recipe=recipe, parameters=parameters_of(network), statistics=statistics)


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    """A folder with anything in it is refused, and what lies there stays."""
    Run(tmp_path / "run").write_config({"seed": 1})
    with pytest.raises(ConfigError, match="never overwritten"):
        Run(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"seed": 1}


def test_an_empty_folder_may_be_given(tmp_path: Path) -> None:
    """What a caller has made for the run is no earlier run."""
    assert Run(tmp_path).folder == tmp_path


def test_two_processes_never_write_one_run(tmp_path: Path) -> None:
    """Neither to begin nor to resume it while another process holds it; kill -9 gives it back at once."""
    folder = tmp_path / "run"
    program = "import sys, pathlib; from foldserve.training.run import Run\nrun = Run(pathlib.Path(sys.argv[1]))\n"
    program += "run.write_config({}); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for other, flag in ((Run, "--out"), (Run.reopen, "--resume")):
            with pytest.raises(ConfigError, match=f"{flag} .*run: another process is training there"):
                other(folder)
        holder.kill()
    assert Run.reopen(folder).folder == folder


def test_a_run_that_was_closed_can_be_opened_again(tmp_path: Path) -> None:
    """Held until then, in the same process too."""
    run = Run(tmp_path)
    run.write_config({})
    with pytest.raises(ConfigError, match="another process"):
        Run.reopen(tmp_path)
    run.close()
    assert Run.reopen(tmp_path).folder == tmp_path


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    """A file in the way is said with its path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"--out .*file/run: cannot be made"):
        Run(tmp_path / "file" / "run")


def test_metrics_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    """After each epoch the file holds one more whole line under one header."""
    run = Run(tmp_path)
    for epoch in (1, 2, 3):
        run.append(record(epoch))
        with (tmp_path / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["epoch"]) for row in rows] == list(range(1, epoch + 1))
    assert float(rows[-1]["test_accuracy"]) == 0.7


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """The system's own reason is passed on, with the file it befell."""
    run = Run(tmp_path)
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    with pytest.raises(ArtifactError, match=r"metrics\.csv cannot be written \(No space left on device\).* --resume "):
        run.append(record(1))


@pytest.mark.parametrize("norm", ["torch", "scratch"])
@pytest.mark.parametrize(("statistics", "value"), [("running", 2), ("population", 3)])
def test_the_network_comes_back_with_either_statistics(
    tmp_path: Path, norm: str, statistics: str, value: float
) -> None:
    """Both sets lie in one file under their names, and every parameter bit is the same."""
    saved = weights(Recipe(seed=3, norm=norm))
    network = read_weights(Run(tmp_path).write_weights(saved)).network(statistics)
    assert not network.training
    assert buffers_of(network)
    assert all(bool((buffer == value).all()) for buffer in buffers_of(network).values())
    for name, parameter in parameters_of(network).items():
        assert torch.equal(parameter, saved.parameters[name])


def test_a_network_without_norms_comes_back(tmp_path: Path) -> None:
    """No norms, no statistics, still the same network."""
    recipe = Recipe(norm="none", statistics="none")
    network = read_weights(Run(tmp_path).write_weights(weights(recipe))).network("none")
    assert buffers_of(network) == {}


def test_the_same_weights_are_the_same_bytes_in_every_process() -> None:
    """A digest of the file can be compared between machines."""
    program = (
        "import hashlib; from foldserve.training.run import *; from foldserve.training.config import Recipe\n"
        "from foldserve.training.model import build\n"
        "r = Recipe(seed=3); n = build(r); w = Weights(r, parameters_of(n), {'running': buffers_of(n)})\n"
        "print(hashlib.sha256(weights_to_bytes(w)).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_statistics_that_were_not_measured_are_refused() -> None:
    """The message says which there are."""
    only_running = Weights(RECIPE, weights().parameters, {"running": weights().statistics["running"]})
    with pytest.raises(CheckpointError, match=r"\['running'\], not 'population'"):
        only_running.network("population")


@pytest.mark.parametrize("content", [b"", b"cut off", weights_to_bytes(weights())[:-100]])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """Cut off at any place, the file is not taken for weights."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        read_weights(tmp_path / "model.safetensors")


def test_somebody_elses_weights_are_refused(tmp_path: Path) -> None:
    """A safetensors file without our recipe is said to be none of ours."""
    import safetensors.torch

    safetensors.torch.save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="names no recipe of ours"):
        read_weights(tmp_path / "model.safetensors")


def test_weights_of_another_network_are_refused() -> None:
    """Tensors that do not fit the recipe's network are not pressed into it."""
    saved = weights()
    missing = {name: tensor for name, tensor in saved.parameters.items() if name != "conv1.weight"}
    with pytest.raises(CheckpointError, match="do not fit"):
        Weights(RECIPE, missing, saved.statistics).network("running")


def test_a_runs_folder_is_named_after_model_time_and_seed() -> None:
    """Two runs of one evening do not meet."""
    assert str(default_folder("lenet-bn", 7, datetime(2026, 1, 2, 3, 4, 5))) == "runs/lenet-bn-20260102T030405-seed7"
