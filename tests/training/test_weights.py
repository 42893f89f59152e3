"""A run's weights give the same network back, with either set of statistics, and damage is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foldserve.training.config import Recipe
from foldserve.training.errors import CheckpointError
from foldserve.training.model import build
from foldserve.training.weights import Weights, buffers_of, parameters_of, read_weights, weights_to_bytes

RECIPE = Recipe(seed=3)


def weights(recipe: Recipe = RECIPE) -> Weights:
    """Return weights whose two sets of statistics differ from one another and from a fresh network's."""
    network = build(recipe)
    running = {name: torch.full_like(buffer, 2) for name, buffer in buffers_of(network).items()}
    population = {name: torch.full_like(buffer, 3) for name, buffer in running.items()}
    statistics = {} if recipe.norm == "none" else {"running": running, "population": population}
    return Weights(recipe=recipe, parameters=parameters_of(network), statistics=statistics)


def saved_in(folder: Path, weights: Weights) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(weights_to_bytes(weights))
    return path


@pytest.mark.parametrize("norm", ["torch", "scratch"])
@pytest.mark.parametrize(("statistics", "value"), [("running", 2), ("population", 3)])
def test_the_network_comes_back_with_either_statistics(
    tmp_path: Path, norm: str, statistics: str, value: float
) -> None:
    """Both sets lie in one file under their names, and every parameter bit is the same."""
    saved = weights(Recipe(seed=3, norm=norm))
    network = read_weights(saved_in(tmp_path, saved)).network(statistics)
    assert not network.training
    assert buffers_of(network)
    assert all(bool((buffer == value).all()) for buffer in buffers_of(network).values())
    for name, parameter in parameters_of(network).items():
        assert torch.equal(parameter, saved.parameters[name])


def test_a_network_without_norms_comes_back(tmp_path: Path) -> None:
    """No norms, no statistics, still the same network."""
    recipe = Recipe(norm="none", statistics="none")
    network = read_weights(saved_in(tmp_path, weights(recipe))).network("none")
    assert buffers_of(network) == {}


def test_the_same_weights_are_the_same_bytes_in_every_process() -> None:
    """A digest of the file can be compared between machines."""
    program = (
        "import hashlib; from foldserve.training.weights import *; from foldserve.training.config import Recipe\n"
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
