"""Places outside a model that hold a value, and other values in them for a while.

Used by `outside`. A place is a name of a module, a class or an object, a key of a dict, a place of a list, a member of
a set, a variable of the environment, or a cell of a closure.
"""

import os
import threading
from collections import ChainMap, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from types import CellType, MemberDescriptorType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from .reachable import home, is_of_others

MISSING = object()
_MOST_ITEMS = 8
_BUILT_IN = ("builtins", "torch", "numpy")


def _itself(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Place:
    """Where a value is held.

    Attributes:
        owner: what holds it.
        key: its name, key or number there; of a set the member.
        value: what is there now, MISSING for nothing; of a set whether the member is in it.
        text: as it is written in the code.
        is_foreign: it belongs to PyTorch, NumPy or the standard library.
        made: what to put at `key` for another value of this: a tuple of which this is a part, as a rule the value.
    """

    owner: Any
    key: Any
    value: Any
    text: str
    is_foreign: bool = False
    made: Callable[[Any], Any] = _itself

    def attribute(self, name: str) -> "Place | None":
        """Return the place of an attribute of the value, None where there is none that may be given another value."""
        value, text = self.value, f"{self.text}.{name}"
        if isinstance(value, Tensor | nn.Module) or value is os.environ:
            return None
        is_root = isinstance(value, ModuleType | type)  # an object of a class of theirs may hold what is the user's
        foreign = is_of_others(home(value)) if is_root else self.is_foreign
        if isinstance(value, ModuleType):
            return Place(value, name, vars(value)[name], text, foreign) if name in vars(value) else None
        if isinstance(value, type):
            return _of_class(value, name, text, foreign)
        if isinstance(value, ContextVar):
            return Place(value, "", value.get(MISSING), text) if name == "get" else None
        if name in getattr(type(value), "_fields", ()) and isinstance(value, tuple):
            named: Any = value
            return self._part(getattr(value, name), text, lambda new: named._replace(**{name: new}))
        if name in getattr(value, "__dict__", {}):
            return Place(value, name, vars(value)[name], text, foreign)
        if isinstance(value, dict) and type(value) is not dict and name in value:
            return Place(value, name, value[name], text, foreign)
        return None if type(value).__module__ in _BUILT_IN else _of_object(value, name, text, foreign)

    def item(self, key: Any) -> "Place | None":
        """Return the place of an item of the value, of a dict also where it has none."""
        value, text = self.value, f"{self.text}[{key!r}]"
        if isinstance(value, ChainMap):
            value = next((one for one in value.maps if key in one), value.maps[0])
        if isinstance(value, dict):
            return Place(value, key, value.get(key, MISSING), text, self.is_foreign)
        is_sequence = isinstance(value, list | tuple | deque) or (isinstance(value, np.ndarray) and value.ndim == 1)
        if not is_sequence or not isinstance(key, int) or not -len(value) <= key < len(value):
            return None
        if not isinstance(value, tuple):
            return Place(value, key, value[key], text, self.is_foreign)
        number = key % len(value)
        return self._part(value[key], text, lambda new: _with_part(value, number, new))

    def items(self, depth: int = 2) -> "list[Place]":
        """Return the items of a dict, a list or a tuple, and those of containers in it, a few of them."""
        value = self.value
        is_sequence = isinstance(value, list | tuple | deque)
        keys = [*value] if isinstance(value, dict) else range(len(value)) if is_sequence else ()
        found: list[Place] = []
        for inner in (self.item(key) for key in keys[:_MOST_ITEMS] if depth):
            if inner is not None:
                is_container = isinstance(inner.value, dict | list | tuple)
                found += inner.items(depth - 1) if is_container else [inner]
        return found[:_MOST_ITEMS]

    def membership(self, member: Any) -> "Place":
        """Return whether a container has a member, of a dict what it has there."""
        value, text = self.value, f"{member!r} in {self.text}"
        if isinstance(value, dict):
            return Place(value, member, value.get(member, MISSING), f"{self.text}[{member!r}]")
        if isinstance(value, set):
            return Place(value, member, member in value, text)

        def made(is_in: bool) -> Any:
            others = [one for one in value if one != member]
            return self.made(type(value)([*others, member] if is_in else others))

        return Place(self.owner, self.key, member in value, text, made=made)

    def _part(self, value: Any, text: str, made: Callable[[Any], Any]) -> "Place":
        return Place(self.owner, self.key, value, text, self.is_foreign, lambda new: self.made(made(new)))

    def other(self, value: Any) -> tuple[Any, Any, Any]:
        """Return what puts another value there; see `with_others`."""
        return self.owner, self.key, MISSING if value is MISSING else self.made(value)


def _with_part(value: tuple[Any, ...], number: int, new: Any) -> tuple[Any, ...]:
    parts = (*value[:number], new, *value[number + 1 :])
    return type(value)(*parts) if hasattr(type(value), "_fields") else parts


def _of_class(cls: type, name: str, text: str, foreign: bool) -> Place | None:
    for base in () if issubclass(cls, Enum) else cls.__mro__:  # members of an enumeration are constants
        if name in vars(base):
            return Place(base, name, vars(base)[name], text, foreign or is_of_others(base.__module__))
    return None


def _of_object(value: Any, name: str, text: str, foreign: bool) -> Place | None:
    """Return the place of what an object has from its class: a slot of its own, or what all of them share."""
    place = _of_class(type(value), name, text, foreign)
    if place is None or not isinstance(place.value, MemberDescriptorType):
        return None if place is None or hasattr(place.value, "__get__") else place
    return Place(value, name, getattr(value, name, MISSING), text, foreign)


def with_others(changes: Iterable[tuple[Any, Any, Any]]) -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which places have other values.

    Args:
        changes: owners, keys and values, MISSING for none.
    """
    changes = tuple(changes)

    @contextmanager
    def entered() -> Iterator[None]:
        with ExitStack() as stack:
            for owner, key, value in changes:
                if isinstance(owner, ContextVar):
                    stack.callback(owner.reset, owner.set(value))
                else:
                    stack.callback(_put, owner, key, _held(owner, key))
                    _put(owner, key, value)
            yield

    return entered


def _held(owner: Any, key: Any) -> Any:
    if isinstance(owner, CellType):
        return owner.cell_contents
    if isinstance(owner, set):
        return key in owner
    if isinstance(owner, list | deque | np.ndarray):
        return owner[key]
    if isinstance(owner, dict | os._Environ):
        return owner.get(key, MISSING)
    return vars(owner).get(key, MISSING) if isinstance(owner, type) else getattr(owner, key, MISSING)


def _put(owner: Any, key: Any, value: Any) -> None:
    if isinstance(owner, CellType):
        owner.cell_contents = value
    elif isinstance(owner, set):
        (owner.add if value is True else owner.discard)(key)
    elif isinstance(owner, list | deque | np.ndarray):
        owner[key] = value
    elif isinstance(owner, dict | os._Environ):
        if value is MISSING:
            owner.pop(key, None)
        else:
            owner[key] = value
    elif isinstance(owner, type):
        type.__setattr__(owner, key, value) if value is not MISSING else type.__delattr__(owner, key)
    elif isinstance(owner, ModuleType):
        setattr(owner, key, value) if value is not MISSING else delattr(owner, key)
    elif value is MISSING:
        object.__delattr__(owner, key)
    elif isinstance(owner, threading.local):
        setattr(owner, key, value)
    else:
        object.__setattr__(owner, key, value)  # one that forbids it may be another one all the same
