"""What a forward may choose by besides the sizes of its inputs: gradients, tracing, earlier calls, and their like.

Used by `look`, which records what a model runs in each of them that its code names, by `graph`, which reads it there,
and by `result`, which proves it there. The plain circumstance is a first call without gradients.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import RLock
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .float64 import Inputs, call

Shapes = tuple[tuple[int, ...], ...]
Change = Callable[[Tensor], Tensor]
_CHANGED = RLock()


@dataclass(frozen=True)
class Circumstance:
    """In which circumstance a model is called.

    Attributes:
        words: for messages, such as "with gradients"; "" for the plain one.
        names: with which code asks for it.
        entered: the context of the call.
        changed: what the tensors among the inputs are then.
        calls: the sizes of the inputs of earlier calls.
        is_traced: torch.compiler's flags say so.
        counts_numbers: a computation is another one where it has other numbers alone.
    """

    words: str = ""
    names: frozenset[str] = frozenset()
    entered: Callable[[], AbstractContextManager[Any]] = nullcontext
    changed: Change | None = None
    calls: tuple[Shapes, ...] = ()
    is_traced: bool = False
    counts_numbers: bool = True

    @property
    def has_gradients(self) -> bool:
        """True for a call with gradients."""
        return self.entered is torch.enable_grad

    def prepared(self, inputs: Inputs) -> Inputs:
        """Return the inputs as they are then; they have to be copies."""
        if self.changed is None:
            return inputs
        changed: Inputs = tree_map(lambda one: self.changed(one) if isinstance(one, Tensor) else one, inputs)  # type: ignore[misc]
        return changed


def resized(shapes: Shapes, example: Inputs, *, has_values: bool = True) -> Inputs:
    """Return the inputs in other sizes, their values repeated or left out; without values at no cost."""
    sizes = iter(shapes)

    def resize(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        shape = next(sizes)
        if not has_values:
            return torch.empty(shape, dtype=value.dtype, device=value.device)
        for axis, size in enumerate(shape):
            places = torch.arange(size, device=value.device) % value.shape[axis]
            value = value if size == value.shape[axis] else value.index_select(axis, places)
        return value

    inputs: Inputs = tree_map(resize, dict(example) if isinstance(example, Mapping) else example)
    return inputs


@contextmanager
def flags_of_tracing(is_set: bool, exporting: bool) -> Iterator[None]:
    """Let torch.compiler's flags say whether something is traced."""
    flags: Any = torch.compiler
    before = flags._is_compiling_flag, flags._is_exporting_flag
    flags._is_compiling_flag, flags._is_exporting_flag = is_set, is_set and exporting
    try:
        yield
    finally:
        flags._is_compiling_flag, flags._is_exporting_flag = before


def hide_tracing(model: nn.Module) -> None:
    """Let the model see no flag of torch.compiler's while it is exported, as when it is called."""
    entered: list[AbstractContextManager[None]] = []

    def enter(*_: Any) -> None:
        entered.append(flags_of_tracing(is_set=False, exporting=False))
        entered[-1].__enter__()

    def leave(*_: Any) -> None:
        entered.pop().__exit__(None, None, None)

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)


def call_as_before(model: nn.Module, circumstance: Circumstance, inputs: Callable[[Shapes], Inputs]) -> None:
    """Make the earlier calls of a circumstance; what they raise is left to the call that follows."""
    for shapes in circumstance.calls:
        call(model, inputs(shapes))


@contextmanager
def _autocast() -> Iterator[None]:
    """Turn autocast on, to the type that numbers have anyway: what it does by itself is of no interest."""
    kinds = ("cpu", "cuda")  # a forward that names none asks about the second
    before = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]
    for kind in kinds:
        torch.set_autocast_enabled(kind, True)
        torch.set_autocast_dtype(kind, torch.float32)
    try:
        yield
    finally:
        for kind, is_enabled, dtype in before:
            torch.set_autocast_enabled(kind, is_enabled)
            torch.set_autocast_dtype(kind, dtype)


def _answering(owner: Any, name: str) -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which a function of PyTorch's answers True, for whoever has imported it too."""

    @contextmanager
    def answering() -> Iterator[None]:
        with _CHANGED:
            function = getattr(owner, name)
            code = getattr(function, "__code__", None)
            if code is None:
                setattr(owner, name, lambda: True)
            else:
                function.__code__ = (lambda: True).__code__
            try:
                yield
            finally:
                if code is None:
                    setattr(owner, name, function)
                else:
                    function.__code__ = code

    return answering


def _with_gradient(value: Tensor) -> Tensor:
    return value.requires_grad_() if value.is_floating_point() else value


def _channels_last(value: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return value.contiguous(memory_format=formats[value.ndim]) if value.ndim in formats else value


_GRADIENTS = frozenset({"is_grad_enabled", "requires_grad", "grad_fn", "is_leaf"})
_INFERENCE = frozenset({"is_inference_mode_enabled", "is_inference"})
_AUTOCAST = frozenset({"is_autocast_enabled", "is_autocast_cpu_enabled", "is_autocast_cache_enabled"})
_TRACED = frozenset({"is_compiling", "is_exporting"})
_ONNX = frozenset({"is_in_onnx_export"})
# What a forward asks is noted while it runs: attributes of tensors by a mode, functions in Python by `noting`. Those in
# C are asked as soon as its code names them.
ATTRIBUTES = frozenset({"requires_grad", "grad_fn", "is_leaf", "is_inference", "is_contiguous", "stride"})
IN_C = frozenset({"is_grad_enabled", "is_inference_mode_enabled", "_is_tracing", "_get_tracing_state"}) | _AUTOCAST
_FUNCTIONS: dict[str, Any] = {
    "is_scripting": torch._jit_internal.is_scripting,
    "is_tracing": torch.jit._trace.is_tracing,
    "is_compiling": torch.compiler.is_compiling,
    "is_exporting": torch.compiler.is_exporting,
    "is_dynamo_compiling": torch.compiler.is_dynamo_compiling,
    "is_in_onnx_export": torch.onnx.is_in_onnx_export,
}
_ORIGINALS = {name: FunctionType(one.__code__, one.__globals__) for name, one in _FUNCTIONS.items()}
_notes: list[set[str]] = []


def answer_and_note(name: str) -> Any:
    """Return what a function of PyTorch's answers, and note that it was asked, unless by PyTorch itself."""
    if _notes and not is_of_torch(sys._getframe(2)):
        _notes[-1].add(name)
    return _ORIGINALS[name]()


def is_of_torch(frame: FrameType) -> bool:
    """True for a frame of PyTorch's own code."""
    return str(frame.f_globals.get("__name__", "")).startswith("torch.")


def _noted(name: str) -> Any:
    made: dict[str, Any] = {}
    exec(  # noqa: S102 -- for whoever has imported the function too, its code is what has to change
        f"def noted():\n import sys\n return sys.modules[{__name__!r}].answer_and_note({name!r})", made
    )
    return made["noted"].__code__


_NOTED = {name: _noted(name) for name in _FUNCTIONS}


@contextmanager
def noting() -> Iterator[set[str]]:
    """Give the set in which the names stand of the functions that are asked meanwhile."""
    with _CHANGED:
        before = {name: function.__code__ for name, function in _FUNCTIONS.items()}
        for name, function in _FUNCTIONS.items():
            if function.__code__ is _ORIGINALS[name].__code__:  # else a circumstance answers
                function.__code__ = _NOTED[name]
        _notes.append(set())
        try:
            yield _notes[-1]
        finally:
            _notes.pop()
            for name, function in _FUNCTIONS.items():
                function.__code__ = before[name]


PLAIN = Circumstance()
CIRCUMSTANCES: tuple[Circumstance, ...] = (
    Circumstance("with gradients", _GRADIENTS, torch.enable_grad),
    Circumstance("with gradients of the input", _GRADIENTS, torch.enable_grad, _with_gradient),
    Circumstance("in inference mode", _INFERENCE, torch.inference_mode, torch.clone),
    Circumstance("under autocast", _AUTOCAST, _autocast),
    Circumstance(
        "while it is compiled", _TRACED, lambda: flags_of_tracing(is_set=True, exporting=False), is_traced=True
    ),
    Circumstance(
        "while it is exported", _TRACED, lambda: flags_of_tracing(is_set=True, exporting=True), is_traced=True
    ),
    Circumstance(
        "under torch.compile", frozenset({"is_dynamo_compiling"}), _answering(torch.compiler, "is_dynamo_compiling")
    ),
    Circumstance(
        "under torch.jit.trace", frozenset({"is_tracing", "_is_tracing"}), _answering(torch._C, "_is_tracing")
    ),
    Circumstance(
        "under torch.jit.trace", frozenset({"_get_tracing_state"}), _answering(torch._C, "_get_tracing_state")
    ),
    Circumstance(
        "under torch.jit.script", frozenset({"is_scripting"}), _answering(torch._jit_internal, "is_scripting")
    ),
    Circumstance("while it is exported to ONNX", _ONNX, _answering(torch.onnx, "is_in_onnx_export")),
    Circumstance("for channels_last", frozenset({"is_contiguous", "stride"}), changed=_channels_last),
)


def after(calls: tuple[Shapes, ...]) -> Circumstance:
    """Return the circumstance of a call that comes after others."""
    return Circumstance(f"after {len(calls)} calls" if len(calls) > 1 else "after a call", calls=calls)
