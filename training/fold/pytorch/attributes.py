"""Attributes that copies of a model share, by name: of classes, of objects outside it, and of modules of Python.

Used by `loads` where code takes an attribute of what it was given, and nothing tells what that was.
"""

import os
from enum import Enum
from typing import Any

from .places import Place
from .reachable import Reached, is_of_others


def shared_attributes(reached: Reached) -> dict[str, list[Place]]:
    """Return what attributes may be of that copies of the model share: those of classes, and of objects outside."""
    found: dict[str, list[Place]] = {}
    for cls, instances in reached.classes.items():
        for base in () if issubclass(cls, Enum) else cls.__mro__:  # members of an enumeration are constants
            for name, value in vars(base).items() if not is_of_others(base.__module__) else ():
                has_own = [name in getattr(one, "__dict__", {}) for one in instances if one is not None]
                if not (name.startswith("__") or hasattr(type(value), "__get__") or (has_own and all(has_own))):
                    found.setdefault(name, []).append(Place(base, name, value, f"{cls.__name__}.{name}"))
    for one in reached.objects:
        root = Place(None, "", one, type(one).__name__)
        places = [root.attribute(name) for name in [*getattr(one, "__dict__", {}), *_slots(one)]]
        for place in filter(None, places):
            found.setdefault(str(place.key), []).append(place)
    for module in reached.imported:
        for name in reached.names & vars(module).keys():
            found.setdefault(name, []).append(Place(module, name, vars(module)[name], f"{module.__name__}.{name}"))
    for name in ("environ", "getenv"):  # of a module that a function imports by itself
        found[name] = [Place(os, name, getattr(os, name), f"os.{name}")]
    for name, values in reached.shared.items():
        found.setdefault(name, []).extend(Place(None, "", value, name) for value in values)
    return found


def _slots(value: Any) -> list[str]:
    slots = [getattr(base, "__slots__", ()) for base in type(value).__mro__]
    return [name for some in slots for name in ((some,) if isinstance(some, str) else some)]
