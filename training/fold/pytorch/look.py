"""The look at a model: which sizes and circumstances it accepts, and in which of them it computes in another way.

Between reading a model and placing its norms. A graph is read at one size, and a forward may choose by size, such as
whether to pad; what is legal there must be legal at every size at which the model does something else.
"""

from collections import Counter
from dataclasses import replace

from torch import nn

from .chance import chances
from .circumstances import CIRCUMSTANCES, IN_C, PLAIN, Circumstance, Shapes, after
from .float64 import Inputs, sharing_copy
from .plain_layers import has_plain_layers_only
from .process_state import quiet
from .recorded_calls import Call, Trace, Variant, recorded_calls, structure, variant_of
from .shape_changes import neighbours, shapes_in
from .size_search import MOST_COMPUTATIONS, MOST_OPERATIONS, Search, searched
from .sizes import Sizes
from .user_code import Code, code_of

_MOST_CALLS, _LEAST_CALLS, _MOST_CHANGES = 66, 4, 4  # of a model that counts them; calls that differ from the first
_MOST_OUTSIDE, _LEAST_OUTSIDE = 8_000, 8  # operations that are run for what lies outside; runs of a large model
_MOST_OUTSIDE_AT_SIZES, _LEAST_OUTSIDE_AT_SIZES = 2_000, 4  # the same at sizes that are not the example's
_CHANCES = chances()


@quiet()
def look_at_sizes(model: nn.Module, example: Inputs, *, may_vary: bool = True) -> Sizes:
    """Return the sizes that the model accepts, and at which it may compute in another way, in any circumstance.

    Args:
        model: in eval mode; not changed.
        example: positional arguments, or a mapping of keyword arguments.
        may_vary: look at other sizes than the example's.
    """
    own = shapes_in(example)
    if has_plain_layers_only(model):
        return Sizes([Variant(one, ()) for one in [own, *neighbours(own)]], may_vary=may_vary)  # the proof tries them
    model = sharing_copy(model)  # a norm in training mode counts its batches, without values too
    code = code_of(model)
    calls = recorded_calls(model, example, own, 2)
    if not calls:
        notes = code.outside.notes
        return Sizes(
            [Variant(own, ())], is_complete=False, may_vary=may_vary, outside=notes
        )  # it runs on no tensor without values
    first = calls[0].variant
    sizes = searched(Search(model, example), first, code, may_vary)
    asked = _asked(first, code)
    trains = {one for one in asked if _trains(model, example, own, one)}
    sizes = replace(sizes, may_vary=may_vary, outside=code.outside.notes, trains_with_gradients=bool(trains))
    tried = [(one, variant_of(model, example, own, one)) for one in asked if one not in trains]
    tried += _later_calls(model, example, calls, code)
    outside = _Outside(model, example, first)
    tried += [(one, there) for one in code.outside.all if (there := outside.tried(one)) is not None]
    for circumstance, there in tried:
        if there is not None and not (_is_same(there, first) and Counter(there.reads) <= Counter(first.reads)):
            found = searched(Search(model, example, circumstance), there, code, may_vary)
            is_other = not _is_same(there, first)
            sizes = sizes.joined(replace(found, circumstances=(circumstance,) if is_other else ()))
    sizes = _with_circumstances(sizes, model, example, code, trains, outside)
    unjudged = _chosen_by_chance(model, example, first, code)
    sizes = replace(sizes, outside=(*sizes.outside, *outside.notes), unjudged=unjudged)
    return _with_orders(sizes, model, example) if calls[0].has_changed else sizes


def _chosen_by_chance(model: nn.Module, example: Inputs, first: Variant, code: Code) -> str:
    """Return why a model cannot be judged that chooses by a generator of its own, which each call moves on; or ""."""
    for chance in code.outside.draws:
        with chance.entered():
            there = variant_of(model, example, first.shapes)
        if there is not None and there.trace != first.trace:
            return "its forward chooses by numbers that it draws from a generator of its own"
    return ""


def _is_same(there: Variant, first: Variant) -> bool:
    """True when the same is computed in another circumstance."""
    if there.trace == first.trace or there.circumstance.counts_numbers:
        return there.trace == first.trace
    return structure(there.trace) == structure(first.trace)


class _Outside:
    """Runs a model with other values of what lies outside of it, as often as its size allows."""

    def __init__(self, model: nn.Module, example: Inputs, first: Variant):
        self._model, self._example, self._first = model, example, first
        operations = max(len(first.trace), 1)
        self._left = max(_MOST_OUTSIDE // operations, _LEAST_OUTSIDE)
        self._left_at_sizes = max(_MOST_OUTSIDE_AT_SIZES // operations, _LEAST_OUTSIDE_AT_SIZES)
        self._known: set[tuple[Shapes, Trace, Shapes]] = {(first.shapes, first.trace, first.reads)}
        self._untried: list[str] = []

    def tried(self, circumstance: Circumstance) -> Variant | None:
        """Return what is run for the sizes of the example, None for what was seen before, or where it does not run."""
        if not self._left:
            self._untried.append(circumstance.words)
            return None
        self._left -= 1
        return self._new(circumstance, self._first.shapes)

    def tried_at(self, shapes: Shapes, circumstance: Circumstance) -> Variant | None:
        """Return the same for other sizes; of a large model only few are tried, the rest is None."""
        self._left_at_sizes -= 1
        return self._new(circumstance, shapes) if self._left_at_sizes >= 0 else None

    def _new(self, circumstance: Circumstance, shapes: Shapes) -> Variant | None:
        there = variant_of(self._model, self._example, shapes, circumstance)
        key = None if there is None else (shapes, there.trace, there.reads)
        if key is None or key in self._known:
            return None
        self._known.add(key)
        return there

    @property
    def notes(self) -> tuple[str, ...]:
        """What the report has to say of what was not tried."""
        if not self._untried:
            return ()
        count = len(self._untried)
        return (
            f"its forward may choose by more than is tried in a model of its size: {count} values, the first of "
            f"which is tried {self._untried[0]}",
        )


def _asked(variant: Variant, code: Code) -> list[Circumstance]:
    """Return the circumstances that the forward asks about at some sizes, and those that it may ask about."""
    names = variant.asks | (code.names & IN_C)
    return [one for one in (*CIRCUMSTANCES, *_CHANCES) if one.names & names]


def _trains(model: nn.Module, example: Inputs, shapes: Shapes, circumstance: Circumstance) -> bool:
    """True when a model takes gradients for the sign of training, as the book's norm does, and updates its statistics.

    That is training mode by another name, in which no norm is a fixed affine; a fold is of what it computes otherwise.
    """
    if not circumstance.has_gradients:
        return False
    plain, there = recorded_calls(model, example, shapes, 2), recorded_calls(model, example, shapes, 2, circumstance)
    return bool(plain and there) and there[0].keeps and not plain[0].keeps


def _with_circumstances(
    sizes: Sizes, model: nn.Module, example: Inputs, code: Code, trains: set[Circumstance], outside: _Outside
) -> Sizes:
    """Return the sizes with those at which a circumstance counts, though it does not at the example's own."""
    known = set().union(*(one.stretches for one in sizes.variants))
    found: list[Variant] = []
    plain = [one for one in sizes.variants[1:] if one.circumstance is PLAIN]
    for one in sorted(plain, key=lambda one: not one.asks)[:MOST_COMPUTATIONS]:
        new = replace(one, asks=one.asks - sizes.variants[0].asks)  # what the example asks too has been looked at
        asked = [variant_of(model, example, one.shapes, there) for there in _asked(new, code) if there not in trains]
        asked += [outside.tried_at(one.shapes, there) for there in code.outside.values]
        for there in asked:
            if there is not None and not there.stretches <= known and not _is_same(there, one):
                found.append(there)
                known |= there.stretches
    circumstances = (*sizes.circumstances, *(one.circumstance for one in found))
    return replace(sizes, variants=[*sizes.variants, *found], circumstances=tuple(dict.fromkeys(circumstances)))


def _later_calls(
    model: nn.Module, example: Inputs, calls: list[Call], code: Code
) -> list[tuple[Circumstance, Variant | None]]:
    """Return later calls of the same sizes, the second and those that compute otherwise than all before."""
    if calls[-1].state != calls[0].state:  # it counts
        most = max([one for one in code.constants if one < _MOST_CALLS], default=0) + 2
        count = max(_LEAST_CALLS, min(most, MOST_OPERATIONS // max(len(calls[0].variant.trace), 1)))
        calls = recorded_calls(model, example, calls[0].variant.shapes, count)
    known, later = set(calls[0].variant.stretches), list[Variant]()
    for number, call_ in enumerate(calls[1:], start=1):
        stretches = call_.variant.stretches
        if (not stretches <= known and len(later) < _MOST_CHANGES) or (number == 1 and call_.has_changed):
            later.append(call_.variant)
        known |= stretches
    return [(one.circumstance, one) for one in later]


def _with_orders(sizes: Sizes, model: nn.Module, example: Inputs) -> Sizes:
    """Return the sizes with calls that come after one of another size: a model may keep what it saw last."""
    own = shapes_in(example)
    others = [one.shapes for one in sizes.variants if one.circumstance is PLAIN and one.shapes != own][:2]
    known = set().union(*(one.stretches for one in sizes.variants))
    found: list[Variant] = []
    for one, then in [pair for other in others for pair in ((own, other), (other, own))]:
        there = variant_of(model, example, then, after((one,)))
        if there is not None and not there.stretches <= known:
            found.append(there)
            known |= there.stretches
    circumstances = (*sizes.circumstances, *(one.circumstance for one in found), after((own,)))
    return replace(sizes, variants=[*sizes.variants, *found], circumstances=tuple(dict.fromkeys(circumstances)))
