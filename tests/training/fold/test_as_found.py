"""A fold leaves the process and the model as it found them, also when it fails; what stops it is named or passes."""

import logging
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foldserve.training.errors import FoldError
from foldserve.training.fold import explain, fold, fold_input, fold_pair, verify
from tests.support.fold_cases import randomise

IMAGES = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))


class _Runs:
    """How often a network and its copies ran."""

    count = 0

    def __deepcopy__(self, memo: Any) -> "_Runs":
        return self


class Unruly(nn.Module):
    """Changes what it can of the process whenever it runs, and raises from one of its runs on.

    Args:
        error: what to raise; None for nothing.
        run: from which run on, counted over all copies.
        has_module: False for a norm that only the form "graph" can take out.
    """

    def __init__(self, error: BaseException | None = None, run: int = 1, has_module: bool = True) -> None:
        super().__init__()
        self.conv, self.norm, self.has_module = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), has_module
        self.error, self.run, self.runs = error, run, _Runs()

    def forward(self, x: Tensor) -> Tensor:
        self.runs.count += 1
        random.seed(1)
        np.random.seed(1)
        torch.set_num_threads(1)
        logging.getLogger("torch").setLevel(logging.DEBUG)
        logging.getLogger("somebody").setLevel(logging.DEBUG)
        warnings.simplefilter("ignore")
        if self.error is not None and self.runs.count >= self.run:
            raise self.error
        y, n = self.conv(x), self.norm
        if self.has_module:
            return n(y)
        return nn.functional.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias)


def unruly(*args: Any, **options: Any) -> Unruly:
    torch.manual_seed(0)
    return randomise(Unruly(*args, **options))  # type: ignore[return-value]


def found(model: nn.Module) -> dict[str, Any]:
    """Everything that has to stay."""
    loggers = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    everywhere = torch.nn.modules.module
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "random": (torch.get_rng_state().tolist(), random.getstate(), _bytes(np.random.get_state())),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "loggers": {one.name: (one.level, one.disabled, one.propagate, list(one.handlers)) for one in loggers},
        "root logger": (logging.root.level, list(logging.root.handlers)),
        "streams": (sys.stdout, sys.stderr),
        "hooks": [[dict(getattr(m, name)) for name in hooks] for m in model.modules()],
        "global hooks": (dict(everywhere._global_forward_hooks), dict(everywhere._global_forward_pre_hooks)),
        "modules": [(id(m), type(m), m.training, sorted(vars(m))) for m in model.modules()],
        "tensors": [(id(t), t._version, t.requires_grad, t.grad, t.detach().numpy().tobytes()) for t in tensors],
    }


def _bytes(state: Any) -> tuple[Any, ...]:
    return tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in state)


def fails(call: Callable[[], Any], error: type[BaseException]) -> Callable[[], None]:
    def run() -> None:
        with pytest.raises(error):
            call()

    return run


def calls() -> dict[str, tuple[nn.Module, Callable[[], Any]]]:
    """Each with the model to look at."""
    right, graph, stopped, broken, late = (
        unruly(),
        unruly(has_module=False),
        unruly(KeyboardInterrupt()),
        unruly(ZeroDivisionError()),
        unruly(ZeroDivisionError(), 3),
    )
    same, other = unruly(), unruly()
    with torch.no_grad():
        other.conv.weight.mul_(1.1)
    training = unruly().train()
    pair = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    return {
        "fold": (right, lambda: fold(right, (IMAGES,))),
        "fold to a graph": (graph, lambda: fold(graph, (IMAGES,))),
        "explain": (right, lambda: explain(right, (IMAGES,))),
        "fold_input": (right, lambda: fold_input(right, 0.5, example_inputs=(IMAGES,))),
        "fold_pair": (pair, lambda: fold_pair(pair[0], pair[1])),
        "verify": (right, lambda: verify(right, same, (IMAGES,))),
        "verify, different": (right, fails(lambda: verify(right, other, (IMAGES,)), FoldError)),
        "training mode": (training, fails(lambda: fold(training, (IMAGES,)), FoldError)),
        "wrong inputs": (right, fails(lambda: fold(right, (IMAGES[0, 0, 0],)), FoldError)),
        "an error while it is read": (broken, fails(lambda: fold(broken, (IMAGES,), dynamic=False), FoldError)),
        "an error while it is proved": (late, fails(lambda: fold(late, (IMAGES,), dynamic=False), FoldError)),
        "Ctrl-C": (stopped, fails(lambda: fold(stopped, (IMAGES,)), KeyboardInterrupt)),
    }


@pytest.fixture(scope="module")
def imported() -> None:
    """What is imported on first use stays imported: a first fold, before anything is compared."""
    fold(unruly(), (IMAGES,))


@pytest.fixture
def own_state(imported: None) -> Any:
    """Puts back what a failing test might have left."""
    levels = {name: logging.getLogger(name).level for name in ("torch", "somebody")}
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("own_state")
@pytest.mark.parametrize("name", calls())
def test_everything_is_as_found(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Random states, modes, threads, dtype, loggers, warnings, streams, hooks and the model; nothing is printed."""
    model, call = calls()[name]
    capfd.readouterr()
    before = found(model)
    call()
    after = found(model)
    after["loggers"] = {name: value for name, value in after["loggers"].items() if name in before["loggers"]}
    assert {key: value for key, value in after.items() if value != before[key]} == {}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("run", [1, 2, 5, 8])
def test_ctrl_c_passes_wherever_it_comes(run: int) -> None:
    """It is the user's, so no step takes it for a failure of the model."""
    with pytest.raises(KeyboardInterrupt):
        fold(unruly(KeyboardInterrupt(), run), (IMAGES,))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "out of memory while"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory while"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate"),
            "out of memory while",
        ),
        (RuntimeError("CUDA error: device-side assert triggered"), "CUDA failed while"),
    ],
)
@pytest.mark.parametrize("run", [1, 3])
def test_the_machine_is_named(error: Exception, sentence: str, run: int) -> None:
    """Memory that ran out and errors of CUDA are not put on the model, while it is read as while it is proved."""
    with pytest.raises(FoldError, match=sentence) as raised:
        fold(unruly(error, run), (IMAGES,), dynamic=False)
    assert type(raised.value.__cause__) is type(error)
