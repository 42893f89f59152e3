"""Other sizes of the inputs: which a model accepts, and at which it computes in another way.

Between reading a model and placing its norms. A graph is read at one size, and a forward may choose by size, such as
whether to pad; what is legal there must be legal at every size at which the model does something else. Only operations
are recorded here, on tensors without values, so that large sizes cost nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, is_dataclass, replace
from itertools import islice
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from ...errors import FoldError
from .circumstances import CIRCUMSTANCES, IN_C, PLAIN, Circumstance, Shapes, after, noting, resized
from .float64 import Inputs, call, named_tensors, sharing_copy, writes
from .plain_layers import has_plain_layers_only
from .process_state import quiet
from .size_questions import FOLLOW, Question, SizeReads, is_fake, questions
from .user_code import Code, code_of, plain_state

Change = Callable[[int], int]
Trace = tuple[tuple[str, str], ...]


_SMALL = 32


def _other_parity(n: int) -> int:
    """Return a size near half of it, or one less than a small one, even for odd and odd for even: any divisor ends."""
    return n - 1 if n <= _SMALL else n // 2 + (n // 2 % 2 == n % 2)


# How the first free axis changes, and how the others do: to another parity, at which a proof costs less; down; far up.
_CHANGES: tuple[tuple[Change, Change], ...] = (
    (_other_parity, _other_parity),
    (lambda n: 16 * n + 1, lambda n: n // 2),
    (lambda n: n // 2, lambda n: 16 * n + 3),
)
_LARGER: tuple[Change, Change] = (lambda n: n + 1, lambda n: n + 1)
_INSTEAD: tuple[tuple[Change, Change], ...] = (  # for a model that does not accept one of those
    (lambda n: n + 1, lambda n: n + 2),
    (lambda n: 2 * n, lambda n: 2 * n),
    (lambda n: 16 * n, lambda n: 16 * n),
)
# For a forward that reads sizes: other batches; where its questions cannot be followed also smaller steps of them, and
# residues by 64, with which a size halved again and again is odd and even at every depth.
_BATCHES: tuple[Change, ...] = (lambda n: n + 1, lambda _: 1, lambda n: 16 * n + 1)
_RESIDUES = ((0, 0), (1, 1), (63, 63), (21, 42), (42, 11), (11, 21))
_MOST_TRIED, _TRIES, _MOST_CONSTANTS = 96, 3, 32  # sizes, sizes for one question, values of a plain number
# What cannot be followed is tried at these sizes, as long as all that is tried is no more than so many operations.
_SWEPT = (*range(1, 41), 48, 56, 63, 64, 65, 80, 96, 127, 128, 129, 224, 256, 257, 512)
_MOST_OPERATIONS, _MOST_COMPUTATIONS = 4_000, 12
_CHANNELS = (1, 3, 4)
_MOST_VALUES = 2**20  # of the inputs of a model that runs on no tensor without values
_FOLLOWING = 4  # a run with symbols, and one for the formulas of sizes, cost as much as so many without
_LAYERS = ("convolution", "mm.", "batch_norm", "linear")
_MOST_CALLS, _LEAST_CALLS, _MOST_CHANGES = 66, 4, 4  # of a model that counts them; calls that differ from the first
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

    def inputs(self, example: Inputs, *, has_values: bool = True) -> Inputs:
        """Return the example in these sizes, its values repeated or left out; without values at no cost."""
        return resized(self.shapes, example, has_values=has_values)


@dataclass(frozen=True)
class Sizes:
    """The sizes and circumstances that were looked at.

    Attributes:
        variants: the example's own sizes, and all others that were tried and accepted by the model.
        matters: comparisons of its own sizes in the forward where another answer makes another computation, or none.
        is_complete: every question about sizes was answered both ways, as far as there are such sizes.
        circumstances: those in which it computes otherwise than in a first call without gradients.
        unanswered: axes, each as the number of the input and that of the axis, about which something is asked that has
            another answer at no size that was found.
        may_vary: sizes may be others than the example's.
        outside: what the report says of choices by what is neither an input nor a module.
    """

    variants: list[Variant]
    matters: tuple[Question, ...] = ()
    is_complete: bool = True
    circumstances: tuple[Circumstance, ...] = ()
    unanswered: frozenset[tuple[int, int]] = frozenset()
    may_vary: bool = True
    outside: tuple[str, ...] = ()

    @property
    def fixed(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """The axes that may decide what is computed and have one size wherever the model was looked at, with it."""
        if not self.variants:
            return {}
        own = self.variants[0].shapes
        every = {(number, axis) for number, shape in enumerate(own) for axis in range(len(shape))}
        asked = self.unanswered & every if self.is_complete else every
        seen = {(number, axis): {one.shapes[number][axis] for one in self.variants} for number, axis in asked}
        return {axis: tuple(sizes) for axis, sizes in seen.items() if len(sizes) == 1}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the report has to say of them."""
        if self.is_complete:
            return self.outside
        tried = len(self.variants)
        words = f"what the forward asks about sizes cannot be followed to its end: {tried} sizes were looked at"
        return (words, *self.outside)

    @property
    def is_otherwise_traced(self) -> bool:
        """True when the model computes otherwise while it is compiled or exported."""
        return any(one.is_traced for one in self.circumstances)

    def joined(self, other: "Sizes") -> "Sizes":
        """Return both."""
        return Sizes(
            [*self.variants, *other.variants],
            tuple(dict.fromkeys((*self.matters, *other.matters))),
            self.is_complete and other.is_complete,
            tuple(dict.fromkeys((*self.circumstances, *other.circumstances))),
            self.unanswered | other.unanswered,
            self.may_vary,
            self.outside,
        )


@quiet()
def look_at_sizes(model: nn.Module, example: Inputs, *, may_vary: bool = True) -> Sizes:
    """Return the sizes that the model accepts, and at which it may compute in another way, in any circumstance.

    Args:
        model: in eval mode; not changed.
        example: positional arguments, or a mapping of keyword arguments.
        may_vary: look at other sizes than the example's.
    """
    own = _shapes(example)
    if has_plain_layers_only(model):
        return Sizes([Variant(one, ()) for one in [own, *_neighbours(own)]], may_vary=may_vary)  # the proof tries them
    code = code_of(model)
    model = sharing_copy(model)  # a norm in training mode counts its batches, without values too
    calls = _calls(model, example, own, 2)
    if not calls:
        notes = code.outside.notes
        return Sizes(
            [Variant(own, ())], is_complete=False, may_vary=may_vary, outside=notes
        )  # it runs on no tensor without values
    first = calls[0].variant
    sizes = _searched(_Search(model, example), first, code, may_vary)
    sizes = replace(sizes, may_vary=may_vary, outside=code.outside.notes)
    trains = {one for one in _asked(first, code) if _trains(model, example, own, one)}
    tried = [(one, _variant(model, example, own, one)) for one in _asked(first, code) if one not in trains]
    tried += _later_calls(model, example, calls, code)
    for circumstance, there in tried:
        if there is not None and not (there.trace == first.trace and Counter(there.reads) <= Counter(first.reads)):
            found = _searched(_Search(model, example, circumstance), there, code, may_vary)
            is_other = there.trace != first.trace
            sizes = sizes.joined(replace(found, circumstances=(circumstance,) if is_other else ()))
    sizes = _with_circumstances(sizes, model, example, code, trains)
    return _with_orders(sizes, model, example) if calls[0].has_changed else sizes


def _asked(variant: Variant, code: Code) -> list[Circumstance]:
    """Return the circumstances that the forward asks about at some sizes, and those that it may ask about."""
    names = variant.asks | (code.names & IN_C)
    return [*(one for one in CIRCUMSTANCES if one.names & names), *code.outside.circumstances]


def _trains(model: nn.Module, example: Inputs, shapes: Shapes, circumstance: Circumstance) -> bool:
    """True when a model takes gradients for the sign of training, as the book's norm does, and updates its statistics.

    That is training mode by another name, in which no norm is a fixed affine; a fold is of what it computes otherwise.
    """
    if not circumstance.has_gradients:
        return False
    plain, there = _calls(model, example, shapes, 2), _calls(model, example, shapes, 2, circumstance)
    return bool(plain and there) and there[0].keeps and not plain[0].keeps


def _with_circumstances(
    sizes: Sizes, model: nn.Module, example: Inputs, code: Code, trains: set[Circumstance]
) -> Sizes:
    """Return the sizes with those at which a circumstance counts, though it does not at the example's own."""
    known = set().union(*(_stretches(one.trace) for one in sizes.variants))
    found: list[Variant] = []
    plain = [one for one in sizes.variants[1:] if one.circumstance is PLAIN]
    for one in sorted(plain, key=lambda one: not one.asks)[:_MOST_COMPUTATIONS]:
        new = replace(one, asks=one.asks - sizes.variants[0].asks)  # what the example asks too has been looked at
        for circumstance in set(_asked(new, code)) - trains:
            there = _variant(model, example, one.shapes, circumstance)
            if there is not None and not _stretches(there.trace) <= known:
                found.append(there)
                known |= _stretches(there.trace)
    circumstances = (*sizes.circumstances, *(one.circumstance for one in found))
    return replace(sizes, variants=[*sizes.variants, *found], circumstances=tuple(dict.fromkeys(circumstances)))


def _searched(search: "_Search", first: Variant, code: Code, may_vary: bool) -> Sizes:
    """Return what is found from the sizes of the example in one circumstance."""
    search.know(first)
    if not may_vary:
        return Sizes(search.accepted)
    search.change_axes(_CHANGES if first.reads or code.is_opaque else _CHANGES[:1], _INSTEAD)
    if not first.reads and not code.is_opaque:
        return Sizes(search.accepted)
    search.change_batch(change(_batch(first.shapes)) for change in _BATCHES)
    search.change_axes(tuple((_to(one), _to(other)) for one, other in code.pairs[:_MOST_CONSTANTS]))
    matters = search.answer_otherwise(first, code)
    is_followed = matters is not None and not code.is_opaque
    if not is_followed:
        search.change_axes(tuple(map(_to_residues, _RESIDUES)))
        search.change_channels(_CHANNELS)
    is_complete = is_followed and not search.has_plain_numbers
    if not is_complete and first.circumstance is PLAIN:
        search.sweep(first, code)
    is_complete = is_complete and search.is_complete
    return Sizes(search.accepted, tuple(matters or ()), is_complete, unanswered=frozenset(search.unanswered))


def _later_calls(
    model: nn.Module, example: Inputs, calls: list["_Call"], code: Code
) -> list[tuple[Circumstance, Variant | None]]:
    """Return later calls of the same sizes, the second and those that compute otherwise than all before."""
    if calls[-1].state != calls[0].state:  # it counts
        most = max([one for one in code.constants if one < _MOST_CALLS], default=0) + 2
        count = max(_LEAST_CALLS, min(most, _MOST_OPERATIONS // max(len(calls[0].variant.trace), 1)))
        calls = _calls(model, example, calls[0].variant.shapes, count)
    known, later = set(_stretches(calls[0].variant.trace)), list[Variant]()
    for number, call_ in enumerate(calls[1:], start=1):
        stretches = _stretches(call_.variant.trace)
        if (not stretches <= known and len(later) < _MOST_CHANGES) or (number == 1 and call_.has_changed):
            later.append(call_.variant)
        known |= stretches
    return [(one.circumstance, one) for one in later]


def _with_orders(sizes: Sizes, model: nn.Module, example: Inputs) -> Sizes:
    """Return the sizes with calls that come after one of another size: a model may keep what it saw last."""
    own = _shapes(example)
    others = [one.shapes for one in sizes.variants if one.circumstance is PLAIN and one.shapes != own][:2]
    known = set().union(*(_stretches(one.trace) for one in sizes.variants))
    found: list[Variant] = []
    for one, then in [pair for other in others for pair in ((own, other), (other, own))]:
        there = _variant(model, example, then, after((one,)))
        if there is not None and not _stretches(there.trace) <= known:
            found.append(there)
            known |= _stretches(there.trace)
    circumstances = (*sizes.circumstances, *(one.circumstance for one in found), after((own,)))
    return replace(sizes, variants=[*sizes.variants, *found], circumstances=tuple(dict.fromkeys(circumstances)))


class _Search:
    """Looks for sizes at which a model computes in another way."""

    def __init__(self, model: nn.Module, example: Inputs, circumstance: Circumstance = PLAIN):
        self._model, self._example, self._circumstance = model, example, circumstance
        self._tried: dict[Shapes, Variant | None] = {}
        self._operations = 0
        self.unanswered = set[tuple[int, int]]()
        self.is_complete = True
        self.has_plain_numbers = False

    @property
    def accepted(self) -> list[Variant]:
        return [variant for variant in self._tried.values() if variant is not None]

    def know(self, variant: Variant) -> None:
        """Take a variant for tried."""
        self._tried[variant.shapes] = variant

    def tried(self, shapes: Shapes) -> Variant | None:
        """Return the sizes with what the model runs for them, None when it does not accept them."""
        if shapes not in self._tried:
            self._tried[shapes] = _variant(self._model, self._example, shapes, self._circumstance)
            self._operations += len((self._tried[shapes] or self.accepted[0]).trace) if self.accepted else 0
        return self._tried[shapes]

    def _earlier(self, shapes: Shapes) -> Inputs:
        return Variant(shapes, ()).inputs(self._example, has_values=False)

    def change_axes(
        self, changes: tuple[tuple[Change, Change], ...], instead: tuple[tuple[Change, Change], ...] = ()
    ) -> None:
        """Try other sizes of what is behind the channels, or else of the second axis."""
        own = _shapes(self._example)
        for axes in _free_axes(own):
            accepted = self._changed(own, axes, changes)
            if len(accepted) < min(len(changes), len(_CHANGES)):
                accepted += self._changed(own, axes, instead)
            if accepted:
                return

    def _changed(
        self, own: Shapes, axes: tuple[int, list[int]], changes: tuple[tuple[Change, Change], ...]
    ) -> list[Variant]:
        shapes = (_shapes_after(own, axes, change) for change in changes)
        return [variant for one in shapes if one is not None and (variant := self.tried(one)) is not None]

    def change_batch(self, batches: Iterable[int]) -> None:
        """Try other sizes of the first axis, where all tensors have one in common."""
        own = _shapes(self._example)
        for batch in batches if _batch(own) else ():
            self.tried(tuple((batch, *shape[1:]) if shape else shape for shape in own))

    def change_channels(self, channels: Iterable[int]) -> None:
        """Try other sizes of the second axis, and the channels as the last."""
        own = _shapes(self._example)
        for size in channels:
            self.tried(tuple((shape[0], size, *shape[2:]) if len(shape) > 2 else shape for shape in own))
        self.tried(_channels_last(own))

    def sweep(self, first: Variant, code: Code) -> None:
        """Try the constants of the code and then many sizes: of the batch, and of all other axes.

        It ends early once there are enough other computations; each is a graph to be read.
        """
        left = max(_MOST_OPERATIONS // max(len(first.trace), 1), _MOST_CONSTANTS) + len(self._tried)
        constants, known = code.constants[:_MOST_CONSTANTS], len(_others(self.accepted))
        for size in dict.fromkeys((*constants, *_SWEPT)):
            if len(self._tried) > left or len(_others(self.accepted)) > known + _MOST_COMPUTATIONS:
                self.is_complete = False
                return
            self.change_batch([size])
            self.change_axes(((_to(size), _to(size)),))
            if size in constants:
                self.change_axes(((_to(size), _same), (_same, _to(size))))

    def answer_otherwise(self, first: Variant, code: Code) -> list[Question] | None:
        """Try sizes at which what the forward asks has another answer, there again what it asks, and so on.

        Returns:
            what it asks at its own sizes where another answer makes another computation, or where none was found that
            the model accepts; None when it cannot be followed.
        """
        known, done, waiting = _stretches(first.trace), set[frozenset[str]](), [(first, True)]
        matters: list[Question] = []
        while waiting:
            here, is_new = waiting.pop(0)
            self._operations += _FOLLOWING * len(here.trace)
            if here is not first and self._operations > _MOST_OPERATIONS:
                self.is_complete = False
                continue
            reads = [list(here.reads), *(list(v.reads) for v in self.accepted)]
            given = here.inputs(self._example, has_values=False)
            asked = questions(self._model, given, reads, self._circumstance, self._earlier)
            if asked is None and here is first:
                return None
            if asked is None:
                self.is_complete = False
                continue
            for question, way in self._ways(asked, is_new, code.constants[:_MOST_CONSTANTS]):
                if way in done:
                    continue
                done.add(way)
                there = self._other_answer(question, asked, here)
                if there is None:
                    self.unanswered |= set(question.axes)
                stretches = set() if there is None else _stretches(there.trace)
                if there is not None:
                    waiting.append((there, not stretches <= known))
                if here is first and not question.number and (there is None or there.trace != here.trace):
                    matters.append(question)
                known |= stretches
        return matters

    def _ways(
        self, asked: list[Question], is_new: bool, constants: list[int]
    ) -> Iterator[tuple[Question, frozenset[str]]]:
        """Return the questions, each with a key: of all answers on the way to another one, or of itself alone."""
        self.has_plain_numbers |= any(not question.is_seen for question in asked)
        more = [one for question in asked if not question.is_seen for one in question.of_values(constants)]
        for place, question in enumerate([*asked, *more]):
            before = [one.expression for one in asked[:place] if is_new and not one.number]
            alone = () if is_new else (question.expression,)
            yield (
                question,
                frozenset([question.number or question.negation, *before, *(() if question.number else alone)]),
            )

    def _other_answer(self, question: Question, asked: list[Question], here: Variant) -> Variant | None:
        if len(self._tried) > _MOST_TRIED:
            self.is_complete = False
            return None
        for shapes in islice(question.other_answers(asked, here.shapes), _TRIES):
            if len(self._tried) > _MOST_TRIED:
                self.is_complete = False
                return None
            there = self.tried(shapes)
            if there is not None:
                return there
        last = _channels_last(here.shapes)
        return None if any(axis != 1 for _, axis in question.axes) or question.holds(last) else self.tried(last)


def _channels_last(shapes: Shapes) -> Shapes:
    return tuple((shape[0], *shape[2:], shape[1]) if len(shape) > 2 else shape for shape in shapes)


def _batch(shapes: Shapes) -> int:
    """Return the first axis that all tensors have in common; 0 for none."""
    batches = {shape[0] for shape in shapes if shape}
    return batches.pop() if len(batches) == 1 else 0


def _to(size: int) -> Change:
    return lambda _: size


def _same(size: int) -> int:
    return size


def _to_residues(residues: tuple[int, int]) -> tuple[Change, Change]:
    """Return changes to sizes that leave these residues by 64."""
    one, other = (lambda n, residue=residue: -(-n // 64) * 64 + residue for residue in residues)
    return one, other


def other_computations(accepted: list[Variant]) -> list[Variant]:
    """Return the sizes and circumstances in which the model runs other operations than for its example.

    Those are left out in which whatever happens between two layers is what happens there in one before.
    """
    return _others(accepted)


def _others(accepted: list[Variant]) -> list[Variant]:
    known: set[tuple[tuple[int, int], Trace]] = set()
    others: list[Variant] = []
    for variant in accepted:
        stretches = _stretches(variant.trace)
        if known and not stretches <= known:
            others.append(variant)
        known |= stretches
    return others


def _stretches(trace: Trace) -> set[tuple[tuple[int, int], Trace]]:
    """Return the operations from each layer to the next, with the number of the layer and of all layers."""
    starts = [0, *(place for place, (name, _) in enumerate(trace) if is_layer(name))]
    ends = [*starts[1:], len(trace)]
    pairs = enumerate(zip(starts, ends, strict=True))
    return {((number, len(starts)), trace[start:end]) for number, (start, end) in pairs}


def declared_axes(dynamic: Any, example: Inputs) -> set[tuple[int, int]]:
    """Return the axes that the caller lets vary, each as the number of a tensor among the inputs and that of the axis.

    Args:
        dynamic: as in `api.fold`.
        example: the inputs.
    """
    shapes = _shapes(example)
    if isinstance(dynamic, bool) or dynamic is None:
        return {(number, 0) for number, shape in enumerate(shapes) if dynamic is True and shape}
    if isinstance(dynamic, Mapping):
        given = [dynamic.get(name) for name in example] if isinstance(example, Mapping) else list(dynamic.values())
    else:
        given = list(dynamic)
    if len(given) != len(shapes):  # nested: what is declared is not told apart
        return {(number, axis) for number, shape in enumerate(shapes) for axis in range(len(shape))}
    declared = set()
    for number, axes in enumerate(given):
        pairs = axes.items() if isinstance(axes, Mapping) else enumerate(axes or ())
        declared |= {(number, axis) for axis, one in pairs if one is not None}
    return declared


def second_sizes(accepted: list[Variant], example: Inputs) -> list[Inputs]:
    """Return inputs of other sizes to prove a fold on, best first: another batch, with other sizes where accepted."""
    own = _shapes(example)
    batch, accepted = _batch(own), [one for one in accepted if one.circumstance is PLAIN]
    if not batch or not accepted:
        return []
    new = batch - 1 if batch > 1 else 2
    small = [variant.shapes for variant in accepted[1:] if _count(variant.shapes) <= 2 * _count(own)]
    shapes = [tuple((new, *shape[1:]) if shape else shape for shape in one) for one in [*small, own]]
    return [Variant(one, ()).inputs(example) for one in shapes]


def _count(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes)


def _shapes(inputs: Inputs) -> Shapes:
    leaves = tree_leaves(dict(inputs) if isinstance(inputs, Mapping) else inputs)
    return tuple(tuple(value.shape) for value in leaves if isinstance(value, Tensor))


def _free_axes(shapes: Shapes) -> list[tuple[int, list[int]]]:
    """Return what may change: the number of an input and its axes behind the channels, or else its second axis."""
    largest = max(range(len(shapes)), key=lambda number: len(shapes[number]), default=None)
    if largest is None or len(shapes[largest]) < 2:
        return []
    behind = list(range(2, len(shapes[largest])))
    return [(largest, axes) for axes in (behind, [1]) if axes]


def _neighbours(own: Shapes) -> list[Shapes]:
    """Return shapes of another parity that a network may accept: slightly larger and smaller, for large ones half."""
    largest = max((size for shape in own for size in shape), default=0)
    changes = [_CHANGES[0], _LARGER] if largest > _SMALL else [_LARGER, _CHANGES[0]]
    changed = (_shapes_after(own, axes, change) for axes in _free_axes(own)[:1] for change in changes)
    return [one for one in changed if one is not None]


def _shapes_after(shapes: Shapes, free: tuple[int, list[int]], change: tuple[Change, Change]) -> Shapes | None:
    """Return the shapes with the free axes changed, and with them the axes of other inputs that have their size."""
    number, axes = free
    new = {axis: change[min(place, 1)](shapes[number][axis]) for place, axis in enumerate(axes)}
    if min(new.values()) < 1:
        return None
    sizes = {shapes[number][axis]: size for axis, size in new.items()}
    others = [[size if axis == 0 else sizes.get(size, size) for axis, size in enumerate(shape)] for shape in shapes]
    others[number] = [new.get(axis, size) for axis, size in enumerate(shapes[number])]
    return tuple(tuple(shape) for shape in others)


def _variant(model: nn.Module, example: Inputs, shapes: Shapes, circumstance: Circumstance = PLAIN) -> Variant | None:
    """Return the sizes with what the model runs for them, None when it does not accept them."""
    calls = _calls(model, example, shapes, 1, circumstance)
    return calls[0].variant if calls else None


@dataclass(frozen=True)
class _Call:
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


def _calls(
    model: nn.Module, example: Inputs, shapes: Shapes, count: int, circumstance: Circumstance = PLAIN
) -> list[_Call]:
    """Return what a model runs in several calls of the same sizes; fewer, or none, where it does not accept them.

    It runs on tensors without values, and only where it asks for a value on those of the example.
    """
    calls = list[_Call]()
    with suppress(Exception):  # whatever a model raises for sizes that are not its own
        try:
            _record(calls, model, example, shapes, count, circumstance)
        except Exception as err:
            if not _wants_values(err) or _count(shapes) > max(_MOST_VALUES, 4 * _count(_shapes(example))):
                raise
            calls.clear()
            _record(calls, model, example, shapes, count, circumstance, has_values=True)
    return calls


_modes: WeakKeyDictionary[nn.Module, FakeTensorMode] = WeakKeyDictionary()  # each knows the weights of its model


def _wants_values(err: Exception) -> bool:
    """True for an error of a forward that asks a tensor without values for one, as item() and nonzero() do."""
    return isinstance(err, DataDependentOutputException | DynamicOutputShapeException) or "fake" in str(err).lower()


def _record(
    calls: list[_Call],
    model: nn.Module,
    example: Inputs,
    shapes: Shapes,
    count: int,
    circumstance: Circumstance,
    *,
    has_values: bool = False,
) -> None:
    """Append what a model runs in several calls; raise what it raises."""
    mode = _modes.setdefault(model, FakeTensorMode(allow_non_fake_inputs=True))
    shared = [] if has_values else [id(tensor) for _, tensor in named_tensors(model)]
    model = sharing_copy(model, keep=shared)

    def given(shapes: Shapes) -> Inputs:
        inputs = Variant(shapes, ()).inputs(example, has_values=has_values)
        if has_values:
            own: Inputs = tree_map(lambda value: value.detach().clone() if isinstance(value, Tensor) else value, inputs)
            return own
        fake: Inputs = tree_map(lambda value: mode.from_tensor(value) if isinstance(value, Tensor) else value, inputs)
        return fake

    with torch.no_grad(), nullcontext() if has_values else mode:
        for earlier in circumstance.calls:
            call(model, given(earlier))
        for number in range(count):
            before = plain_state(model, with_tensors=True) if count > 1 else ()
            with circumstance.entered():
                inputs = circumstance.prepared(given(shapes))
                recorder = _Recorder(inputs, named_tensors(model), has_values=has_values)
                reads = SizeReads(recorder.has_made if has_values else is_fake)
                with noting() as names, recorder, reads:
                    recorder.finish(call(model, inputs))
            here = circumstance if number == 0 else after((shapes,) * number)
            asks = frozenset(names | reads.names)
            variant = Variant(shapes, tuple(recorder.trace), tuple(reads.shapes), here, asks)
            has_changed = count > 1 and before != plain_state(model, with_tensors=True)
            keeps = count > 1 and any(recorder.has_made(tensor) for _, tensor in named_tensors(model))
            calls.append(_Call(variant, plain_state(model) if count > 1 else (), has_changed, keeps))


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
        results = _run(func, args, kwargs or {})
        self._note_made(results, self._layer)
        return results

    def has_made(self, tensor: Tensor) -> bool:
        """True for the result of an operation that was noted."""
        return tensor in self._made

    def finish(self, outputs: Any) -> None:
        """Note what is returned."""
        self._note("output", [], tree_leaves(_fields(outputs)))

    def _note(self, name: str, numbers: list[Any], leaves: list[Any]) -> None:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        sources = [self._made[one] if one in self._made else self._names.get(id(one), id(one)) for one in tensors]
        self.trace.append((name, f"{numbers} {sources}"))

    def _note_made(self, results: Any, layer: int) -> None:
        for number, result in enumerate(tree_leaves(results)):
            if isinstance(result, Tensor):
                self._made[result] = (layer, len(self.trace) - self._start, number)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what an operation gives; a norm of tensors without values costs as much as twenty other operations."""
    is_norm = func is torch.ops.aten.native_batch_norm.default and len(args) == 8 and not kwargs
    if not is_norm or not is_fake(args[0]) or args[5] or args[3] is None or args[4] is None:
        return func(*args, **kwargs)
    return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)


def is_layer(name: str) -> bool:
    """True for the name of an operation that has weights."""
    return any(word in name for word in _LAYERS)


def _fields(outputs: Any) -> Any:
    return vars(outputs) if is_dataclass(outputs) else outputs
