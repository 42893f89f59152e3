"""Where the code of the user's functions loads what lies outside a model, and what it does with it.

Between `reachable`, which finds the functions, and `outside`, which gives other values. Names, attributes and items are
followed as they are written, such as `CONFIG["mode"]` or `settings.depth`. Of what a function is given as an argument
only the name of an attribute or a key is known, and counts for all that have one of that name.
"""

import builtins
import dis
import os
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn

from .attributes import shared_attributes
from .bytecode import (
    CHOICES,
    Steps,
    Use,
    end_of_call,
    is_attribute,
    is_constant,
    is_global,
    is_subscript,
    steps_of,
    use_of,
)
from .closures import may_be_set_again
from .places import MISSING, Place
from .reachable import Reached, cells_of, codes, is_of_others

_CHOOSING = frozenset({"getattr", "hasattr", "range", "len", "min", "max", "abs", "int", "bool", "any", "all", "sum"})
_CHOOSING |= {"isinstance", "zip", "enumerate", "slice", "next", "iter", "str", "float", "divmod", "round", "callable"}
_LOOKING_UP = frozenset({"get", "pop", "setdefault", "index", "count", "find", "__getitem__", "__contains__"})
# A branch that was never taken may stop a program or write files; where a function names these, it is not tried.
_LEFT_ALONE = frozenset(
    {"breakpoint", "set_trace", "input", "exit", "quit", "_exit", "open", "save", "savefig", "show"}
)


@dataclass(frozen=True)
class Load:
    """One place in code where something from outside is loaded.

    Attributes:
        place: where it is held.
        root: where what it was followed from is held.
        use: what becomes of it.
        code: of the function.
        steps: its instructions.
        last: the number of the last instruction that loads it.
        is_left_alone: the function may stop a program or write files.
        keys: those beside the value, of what it is looked up in.
        names: of methods and attributes that may be got by a text.
    """

    place: Place
    root: Place
    use: Use
    code: CodeType
    steps: Steps
    last: int
    is_left_alone: bool
    keys: tuple[Any, ...] = ()
    names: frozenset[str] = frozenset()

    @property
    def is_asked_itself(self) -> bool:
        """True where a choice is made by the value itself, and not by what it gives when it is called."""
        after, beyond = (self.steps[n].opname if n < len(self.steps) else "" for n in (self.last + 1, self.last + 2))
        return after.startswith(CHOICES) or beyond.startswith(("COMPARE_OP", "IS_OP", "CONTAINS_OP"))

    @property
    def use_of_result(self) -> Use:
        """What becomes of what a function returns that is loaded, of any other value the same as `use`."""
        if self.last + 1 < len(self.steps) and self.steps[self.last + 1].opname.startswith(CHOICES):
            return self.use
        return use_of(self.steps, end_of_call(self.steps, self.last), lambda _: False)

    @property
    def may_be_missing(self) -> bool:
        """True where it is asked whether an attribute is there."""
        before = [step.argval for step in self.steps[max(self.last - 6, 0) : self.last]]
        return (
            self.steps[self.last].opname.startswith("CALL") and "hasattr" in before and self.place.value is not MISSING
        )


class Loads:
    """Finds all loads in the code of the functions that a forward may run."""

    def __init__(self, reached: Reached):
        self._reached = reached
        self._attributes = shared_attributes(reached)
        self._items: dict[Any, list[Place]] = {}
        for place in (Place(one, key, one[key], f"[{key!r}]") for one in reached.dicts for key in one):
            self._items.setdefault(place.key, []).append(place)

    def all(self) -> Iterator[Load]:
        """Yield each."""
        for function in self._reached.functions.values():
            for code in codes(function.__code__):
                yield from _Code(function, code, self._reached, self._attributes, self._items).loads()


class _Code:
    """The code of one function, or of one inside it."""

    def __init__(
        self,
        function: FunctionType,
        code: CodeType,
        reached: Reached,
        attributes: Mapping[str, list[Place]],
        items: Mapping[Any, list[Place]],
    ):
        self._code, self._reached, self._attributes, self._items = code, reached, attributes, items
        self._function, self._globals = function, function.__globals__
        cells = zip(function.__code__.co_freevars, cells_of(function), strict=True)
        self._cells = {name: Place(cell, "", content, name) for name, (cell, content) in cells if cell is not None}
        self._steps = steps_of(code)
        self._is_left_alone = bool(_LEFT_ALONE & set(code.co_names))

    def loads(self) -> Iterator[Load]:
        """Yield each."""
        for number, step in enumerate(self._steps):
            for root in self._roots(number, step):
                self._root = root
                yield from self._of(*self._followed(root, number), number)

    def _roots(self, number: int, step: dis.Instruction) -> list[Place]:
        name = step.argval
        if is_global(step):
            return [Place(self._globals, name, self._globals[name], name)] if name in self._globals else []
        if "DEREF" in step.opname and step.opname.startswith("LOAD"):
            place = self._cells.get(name)
            return [] if place is None or self._is_constant(place) else [place]
        if is_attribute(step) and not self._is_followed(number):
            by_getattr = self._items.get(name, []) if self._reached.has_getattr else []
            return [*self._attributes.get(name, []), *by_getattr]
        if step.opname == "IMPORT_NAME" and name in sys.modules:
            return [Place(sys.modules, name, sys.modules[name], name)]
        if step.opname == "IMPORT_FROM":
            return self._imported(number, name)
        if is_constant(step) and isinstance(name, str):
            if self._is_key(number):
                own = [Place(self._globals, name, self._globals[name], name)] if name in self._globals else []
                return [*self._items.get(name, []), *(own if "globals" in self._code.co_names else [])]
            return self._attributes.get(name, []) if self._is_named(number) else []
        return []

    def _is_constant(self, cell: Place) -> bool:
        """True for a variable of a closure with a value that nothing changes."""
        is_plain = isinstance(cell.value, bool | int | float | str | tuple | None | Enum)
        return is_plain and not may_be_set_again(self._function, cell.text, cell.owner)

    def _imported(self, number: int, name: str) -> list[Place]:
        source = next((s.argval for s in reversed(self._steps[:number]) if s.opname == "IMPORT_NAME"), "")
        package = self._globals.get("__package__") or ""
        module = sys.modules.get(source) or sys.modules.get(f"{package}.{source}")
        place = None if module is None else Place(None, "", module, source).attribute(name)
        return [] if place is None else [place]

    def _is_followed(self, number: int) -> bool:
        """True for an attribute of a name that is known: what it is of is followed from there."""
        while number and is_attribute(self._steps[number]):
            number -= 1
        step = self._steps[number]
        known = self._globals if is_global(step) else self._cells if "DEREF" in step.opname else {}
        value = known.get(step.argval)
        return value is not None and not (isinstance(value, nn.Module | Place) or hasattr(type(value), "__getattr__"))

    def _is_key(self, number: int) -> bool:
        before, after = self._steps[number - 1 : number], self._steps[number + 1 : number + 2]
        is_given = bool(before) and is_attribute(before[0]) and before[0].argval in ("get", "setdefault", "pop")
        return is_given or any(map(is_subscript, after))

    def _is_named(self, number: int) -> bool:
        """True for a text that getattr may get."""
        return any(step.argval in ("getattr", "hasattr") for step in self._steps[max(number - 5, 0) : number])

    def _followed(self, place: Place, last: int) -> tuple[Place, int]:
        """Return the place of an attribute or an item of a value, as far as it is written, and where that ends."""
        if self._is_given_to_getattr(last):
            name = self._steps[last + 1].argval
            inner = place.attribute(name) or Place(place.value, name, MISSING, f"{place.text}.{name}")
            return inner, end_of_call(self._steps, last)
        while (step := self._inner(place, last)) is not None:
            place, last = step
        return place, last

    def _inner(self, place: Place, last: int) -> tuple[Place, int] | None:
        """Return what is taken of a value next, None where nothing is that has a place."""
        if last + 2 >= len(self._steps):
            return None
        step, after = self._steps[last + 1], self._steps[last + 2]
        inner, end = None, last
        if is_attribute(step) and isinstance(place.value, dict) and step.argval == "get" and is_constant(after):
            inner, end = place.item(after.argval), end_of_call(self._steps, last)
        elif is_attribute(step):
            inner, end = place.attribute(step.argval), last + 1
        elif is_constant(step) and is_subscript(after):
            inner, end = place.item(step.argval), last + 2
        return None if inner is None else (inner, end)

    def _is_given_to_getattr(self, number: int) -> bool:
        before = {step.argval for step in self._steps[max(number - 2, 0) : number] if isinstance(step.argval, str)}
        after = self._steps[number + 1 : number + 2]
        is_named = bool(after) and is_constant(after[0]) and isinstance(after[0].argval, str)
        return is_named and bool({"getattr", "hasattr"} & before)

    def _of(self, place: Place, last: int, first: int) -> Iterator[Load]:
        value, use = place.value, self._use(last)
        if isinstance(value, Tensor | nn.Module) or str(place.key).startswith("__"):
            return
        if value is os.environ or value is os.getenv:
            yield from self._of_environment(place, first, last)
        elif isinstance(value, dict | list | tuple | set | frozenset | deque) and not hasattr(type(value), "_fields"):
            yield from self._of_container(place, last, first, use)
        else:
            keys = self._keys(value, last)
            names = self._reached.attributes if "getattr" in self._code.co_names else frozenset()
            yield Load(place, self._root, use, self._code, self._steps, last, self._is_left_alone, keys, names)

    def _use(self, last: int) -> Use:
        return use_of(self._steps, last, self._is_users)

    def _is_users(self, step: dis.Instruction) -> bool:
        name = step.argval
        if step.opname == "MAKE_FUNCTION" or (is_attribute(step) and name in _LOOKING_UP):
            return True
        if is_global(step):
            value = self._globals.get(name)
            if value is None:
                return name in _CHOOSING and hasattr(builtins, name)
            return (
                callable(value)
                and not isinstance(value, nn.Module)
                and not is_of_others(str(getattr(value, "__module__", "")))
            )
        if "DEREF" in step.opname:
            return name in self._cells and callable(self._cells[name].value)
        return is_attribute(step) and name in self._reached.called

    def _of_container(self, place: Place, last: int, first: int, use: Use) -> Iterator[Load]:
        """Yield the members of a container that may count: the one that is asked for, or a few."""
        following, before = self._steps[last + 1 : last + 2], self._steps[first - 1 : first]
        is_table = bool(following) and following[0].opname == "CONTAINS_OP"
        is_asked = is_table and bool(before) and is_constant(before[0])
        if is_table and not is_asked and isinstance(place.value, tuple | frozenset):
            return  # a table of constants, in which something else is looked up
        places = [place.membership(before[0].argval)] if is_asked else place.items()
        if not is_asked and use is Use.CHOSEN and following and not is_subscript(following[0]):
            places = [place, *places]
        for one in places:
            if use is not Use.CALCULATED and not isinstance(one.value, Tensor | nn.Module):
                yield Load(one, self._root, use, self._code, self._steps, last, self._is_left_alone)

    def _keys(self, value: Any, last: int) -> tuple[Any, ...]:
        """Return the keys of what holds a value as one of its keys: it may be looked up there."""
        if not isinstance(value, str | int) or isinstance(value, bool):
            return ()
        found = [key for one in self._reached.mappings if value in one for key in one]
        return tuple(dict.fromkeys(key for key in found if isinstance(key, type(value))))

    def _of_environment(self, place: Place, start: int, last: int) -> Iterator[Load]:
        """Yield the variable that is read here; a name that is not written there is left to the report."""
        near = [*self._steps[last + 1 : last + 4], *reversed(self._steps[max(start - 1, 0) : start])]
        name = next((s.argval for s in near if s.opname == "LOAD_CONST" and isinstance(s.argval, str)), "")
        known = re.fullmatch(r"\w+", name) is not None
        held = os.environ.get(name, MISSING) if known else MISSING
        variable = Place(
            os.environ, name if known else None, held, f"{name} of the environment" if known else "the environment"
        )
        yield Load(variable, self._root, Use.CHOSEN, self._code, self._steps, last, self._is_left_alone)
