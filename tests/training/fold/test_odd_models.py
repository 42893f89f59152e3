"""Models as people have them: each folds, or is refused in a sentence; nothing of the process is left changed."""

import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from foldserve.training.errors import FoldError
from foldserve.training.fold import fold, verify
from tests.support.fold_cases import randomise

IMAGES = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def pair() -> nn.Sequential:
    torch.manual_seed(0)
    return randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))


class Holder(nn.Module):
    """A pair, and an attribute of any kind."""

    def __init__(self, attribute: object = None):
        super().__init__()
        self.layers, self.attribute = pair(), attribute

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Keeper(Holder):
    """Keeps its last output, history included."""

    def forward(self, x: Tensor) -> Tensor:
        self.attribute = self.layers(x)
        return self.attribute


class InList(nn.Module):
    """Its convolution is in a plain list, so that it is no submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.norm = [pair()[0]], pair()[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layers[0](x))


class InDict(InList):
    """Its convolution is in a plain dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = {0: pair()[0]}


class InClosure(InList):
    """Its convolution is in a closure."""

    def __init__(self) -> None:
        super().__init__()
        conv = pair()[0]
        self.layers = (lambda x: conv(x),)


class InFrequency(Holder):
    """Its output is complex."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(self.layers(x))


class Unused(nn.Module):
    """The result of its first norm goes nowhere, or its shape alone is read."""

    def __init__(self, is_functional: bool, reads_shape: bool):
        super().__init__()
        self.layers, self.unused = nn.ModuleList(pair()), nn.ModuleList(pair())
        self.is_functional, self.reads_shape = is_functional, reads_shape

    def forward(self, x: Tensor) -> Tensor:
        nothing = self.run(self.unused, x)
        result = self.run(self.layers, x)
        return result + torch.zeros_like(nothing) if self.reads_shape else result

    def run(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        conv, norm = layers
        if not self.is_functional:
            return norm(conv(x))
        return F.batch_norm(conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias)


@dataclass
class Images:
    images: Tensor


class Uncopyable:
    def __deepcopy__(self, memo: dict[int, object]) -> "Uncopyable":
        raise RuntimeError("no copies")


def after_backward(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A pair whose convolution is wrapped, after a step of training: its weight has a history."""
    conv, norm = pair()
    model = nn.Sequential(wrap(conv), norm).train()
    model(IMAGES).sum().backward()
    return model.eval()


def pruned(conv: nn.Module) -> nn.Module:
    return prune.l1_unstructured(conv, "weight", 0.5)


def pruned_whole(conv: nn.Module) -> nn.Module:
    return prune.l1_unstructured(pruned(conv), "bias", 0.5)


def with_hook_that_keeps() -> nn.Module:
    model = Holder()
    model.register_forward_hook(lambda module, _, output: setattr(module, "attribute", output))
    model(IMAGES)
    return model


def called(model: nn.Module) -> nn.Module:
    model(IMAGES)
    return model


FOLDS: dict[str, Callable[[], nn.Module]] = {
    "layer in a list": InList,
    "layer in a dict": InDict,
    "layer in a closure": InClosure,
    "unused norm": lambda: Unused(False, False),
    "unused norm, functional": lambda: Unused(True, False),
    "norm whose shape is read": lambda: Unused(False, True),
    "norm whose shape is read, functional": lambda: Unused(True, True),
    "old weight_norm after backward": lambda: after_backward(weight_norm),
    "old spectral_norm after backward": lambda: after_backward(spectral_norm),
    "weight_norm after backward": lambda: after_backward(parametrizations.weight_norm),
    "pruned": lambda: after_backward(pruned),
    "pruned, bias too": lambda: after_backward(pruned_whole),
    "keeps its output": lambda: called(Keeper()),
    "hook keeps the output": with_hook_that_keeps,
    "lock": lambda: Holder(threading.Lock()),
    "thread": lambda: Holder([threading.Thread()]),
    "file": lambda: Holder(open(os.devnull)),  # noqa: SIM115 -- closed with the test's garbage
    "generator": lambda: Holder(number for number in range(3)),
    "generator of torch": lambda: Holder(torch.Generator()),
    "module": lambda: Holder({"os": os}),
    "object that refuses to be copied": lambda: Holder(Uncopyable()),
    "tensor with a history": lambda: Holder([torch.ones(3, requires_grad=True) * 2]),
    "scripted part": lambda: nn.Sequential(*pair(), torch.jit.script(nn.ReLU())),
    "compiled": lambda: torch.compile(pair(), backend="eager"),
    "data parallel": lambda: nn.DataParallel(pair()),
    "fx": lambda: torch.fx.symbolic_trace(pair()),
    "exported": lambda: torch.export.export(pair(), (IMAGES,)).module(),
    "exported program": lambda: torch.export.export(pair(), (IMAGES,)),
    "complex output": InFrequency,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FOLDS)
def test_it_folds(name: str) -> None:
    """The norm is gone and the output is that of the original."""
    model = FOLDS[name]()
    model = model if name.startswith("exported") else model.eval()
    reference = model.module() if isinstance(model, torch.export.ExportedProgram) else model
    with torch.no_grad():
        expected = reference(IMAGES)
    result = fold(model, (IMAGES,))
    assert result.report.folded
    assert not result.report.refused
    with torch.no_grad():
        torch.testing.assert_close(result.model(IMAGES), expected, rtol=1e-4, atol=1e-5)


def decomposed(table: dict[Any, Any] | None, model: nn.Module) -> torch.export.ExportedProgram:
    batch = {"input": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (IMAGES,), dynamic_shapes=batch)
    return program.run_decompositions(table)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("table", [None, {}])
def test_a_program_after_decompositions_folds(table: dict[Any, Any] | None) -> None:
    """There a norm gives three results, of which the first is the normalised value."""
    torch.manual_seed(0)
    layers = [*pair(), nn.ReLU(), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(144, 5), nn.BatchNorm1d(5)]
    model = randomise(nn.Sequential(*layers))
    program = decomposed(table, model)
    for given in (program, program.module()):
        result = fold(given, (IMAGES,))
        assert [site.path for site in result.report.folded] == ["1", "3", "6"], str(result.report)
        assert "graph already" in result.report.form_reason
        images = torch.randn(5, 3, 8, 8)
        torch.testing.assert_close(result.model(images), model(images), rtol=1e-4, atol=1e-5)


class Raises(Holder):
    """Raises what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.attribute, Exception)
        raise self.attribute


class Counts(Holder):
    """Writes into a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layers(x)


class Returns(Holder):
    """Returns what a function makes of its output."""

    def forward(self, x: Tensor) -> Any:
        assert callable(self.attribute)
        return self.attribute(self.layers(x))


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "scripted": (lambda: torch.jit.script(pair()), "TorchScript|fold the module that it was made from"),
    "traced": (lambda: torch.jit.trace(pair(), IMAGES), "fold the module that it was made from"),
    "no module": (lambda: 3, "expected a torch.nn.Module"),
    "a function": (lambda: print, "expected what it makes, a torch.nn.Module: call it first"),
    "a class": (lambda: nn.Conv2d, "expected what it makes, a torch.nn.Module: call it first"),
    "its weights": (lambda: pair().state_dict(), "expected the network that these weights are of"),
    "KeyError": (lambda: Raises(KeyError("key")).eval(), "KeyError: 'key'"),
    "StopIteration": (lambda: Raises(StopIteration()).eval(), "StopIteration"),
    "MemoryError": (lambda: Raises(MemoryError()).eval(), "out of memory while reading the model"),
    "a generator": (lambda: Returns(lambda y: (one for one in y)).eval(), "returns a generator; expected tensors, in"),
    "a set": (lambda: Returns(lambda _: {1}).eval(), "returns a set; expected tensors, in"),
    "NumPy": (lambda: Returns(lambda y: y.numpy()).eval(), "cannot read the model, though it runs: RuntimeError"),
    "no forward": (lambda: nn.ModuleList([pair()]).eval(), "does not run on inputs of .*missing the required .forward"),
    "other channels": (lambda: nn.Conv2d(4, 2, 1).eval(), r"does not run on inputs of \(2, 3, 8, 8\): .*4 channels"),
    "a part that is scripted": (
        lambda: nn.Sequential(torch.jit.script(pair()), nn.ReLU()).eval(),
        "the module '0' is a RecursiveScriptModule, .* the module that it was made from in its place",
    ),
    "a part that is traced": (
        lambda: nn.Sequential(nn.ReLU(), torch.jit.trace(pair(), IMAGES)).eval(),
        "the module '1' is a TopLevelTracedModule, .* the module that it was made from in its place",
    ),
    "writes into its buffer": (lambda: Counts().eval(), "writes into one of its own tensors"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_a_sentence(name: str) -> None:
    """Whatever is raised inside is a FoldError that says what to do or what was being done."""
    make, words = REFUSED[name]
    with pytest.raises(FoldError, match=words) as raised:
        fold(make(), (IMAGES,))
    if name.endswith("Error"):
        assert type(raised.value.__cause__).__name__ == name


class Takes(Holder):
    """Takes an object of a class of its own."""

    def forward(self, batch: Any) -> Tensor:
        return self.layers(batch.images)


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (
            pair,
            {"images": IMAGES},
            r"inputs of \(2, 3, 8, 8\): TypeError: .*; expected inputs that model\(\*\*inputs\)",
        ),
        (pair, (2, 3, 8, 8), r"these inputs, none of which is a tensor: .*; expected tensors, such as \(torch\.randn"),
        (pair, ([2, 3, 8, 8],), r"none of which is a tensor: .*; expected tensors, such as \(torch\.randn"),
        (
            pair,
            (IMAGES.double(),),
            r"inputs of \(2, 3, 8, 8\): RuntimeError: .*; expected inputs that model\(\*inputs\)",
        ),
        (lambda: Takes().eval(), (Images(IMAGES),), "Unsupported input type .*Images.*wrap the model in a module"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_told_apart(
    model: Callable[[], nn.Module], inputs: Any, words: str
) -> None:
    """The sentence is about the inputs, and no export to ONNX is recommended, which would not take them either."""
    with pytest.raises(FoldError, match=words) as raised:
        fold(model(), inputs)
    assert "fold_onnx" not in str(raised.value)


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a text for dynamic": ({"dynamic": "batch"}, "dynamic is 'batch'; expected True, False, or torch.export's"),
    "a number for dynamic": ({"dynamic": 3}, "dynamic is 3; expected True, False, or torch.export's dynamic_shapes"),
    "no such argument": ({"dynamic": {"other": {0: torch.export.Dim("n")}}}, "with these dynamic sizes: .*`dynamic`"),
    "a size that is fixed": (
        {"dynamic": ({1: torch.export.Dim("n")},)},
        "with these dynamic sizes: .*, or dynamic=False",
    ),
    "a text for a scale": ({"input_scale": "1/255"}, "scale is '1/255'; expected a finite number, or one for each"),
    "another number of channels": ({"input_mean": [0.1, 0.2]}, r"the input has shape \(any, 3, 8, 8\)"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_do_not_fit_are_named(name: str) -> None:
    """The sentence is about the option: what was passed, and what it may be."""
    options, words = OPTIONS[name]
    with pytest.raises(FoldError, match=words):
        fold(pair(), (IMAGES,), **options)


ODD_INPUTS: dict[str, tuple[object, str]] = {
    "a tensor": (IMAGES, "is a Tensor; expected a tuple of arguments"),
    "a list": ([IMAGES], "is a list; expected a tuple of arguments"),
    "an array": (IMAGES.numpy(), "is a ndarray; expected a tuple of arguments"),
    "an array within": ((IMAGES.numpy(),), "holds an array of NumPy; expected tensors"),
    "an array by name": ({"input": IMAGES.numpy()}, "holds an array of NumPy; expected tensors"),
}


@pytest.mark.parametrize("name", ODD_INPUTS)
def test_inputs_that_are_no_arguments_are_named(name: str) -> None:
    """Fold and verify say the same of them, each under the name of its own argument."""
    inputs, words = ODD_INPUTS[name]
    with pytest.raises(FoldError, match=f"^example_inputs {words}"):
        fold(pair(), inputs)  # type: ignore[arg-type]
    with pytest.raises(FoldError, match=f"^inputs {words}"):
        verify(pair(), pair(), inputs)  # type: ignore[arg-type]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("process_group")
def test_wrappers_for_many_devices() -> None:
    """DDP is taken off, with a note; sharded parameters are refused with what to do."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    result = fold(nn.parallel.DistributedDataParallel(pair()).eval(), (IMAGES,))
    assert result.report.notes == ("taken out of its DistributedDataParallel",)
    assert [type(module) for module in result.model] == [nn.Conv2d, nn.Identity]
    with pytest.raises(FoldError, match=r"'0\.weight' is sharded over devices; fold the model before fully_shard"):
        fold(fully_shard(pair(), mesh=init_device_mesh("cpu", (1,))), (IMAGES,))


class OneRowIsOther(nn.Module):
    """Goes another way for a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = pair()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x).amax((2, 3))
        return y if x.shape[0] == 1 else y - y.mean(0)


def test_a_row_alone_that_goes_another_way_is_read_as_it_is() -> None:
    """The example of one row is not doubled where two rows are computed in another way."""
    model = OneRowIsOther().eval()
    result = fold(model, (IMAGES[:1],))
    assert len(result.report.folded) == 1
    torch.testing.assert_close(result.model(IMAGES[:1]), model(IMAGES[:1]), rtol=1e-4, atol=1e-5)


class Disturbs(Holder):
    """Changes what belongs to the process, and prints, whenever it runs; then its path depends on a value."""

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)
        torch.set_grad_enabled(True)
        warnings.simplefilter("ignore")
        y = self.layers(x)
        return y if self.attribute is None or y.sum() > 0 else -y


@pytest.mark.parametrize("fails", [False, True])
def test_the_process_is_left_as_it_was(fails: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """Random states, modes, loggers and warnings are as before, and nothing is printed, also after failing."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch")]

    def state() -> list[object]:
        levels = [logging.getLogger(name).level for name in names]
        modes = [torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), sys.stderr]
        arrays = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]
        return [random.getstate(), *arrays, *modes, list(warnings.filters), levels]

    model = Disturbs("depends on a value" if fails else None).eval()
    model_hooks = [len(module._forward_hooks) for module in model.modules()]
    before = state()
    with torch.no_grad():
        inner = state()
        try:
            fold(model, (IMAGES,))
        except FoldError:
            assert fails
        assert state() == inner
    assert state() == before
    assert model_hooks == [len(module._forward_hooks) for module in model.modules()]
    assert capfd.readouterr() == ("", "")


class TriesArguments(nn.Module):
    """Calls a part with an argument that it may not take, and without it when that raises."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.part(x, lengths=None)
        except TypeError:
            return self.part(x)


def test_a_call_that_raised_and_was_repeated_is_refused_with_a_remedy() -> None:
    """torch.export loses its way there (speechbrain's Xvector); the refusal says what to do instead."""
    with pytest.raises(FoldError, match=r"control-flow: .*fold_onnx"):
        fold(randomise(TriesArguments()), (torch.randn(2, 3, 8, 8),))


class AnyArguments(nn.Module):
    """Takes what it is given, and normalises by a function, which only a graph can express."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, *args: Tensor) -> Tensor:
        n = self.norm
        return nn.functional.batch_norm(self.layer(sum(args)), n.running_mean, n.running_var, n.weight, n.bias)


def test_a_forward_of_any_arguments_takes_any_batch() -> None:
    """torch.export wants their free axes nested as they are."""
    model = randomise(AnyArguments())
    result = fold(model, tuple(torch.randn(2, 2, 3, 6, 6)))
    assert result.report.form == "graph"
    for rows in (1, 5):
        images = torch.randn(2, rows, 3, 6, 6)
        torch.testing.assert_close(model(*images), result.model(*images), rtol=0, atol=1e-5)


class Overwritten(nn.Module):
    """Writes into what a layer gave, before the norm reads it: in place, or into a part of it."""

    def __init__(self, write: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer, self.norm, self.write = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), write

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.write(y)
        return self.norm(y)


WRITES: dict[str, Callable[[Tensor], object]] = {
    "part": lambda y: y[:, 0].fill_(0),
    "index": lambda y: y.__setitem__((slice(None), 1), 2.0),
    "view": lambda y: y.view(-1).mul_(y.sum()),
    "reshaped": lambda y: y.flatten(1).clamp_(0),
    "whole": lambda y: y.relu_(),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_into_is_not_computed_twice(name: str) -> None:
    """A copy of the layer would not have been written into: the norm stays, and nothing else is lost."""
    report = fold(randomise(Overwritten(WRITES[name])), (torch.randn(2, 3, 6, 6),), duplicate="allow").report
    assert [site.path for site in report.refused] == ["norm"]
    assert not report.folded


class WithData(nn.Module):
    """Reads a parameter as `.data`, as forwards from before torch.no_grad() do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.scale.data


def test_a_parameter_that_is_read_as_data_is_refused_with_what_to_write() -> None:
    """torch.export asks its user to report a mistake there, which is none."""
    with pytest.raises(FoldError, match="through NumPy; expected the parameter") as raised:
        fold(WithData().eval(), (torch.randn(2, 3, 8, 8),))
    assert "issue" not in str(raised.value)
