"""Networks as they are typed: a factory with arguments, an exported program, an ONNX file; mistakes in one sentence."""

import sys

import pytest
import torch
from torch import nn

from foldserve.training.errors import ConfigError, FoldError
from foldserve.training.user_model.source import open_source

MODULE = """
import torch
from torch import nn

def network(classes=2):
    return nn.Linear(4, classes)

def needs_gpu():
    raise RuntimeError("Found no NVIDIA driver on your system. Please check")
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """A module in the current folder, which is not on the path of a console script."""
    (tmp_path / "their_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield
    sys.modules.pop("their_networks", None)


def test_a_factory_takes_arguments():
    """`--factory-args` are its keyword arguments, and what is made is in eval mode."""
    source = open_source("their_networks:network", None, '{"classes": 5}')
    assert source.module.out_features == 5
    assert not source.module.training


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        ("their_networks:network", "{", "is not JSON"),
        ("their_networks:network", "[5]", "expected an object"),
        ("their_networks:network", '{"colours": 5}', "do the names in --factory-args fit it"),
        ("their_networks:needs_gpu", None, "wants a GPU and there is none here"),
        ("nothing.pt2", None, "does not exist"),
        ("nothing.onnx", None, "does not exist"),
        ("weights.pth", None, "holds weights and no network"),
        ("nothing.onnx", '{"classes": 5}', "--factory-args is for package.module:factory"),
    ],
)
def test_mistakes_are_said(spec, arguments, message):
    """What came, what was expected, what to do."""
    with pytest.raises(ConfigError, match=message):
        open_source(spec, None, arguments)


def test_an_exported_program_is_a_network_with_its_example(tmp_path):
    """A .pt2 file gives the outputs of the module that it was made from, for the example that it keeps."""
    network, rows = nn.Linear(4, 2).eval(), torch.randn(3, 4)
    torch.export.save(torch.export.export(network, (rows,)), tmp_path / "net.pt2")
    source = open_source("net.pt2")
    assert source.example is not None
    torch.testing.assert_close(source.module(*source.example), network(rows))
    (tmp_path / "cut.pt2").write_bytes((tmp_path / "net.pt2").read_bytes()[:100])
    with pytest.raises(FoldError, match="no readable exported program"):
        open_source("cut.pt2")
