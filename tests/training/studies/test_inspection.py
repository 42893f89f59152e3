"""The norms' values as a run left them, against the network they came from."""

import argparse
import csv
import dataclasses
import hashlib
import json

import pytest
import torch

from foldserve.training.config import Recipe
from foldserve.training.errors import CheckpointError, ConfigError
from foldserve.training.model import build
from foldserve.training.studies.inspection import channel_rows, norms_of, run, table
from foldserve.training.weights import Weights, buffers_of, parameters_of, weights_to_bytes
from tests.training.conftest import run_config


def weights_of(norm="torch"):
    """Return weights with both kinds of statistics, every value drawn at random, and the network with the latter."""
    recipe = Recipe.from_preset("book", norm=norm)
    network = build(recipe)
    generator = torch.Generator().manual_seed(4)
    statistics = {}
    for kind in ("running", "population") if norm != "none" else ():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        statistics[kind] = buffers_of(network)
    return Weights(recipe=recipe, parameters=parameters_of(network), statistics=statistics), network


@pytest.mark.parametrize("norm", ["torch", "scratch"])
def test_every_channel_of_every_norm_is_there(norm):
    """Four layers in order, 226 channels, gamma and beta and the moments of both kinds, value for value."""
    weights, network = weights_of(norm)
    norms = norms_of(weights)
    assert [each.layer for each in norms] == ["norm1", "norm2", "norm3", "norm4"]
    assert [len(each.values["gamma"]) for each in norms] == [6, 16, 120, 84]
    last = network.norm4
    gamma, variance = (last.weight, last.running_var) if norm == "torch" else (last.gamma, last.moving_var)
    torch.testing.assert_close(torch.as_tensor(norms[3].values["gamma"]), gamma.detach())
    torch.testing.assert_close(torch.as_tensor(norms[3].values["population variance"]), variance)
    assert not (norms[3].values["running variance"] == norms[3].values["population variance"]).all()
    rows = channel_rows(norms)
    assert len(rows) == 226
    assert rows[6]["layer"] == "norm2"
    assert rows[6]["running_mean"] == norms[1].values["running mean"][0]


def test_the_table_has_a_line_for_each_layer_and_value():
    """Four layers with six values each under one head, and the figures are those of the channels."""
    norms = norms_of(weights_of()[0])
    lines = table(norms).splitlines()
    assert len(lines) == 1 + 4 * 6
    assert f"{norms[0].values['gamma'].max():.4f}" in lines[1]


def test_the_command_leaves_a_table_and_a_picture(tmp_path, capsys):
    """From a run's folder; norms.csv has every channel, norms.png is a PNG."""
    (tmp_path / "model.safetensors").write_bytes(weights_to_bytes(weights_of()[0]))
    run(argparse.Namespace(weights=tmp_path, out=None))
    assert "norm4" in capsys.readouterr().out
    with (tmp_path / "norms.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 226
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")


def test_the_figures_say_what_made_the_weights_and_not_who_looks(tmp_path, made_up):
    """Revision and machine are the run's own; weights away from their run have none, rather than today's."""
    weights = weights_of()[0]
    config = dataclasses.replace(run_config(weights.recipe, made_up), revision="f" * 40 + "+dirty")
    (tmp_path / "config.json").write_bytes(config.to_bytes())
    (tmp_path / "model.safetensors").write_bytes(weights_to_bytes(weights))
    run(argparse.Namespace(weights=tmp_path, out=tmp_path / "report"))
    stated = json.loads((tmp_path / "report" / "norms.json").read_text())
    assert (stated["revision"], stated["environment"]) == ("f" * 40 + "+dirty", {"threads": 1})
    assert stated["weights_sha256"] == hashlib.sha256(weights_to_bytes(weights)).hexdigest()
    (tmp_path / "config.json").unlink()
    run(argparse.Namespace(weights=tmp_path, out=tmp_path / "report"))
    assert json.loads((tmp_path / "report" / "norms.json").read_text())["revision"] is None


def test_a_network_without_norms_and_a_folder_without_weights_are_refused(tmp_path):
    """Each with a sentence of its own."""
    with pytest.raises(ConfigError, match="no batch normalization"):
        norms_of(weights_of("none")[0])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        run(argparse.Namespace(weights=tmp_path, out=None))
