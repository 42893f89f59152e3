"""What a forward may choose by that lies outside its inputs and its modules: globals, closures, the environment, time.

Used by `look`. It is found in the code of the user's functions, where a choice is made by it, and is tried with other
values, as a circumstance of the call; of what cannot be tried the report says that only what is now is proved. What a
copy of the model holds itself (attributes of its modules, and of objects in them) is a part of it, as weights are.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import combinations, islice, product
from types import ModuleType
from typing import Any

import numpy as np
from torch import dtype, nn

from .bytecode import Use
from .chance import chances
from .circumstances import Circumstance
from .foreign import Foreign
from .loads import Load, Loads
from .other_values import constants_of, others_of, rests_of
from .places import MISSING, Place, with_others
from .reachable import Reached, codes

_MOST, _MOST_PAIRS, _FEW = 64, 24, 3  # values that are tried; of two things at once; of each of the two
_PLAIN = (bool, int, float, str, bytes, type(None), Enum, dtype, np.generic)
_LONGEST = 40  # letters of a value in a message


@dataclass(frozen=True)
class Outside:
    """What a forward may choose by.

    Attributes:
        circumstances: each with another value of one thing, or another answer.
        values: those of them with another value, which are tried at other sizes too.
        pairs: with other values of two things at once.
        draws: in which the generators give other numbers that it has of its own.
        notes: for the report, of what cannot be tried.
    """

    circumstances: tuple[Circumstance, ...] = ()
    values: tuple[Circumstance, ...] = ()
    pairs: tuple[Circumstance, ...] = ()
    draws: tuple[Circumstance, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[Circumstance, ...]:
        """Those of one thing, and then those of two."""
        return (*self.circumstances, *self.pairs)


@dataclass
class _Source:
    """Something outside, with what it may be otherwise.

    Attributes:
        place: where it is held.
        others: its other values.
        is_number: it is given to functions, which may only calculate with it.
        codes: the `id` of those that load it.
        is_left_alone: a function that chooses by it may stop a program or write files.
    """

    place: Place
    others: list[Any]
    is_number: bool
    codes: set[int] = field(default_factory=set)
    is_left_alone: bool = False


def outside_of(model: nn.Module, reached: Reached) -> Outside:
    """Return what the functions that a forward may run choose by outside the inputs and the modules of a network."""
    constants = constants_of(code for function in reached.functions.values() for code in codes(function.__code__))
    sources: dict[tuple[int, str], _Source] = {}
    foreign = Foreign(reached, {one.dtype for one in model.parameters() if one.is_floating_point()})
    for load in Loads(reached).all():
        foreign.take(load)
        source = _source(load, constants)
        if source is not None:
            known = sources.setdefault((id(source.place.owner), source.place.text), source)
            known.codes.add(id(load.code))
            known.is_number = known.is_number and source.is_number
            known.is_left_alone = known.is_left_alone or load.is_left_alone
            known.others += [one for one in source.others if one not in known.others]
    outside = _outside(list(sources.values()), foreign, [*reached.cached, *_silence(reached)])
    return replace(outside, draws=chances(reached.generators)) if reached.generators else outside


def _source(load: Load, constants: list[Any]) -> _Source | None:
    """Return what is loaded as something that has other values; None where nothing is chosen by it."""
    value, is_flag = load.place.value, isinstance(load.place.value, bool | np.bool_)
    if (
        load.place.is_foreign
        or (load.use is Use.CALCULATED and not is_flag and value is not MISSING)
        or load.place.owner is None
    ):
        return None
    is_plain = value is MISSING or isinstance(value, _PLAIN)
    if isinstance(value, type | ModuleType) or not (is_plain or load.is_asked_itself):
        return None  # a function, a class or an object that is only used
    if load.place.owner is os.environ:
        texts = [one for one in constants_of([load.code]) if isinstance(one, str) and one != load.place.key]
        others = [one for one in dict.fromkeys([MISSING, "1", *texts]) if one != value][:_FEW]
        return _Source(load.place, others if load.place.key else [], is_number=False)
    own = [one for one in constants_of([load.code]) if one != value]
    rests = rests_of([*_texts(own), *load.names], _texts(own)) if isinstance(value, str) else []
    likely = [*load.keys, *rests, *own, *(constants if load.use is Use.PASSED else ())]
    is_number = load.use is Use.PASSED and isinstance(value, int | float) and not is_flag
    others = [*([MISSING] if load.may_be_missing else []), *others_of(value, likely or constants)]
    if "isinstance" in load.code.co_names and not is_flag:
        others += [one for one in ("", 0, ()) if type(one) is not type(value)]
    return _Source(load.place, others, is_number)


def _texts(values: Iterable[Any]) -> list[str]:
    return [one for one in values if isinstance(one, str)]


def _silence(reached: Reached) -> Iterable[tuple[Any, str, Any]]:
    """Return what keeps the user's functions from printing while something is tried."""
    scopes = {id(one.__globals__): one.__globals__ for one in reached.functions.values()}
    return [(scope, "print", _silent) for scope in scopes.values()] if "print" in reached.names else []


def _silent(*_: Any, **__: Any) -> None:
    """Print nothing."""


def _outside(sources: list[_Source], foreign: Foreign, swaps: list[tuple[Any, str, Any]]) -> Outside:
    tried = [one for one in sources if one.others and not one.is_left_alone]
    untried = [_described(one.place) for one in sources if one not in tried]
    single = [_circumstance([(one, value)], swaps) for one in tried for value in one.others]
    together = [
        (one, other)
        for one, other in combinations(tried, 2)
        if (one.codes & other.codes or len(tried) <= _FEW) and not _overlap(one.place, other.place)
    ]
    pairs = (
        _circumstance([(one, here), (other, there)], swaps)
        for one, other in together
        for here, there in product(one.others[:_FEW], other.others[:_FEW])
    )
    if len(single) > _MOST:
        untried.append(f"{len(tried)} values outside of it, more than are tried")
    notes = [
        f"its forward may choose by {words}: what is proved holds for that as it is now"
        for words in dict.fromkeys([*untried, *foreign.notes])
    ]
    values = tuple(single[:_MOST])
    every = (*values, *foreign.circumstances(swaps))
    return Outside(every, values, tuple(islice(pairs, _MOST_PAIRS)), notes=tuple(notes))


def _circumstance(changes: list[tuple[_Source, Any]], swaps: list[tuple[Any, str, Any]]) -> Circumstance:
    others = [source.place.other(value) for source, value in changes]
    words = [f"{source.place.text} is {_text(value)}" for source, value in changes]
    return Circumstance(
        f"where {' and '.join(words)}",
        entered=with_others([*swaps, *others]),
        counts_numbers=not all(source.is_number for source, _ in changes),
    )


def _overlap(one: Place, other: Place) -> bool:
    """True for a container and what it holds, or two parts of one: with both at once, one would undo the other."""
    return (one.owner is other.owner and one.key == other.key) or one.value is other.owner or other.value is one.owner


def _described(place: Place) -> str:
    if place.owner is os.environ:
        return f"the variable {place.text}" if place.key else place.text
    is_clear = place.value is MISSING or isinstance(place.value, bool)
    return place.text if is_clear else f"{place.text} ({_text(place.value)})"


def _text(value: Any) -> str:
    return "not set" if value is MISSING else f"{value!r}"[:_LONGEST]
