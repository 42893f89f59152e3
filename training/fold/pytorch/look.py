"""The look at a model: which sizes and circumstances it accepts, and in which of them it computes in another way.

Between reading a model and placing its norms. A graph is read at one size, and a forward may choose by size, such as
whether to pad; what is legal there must be legal at every size at which the model does something else.
"""

from collections import Counter
from dataclasses import replace

from torch import nn

from .circumstances import CIRCUMSTANCES, IN_C, PLAIN, Circumstance, Shapes, after
from .float64 import Inputs, sharing_copy
from .plain_layers import has_plain_layers_only
from .process_state import quiet
from .recorded_calls import Call, Variant, recorded_calls, variant_of
from .shape_changes import neighbours, shapes_in
from .size_search import MOST_COMPUTATIONS, MOST_OPERATIONS, Search, searched
from .sizes import Sizes
from .user_code import Code, code_of

_MOST_CALLS, _LEAST_CALLS, _MOST_CHANGES = 66, 4, 4  # of a model that counts them; calls that differ from the first


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
    code = code_of(model)
    model = sharing_copy(model)  # a norm in training mode counts its batches, without values too
    calls = recorded_calls(model, example, own, 2)
    if not calls:
        notes = code.outside.notes
        return Sizes(
            [Variant(own, ())], is_complete=False, may_vary=may_vary, outside=notes
        )  # it runs on no tensor without values
    first = calls[0].variant
    sizes = searched(Search(model, example), first, code, may_vary)
    sizes = replace(sizes, may_vary=may_vary, outside=code.outside.notes)
    trains = {one for one in _asked(first, code) if _trains(model, example, own, one)}
    tried = [(one, variant_of(model, example, own, one)) for one in _asked(first, code) if one not in trains]
    tried += _later_calls(model, example, calls, code)
    for circumstance, there in tried:
        if there is not None and not (there.trace == first.trace and Counter(there.reads) <= Counter(first.reads)):
            found = searched(Search(model, example, circumstance), there, code, may_vary)
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
    plain, there = recorded_calls(model, example, shapes, 2), recorded_calls(model, example, shapes, 2, circumstance)
    return bool(plain and there) and there[0].keeps and not plain[0].keeps


def _with_circumstances(
    sizes: Sizes, model: nn.Module, example: Inputs, code: Code, trains: set[Circumstance]
) -> Sizes:
    """Return the sizes with those at which a circumstance counts, though it does not at the example's own."""
    known = set().union(*(one.stretches for one in sizes.variants))
    found: list[Variant] = []
    plain = [one for one in sizes.variants[1:] if one.circumstance is PLAIN]
    for one in sorted(plain, key=lambda one: not one.asks)[:MOST_COMPUTATIONS]:
        new = replace(one, asks=one.asks - sizes.variants[0].asks)  # what the example asks too has been looked at
        for circumstance in set(_asked(new, code)) - trains:
            there = variant_of(model, example, one.shapes, circumstance)
            if there is not None and not there.stretches <= known:
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
