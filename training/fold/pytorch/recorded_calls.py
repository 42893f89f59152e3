"""What a model runs for inputs of given sizes: each operation, with what it reads, and what its forward looks at.

Used by `look` and `size_search`. Only operations are recorded, on tensors without values, so that large sizes cost
nothing. Nothing here decides which sizes are looked at.
"""

from collections.abc import MutableMapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from ...errors import FoldError
from .chance import DRAWS, state_of_generators
from .circumstances import PLAIN, Circumstance, Shapes, after, noting, resized
from .fake_runs import FunctionShortcuts, cut_short, fake_mode, is_fake
from .float64 import Inputs, call, kept_tensors, named_tensors, sharing_copy, writes
from .process_state import same_random_state
from .shape_changes import elements_of, shapes_in
from .size_reads import FOLLOW, SizeReads
from .user_code import plain_state

Trace = tuple[tuple[str, str], ...]
Stretch = tuple[tuple[int, int], Trace]
_MOST_VALUES = 2**20  # of the inputs of a model that runs on no tensor without values
_LAYERS = ("convolution", "mm.", "batch_norm", "linear", "layer.")
_UNSEEN = ("prim.", "aten.detach", "aten.alias")  # operations that compute nothing


@dataclass(frozen=True)
class Variant:
    """Sizes of the inputs that a model accepts, and the operations that it runs for them.

    Attributes:
        shapes: of each tensor among the inputs, in their order.
        trace: the operations, with those arguments that are no tensors.
        reads: the shapes that its forward looked at, and may choose by.
        circumstance: in which it was called.
        asks: names of what it asked of PyTorch besides sizes.
    """

    shapes: Shapes
    trace: Trace
    reads: Shapes = ()
    circumstance: Circumstance = PLAIN
    asks: frozenset[str] = frozenset()

    @cached_property
    def stretches(self) -> frozenset[Stretch]:
        """The operations from each layer to the next, with the number of the layer and of all layers."""
        starts = [0, *(place for place, (name, _) in enumerate(self.trace) if is_layer(name))]
        ends = [*starts[1:], len(self.trace)]
        pairs = enumerate(zip(starts, ends, strict=True))
        return frozenset(((number, len(starts)), self.trace[start:end]) for number, (start, end) in pairs)

    def inputs(self, example: Inputs, *, has_values: bool = True) -> Inputs:
        """Return the example in these sizes, its values repeated or left out; without values at no cost."""
        return resized(self.shapes, example, has_values=has_values)


def structure(trace: Trace) -> tuple[str, ...]:
    """Return the operations with what they read, without the numbers that they are given."""
    return tuple(f"{name}{text[text.rindex(' [') :]}" for name, text in trace)


def other_computations(accepted: list[Variant]) -> list[Variant]:
    """Return the sizes and circumstances in which the model runs other operations than for its example, first of all.

    Whatever happens between two layers in one of `accepted` happens there in the example or in one of those returned;
    they are few, for each is a graph to be read.
    """
    left, chosen = list(accepted[1:]), set[int]()
    known = set(accepted[0].stretches) if accepted else set()
    while left:
        most = max(left, key=lambda one: len(one.stretches - known))
        if most.stretches <= known:
            break
        chosen.add(id(most))
        known |= most.stretches
    return [one for one in left if id(one) in chosen]


def new_computations(accepted: list[Variant]) -> list[Variant]:
    """Return those in which something happens between two layers that happens in none before, the first left out."""
    known: set[Stretch] = set()
    new: list[Variant] = []
    for variant in accepted:
        if known and not variant.stretches <= known:
            new.append(variant)
        known |= variant.stretches
    return new


def variant_of(model: nn.Module, example: Inputs, shapes: Shapes, circumstance: Circumstance = PLAIN) -> Variant | None:
    """Return the sizes with what the model runs for them, None when it does not accept them."""
    calls = recorded_calls(model, example, shapes, 1, circumstance)
    return calls[0].variant if calls else None


@dataclass(frozen=True)
class Call:
    """One of several calls.

    Attributes:
        variant: what was run; its circumstance says how many calls came before.
        state: the plain values that the model held afterwards.
        has_changed: the model holds something else than before the call.
        keeps: it holds what it computed in the call.
    """

    variant: Variant
    state: tuple[Any, ...] = ()
    has_changed: bool = False
    keeps: bool = False


def recorded_calls(
    model: nn.Module, example: Inputs, shapes: Shapes, count: int, circumstance: Circumstance = PLAIN
) -> list[Call]:
    """Return what a model runs in several calls of the same sizes; fewer, or none, where it does not accept them.

    It runs on tensors without values, and only where it asks for a value on those of the example.
    """
    calls = list[Call]()
    with suppress(Exception):  # whatever a model raises for sizes that are not its own
        try:
            _record(calls, model, example, shapes, count, circumstance)
        except Exception as err:
            if not _wants_values(err) or elements_of(shapes) > max(_MOST_VALUES, 4 * elements_of(shapes_in(example))):
                raise
            calls.clear()
            _record(calls, model, example, shapes, count, circumstance, has_values=True)
    return calls


_modes: WeakKeyDictionary[nn.Module, FakeTensorMode] = WeakKeyDictionary()  # each knows the weights of its model


def _wants_values(err: Exception) -> bool:
    """True for an error of a forward that asks a tensor without values for one, as item() and nonzero() do."""
    return isinstance(err, DataDependentOutputException | DynamicOutputShapeException) or "fake" in str(err).lower()


def _record(
    calls: list[Call],
    model: nn.Module,
    example: Inputs,
    shapes: Shapes,
    count: int,
    circumstance: Circumstance,
    *,
    has_values: bool = False,
) -> None:
    """Append what a model runs in several calls; raise what it raises."""
    mode = _modes.setdefault(model, fake_mode())
    shared = [] if has_values else [id(tensor) for _, tensor in kept_tensors(model)]
    model = sharing_copy(model, keep=shared)

    def given(shapes: Shapes) -> Inputs:
        inputs = Variant(shapes, ()).inputs(example, has_values=has_values)
        if has_values:
            own: Inputs = tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, inputs)
            return own
        fake: Inputs = tree_map(lambda value: mode.from_tensor(value) if isinstance(value, Tensor) else value, inputs)
        return fake

    with torch.no_grad(), same_random_state(), nullcontext() if has_values else mode:
        for earlier in circumstance.calls:
            call(model, given(earlier))
        for number in range(count):
            before = plain_state(model, with_tensors=True) if count > 1 else ()
            with circumstance.entered():
                inputs = circumstance.prepared(given(shapes))
                recorder = _Recorder(inputs, kept_tensors(model), has_values=has_values)
                reads = SizeReads(recorder.has_made if has_values else is_fake)
                state = state_of_generators()
                with noting() as names, recorder, FunctionShortcuts(recorder.note_layer), reads:
                    recorder.finish(call(model, inputs))
                names |= set() if state == state_of_generators() else {DRAWS}
            here = circumstance if number == 0 else after((shapes,) * number)
            asks = frozenset(names | reads.names)
            variant = Variant(shapes, tuple(recorder.trace), tuple(reads.shapes), here, asks)
            has_changed = count > 1 and before != plain_state(model, with_tensors=True)
            keeps = count > 1 and any(recorder.has_made(tensor) for _, tensor in named_tensors(model))
            calls.append(Call(variant, plain_state(model) if count > 1 else (), has_changed, keeps))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operation: what it reads, and those arguments that are numbers, unless they follow the sizes.

    A tensor goes by the place of the operation that made it, counted from the last layer; one of the model's by its
    name. Of a padding only whether it pads counts.

    Args:
        inputs: of the model.
        named: the tensors of the model.
        has_values: it runs on values.

    Raises:
        FoldError: the model would write into a parameter with values, which is the user's.
    """

    def __init__(self, inputs: Inputs, named: list[tuple[str, Tensor]], *, has_values: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace: list[tuple[str, str]] = []
        self._layer, self._start = 0, 0
        self._made: MutableMapping[Tensor, tuple[int, ...]] = WeakIdKeyDictionary()
        self._names = {id(tensor): name for name, tensor in named}
        parameters = [one for _, one in named if has_values and type(one) is nn.Parameter]
        self._kept = {one.untyped_storage()._cdata for one in parameters}
        self._note_made(inputs, -1)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        if name.startswith(_UNSEEN):
            results = func(*args, **(kwargs or {}))
            known = [self._made[a] for a in tree_leaves(args) if isinstance(a, Tensor) and a in self._made]
            if isinstance(results, Tensor) and known:
                self._made[results] = known[0]
            return results
        if is_layer(name):
            self._layer, self._start = self._layer + 1, len(self.trace)
        follows = any(word in name for word in FOLLOW)
        leaves = tree_leaves((args, kwargs))
        numbers = [] if follows else [a for a in leaves if not isinstance(a, Tensor)]
        numbers = [any(numbers)] if "constant_pad" in name else numbers
        self._note(name, numbers, leaves)
        if self._kept and writes(func) and args[0].untyped_storage()._cdata in self._kept:
            raise FoldError(f"the model writes into one of its parameters ({name})")
        results = cut_short(func, args, kwargs or {})
        self._note_made(results, self._layer)
        return results

    def has_made(self, tensor: Tensor) -> bool:
        """True for the result of an operation that was noted."""
        return tensor in self._made

    def note_layer(self, name: str, args: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
        """Note a layer that is no operation by itself, and what it returns."""
        self._layer, self._start = self._layer + 1, len(self.trace)
        leaves = tree_leaves(args)
        self._note(f"layer.{name}", [one for one in leaves if not isinstance(one, Tensor)], leaves)
        self._note_made(results, self._layer)

    def finish(self, outputs: Any) -> None:
        """Note what is returned."""
        self._note("output", [], tree_leaves(_fields(outputs)))

    def _note(self, name: str, numbers: list[Any], leaves: list[Any]) -> None:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        sources = [self._made[one] if one in self._made else self._name_of(one, name) for one in tensors]
        self.trace.append((name, f"{numbers} {sources}"))

    def _name_of(self, tensor: Tensor, operation: str) -> Any:
        """Return what tells a tensor that no operation made from others: its values, where the call wrote them down."""
        if operation.startswith("aten.lift_fresh") and type(tensor) is Tensor and tensor.layout is torch.strided:
            with _disable_current_modes():
                values = tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
            return str(tensor.dtype), tuple(tensor.shape), hash(values)
        return self._names.get(id(tensor), id(tensor))

    def _note_made(self, results: Any, layer: int) -> None:
        for number, result in enumerate(tree_leaves(results)):
            if isinstance(result, Tensor):
                self._made[result] = (layer, len(self.trace) - self._start, number)


def is_layer(name: str) -> bool:
    """True for the name of an operation that has weights."""
    return any(word in name for word in _LAYERS)


def _fields(outputs: Any) -> Any:
    return vars(outputs) if is_dataclass(outputs) else outputs
