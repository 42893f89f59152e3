"""`foldserve fold`: ONNX files and factories in, reports and folded files out, mistakes in one sentence."""

import argparse
import json
import sys

import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from foldserve.command import main
from foldserve.training.errors import ConfigError, FoldError
from foldserve.training.fold.cli import add_parser
from tests.support.onnx_cases import cases

torch.set_num_threads(1)

NETWORK = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    norm.running_var.uniform_(0.5, 2)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU())

def stuck():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))

def number():
    return 7

def broken():
    raise RuntimeError("no weights today")

answer = 42
"""


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """Name of an importable module with factories."""
    (tmp_path / "own_networks.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_networks"
    sys.modules.pop("own_networks", None)


@pytest.fixture
def onnx_file(tmp_path):
    """A file with one norm that folds."""
    path = tmp_path / "in.onnx"
    onnx.save(next(case for case in cases() if case.name == "Conv2d").build(), path)
    return str(path)


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["fold", *arguments])
    return args.run(args)


def test_onnx_file_in_folded_file_out(onnx_file, tmp_path, capsys):
    """The folded file holds no norm, and the table says where it went."""
    out = tmp_path / "out.onnx"
    assert command(onnx_file, str(out)) == 0
    assert [node.op_type for node in onnx.load(out).graph.node] == ["Conv"]
    printed = capsys.readouterr().out
    assert "folded" in printed
    assert "1 folded, 0 refused" in printed
    assert printed.endswith(f"wrote {out}\n")


def test_without_output_the_report_is_all(onnx_file, tmp_path, capsys):
    """A dry run prints the report and writes nothing."""
    before = sorted(tmp_path.iterdir())
    assert main(["fold", onnx_file, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["form"] == "onnx"
    assert report["folded"][0]["proof_error"] < 1e-11
    assert sorted(tmp_path.iterdir()) == before


def test_strict_writes_nothing_when_a_norm_stays(tmp_path):
    """With --strict a norm that stays is an error, and there is no output file."""
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(next(case for case in cases() if case.name == "Conv output read twice").build(), path)
    with pytest.raises(FoldError, match="multi-use"):
        command(str(path), str(out), "--strict")
    assert not out.exists()


def test_existing_output_is_refused_before_any_work(onnx_file, tmp_path):
    """An output that exists is refused."""
    out = tmp_path / "out.onnx"
    out.touch()
    with pytest.raises(ConfigError, match="exists already"):
        command(onnx_file, str(out))


@pytest.mark.parametrize("flags", [["--weights", "w.safetensors"], ["--export", "out.onnx"]])
def test_flags_of_a_factory_are_refused_for_a_file(onnx_file, flags):
    """A flag that would be ignored is an error."""
    with pytest.raises(ConfigError, match="is for package"):
        command(onnx_file, *flags)


def test_input_gives_the_shapes_of_a_file_once_per_input(onnx_file, capsys):
    """A size that is declared fits or is refused, and so is a shape too many."""
    shape = ",".join(str(dim.dim_value or 3) for dim in onnx.load(onnx_file).graph.input[0].type.tensor_type.shape.dim)
    assert command(onnx_file, "--input", shape) == 0
    assert "1 folded" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="does not fit"):
        command(onnx_file, "--input", f"{shape},1")
    with pytest.raises(ConfigError, match="got 2 shapes, expected 1"):
        command(onnx_file, "--input", shape, "--input", shape)


def test_padding_exact_folds_a_norm_before_a_padded_convolution_of_a_file(tmp_path, capsys):
    """What is refused by default is folded, with its correction at the border, when the flag asks for it."""
    path = tmp_path / "in.onnx"
    onnx.save(next(case for case in cases() if case.name == "norm -> Conv with zero padding").build(), path)
    assert command(str(path)) == 0
    assert "0 folded, 1 refused" in capsys.readouterr().out
    assert command(str(path), "--padding", "exact") == 0
    assert "1 folded, 0 refused" in capsys.readouterr().out


def test_factory_with_weights_is_folded_and_exported(factory, tmp_path, capsys):
    """The user's own network, with the weights of a file, becomes an ONNX file that computes the same."""
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    norm.running_mean.normal_()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU()).eval()
    weights, out = tmp_path / "w.safetensors", tmp_path / "out.onnx"
    save_file(network.state_dict(), weights)
    code = command(f"{factory}:network", "--weights", str(weights), "--input", "2,3,8,8", "--export", str(out))
    assert code == 0
    assert "1 folded, 0 refused" in capsys.readouterr().out
    session = ort.InferenceSession(out, providers=["CPUExecutionProvider"])
    images = torch.randn(5, 3, 8, 8)
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), network(images).detach(), rtol=1e-4, atol=1e-5)
    assert b"own_networks.py" not in out.read_bytes()


def test_norm_that_stays_is_not_folded_by_the_exporter(factory, tmp_path, capsys):
    """What we refuse is exported as it is."""
    out = tmp_path / "out.onnx"
    assert command(f"{factory}:stuck", "--input", "2,3,8,8", "--export", str(out)) == 0
    assert "activation-between" in capsys.readouterr().out
    assert "BatchNormalization" in [node.op_type for node in onnx.load(out).graph.node]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no_such_module_here:network", "in this folder or on PYTHONPATH, such as no_such_module_here.py"),
        ("own_networks:missing", "has no callable 'missing'; it has network, stuck, number, broken"),
        ("own_networks.py:network", "names a file; expected its module, such as own_networks:network"),
        ("./nets/own.py:network", "names a file; expected its module, such as nets.own:network"),
        ("own_networks", "expected an ONNX file, or package.module:factory"),
        ("own_networks:answer", "has no callable 'answer'"),
        ("own_networks:number", "returned an object of class int; expected a torch.nn.Module"),
        ("own_networks:broken", "raised RuntimeError: no weights today"),
        (":network", "expected package.module:factory"),
    ],
)
def test_what_is_wrong_with_a_factory_is_said(factory, source, message):
    """Each way to point beside a network has its sentence."""
    with pytest.raises(ConfigError, match=message):
        command(source, "--input", "1,3,8,8")


@pytest.mark.parametrize("shape", ["3,x", "0,3", "-1,3", "complex:1,3", "", "1,99999999999"])
def test_input_shapes_that_are_none(factory, shape):
    """An input is [DTYPE:]D,D,... with positive dimensions."""
    with pytest.raises(ConfigError, match="--input"):
        command(f"{factory}:network", f"--input={shape}")


def test_factory_without_input_is_refused(factory):
    """The shapes of a network are read from an input."""
    with pytest.raises(ConfigError, match="needs --input"):
        command(f"{factory}:network")


def test_weights_that_do_not_fit_are_listed(factory, tmp_path):
    """The first tensors that are missing, unexpected or of another shape are named, the rest counted."""
    weights = tmp_path / "w.safetensors"
    save_file({"0.weight": torch.zeros(4, 3, 5, 5), "extra": torch.zeros(1)}, weights)
    with pytest.raises(ConfigError, match=r"does not fit the model: missing 0\.bias; .* and \d+ more"):
        command(f"{factory}:network", "--weights", str(weights), "--input", "1,3,8,8")


def test_an_exported_program_brings_its_own_inputs(tmp_path, capsys):
    """`fold net.pt2` needs no --input: the program keeps the example that it was exported with."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    assert command(str(tmp_path / "net.pt2")) == 0
    assert "1 folded, 0 refused" in capsys.readouterr().out


def test_statistics_that_no_file_can_hold_are_refused(factory, tmp_path):
    """A hand-written norm with plain-tensor statistics would fold mean 0 and variance 1 in, silently wrong."""
    (tmp_path / "own_networks.py").write_text(BOOK)
    sys.modules.pop("own_networks", None)
    weights = tmp_path / "w.safetensors"
    torch.manual_seed(0)
    save_file({"0.weight": torch.randn(4, 3, 3, 3), "0.bias": torch.randn(4), "1.gamma": torch.randn(1, 4, 1, 1),
               "1.beta": torch.randn(1, 4, 1, 1)}, weights)  # fmt: skip
    with pytest.raises(ConfigError, match=r"cannot hold 1\.moving_mean, 1\.moving_var"):
        command("own_networks:network", "--weights", str(weights), "--input", "1,3,8,8")


BOOK = """
import torch
from torch import nn

class BatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(1, 4, 1, 1)), nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.moving_mean, self.moving_var = torch.zeros(1, 4, 1, 1), torch.ones(1, 4, 1, 1)

    def forward(self, x):
        return self.gamma * (x - self.moving_mean) / torch.sqrt(self.moving_var + 1e-5) + self.beta

def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm())
"""
