"""What stands in the code of the user's classes: numbers that a size may be compared with, and what reads sizes unseen.

Used by `look`. A size that the forward makes a plain number can no longer be followed; most likely it is compared with
one of these.
"""

import inspect
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .bytecode import steps_of
from .entrances import methods_of
from .float64 import OF_EVERY_MODULE
from .guarded_classes import unguarded_class
from .outside import Outside, outside_of
from .reachable import Reached, codes, reachable

_LONGEST_TEXT = 40
_MOST_SIZE, _MOST_VALUES = 4096, 4096  # of a number that is a size; of values that are looked into
_DEPTH, _NO_PARTS = 5, (Tensor, nn.Module, type, ModuleType, str, bytes)  # of constants in what functions use


@dataclass(frozen=True)
class Code:
    """What stands in the code of the user's classes, in what it calls and in their attributes.

    Attributes:
        constants: the numbers, and those beside; a size that became a plain number is most likely compared with one.
        pairs: those that stand two by two, as heights and widths do, or at the end of a longer tuple.
        names: what the code calls things that are none of its own, and what the functions that it refers to are called.
        is_opaque: it holds what reads sizes unseen: a function that torch.jit compiled, or the handling of an error.
        outside: what it may choose by that is neither an input nor a module.
    """

    constants: list[int]
    pairs: list[tuple[int, int]]
    names: frozenset[str]
    is_opaque: bool
    outside: Outside


def code_of(model: nn.Module) -> Code:
    """Return what stands in the code of a model; see `Code`."""
    values: list[Any] = []
    is_opaque = False
    for module in model.modules():
        cls = unguarded_class(type(module))
        if isinstance(module, torch.jit.ScriptModule):
            is_opaque = True
        elif not cls.__module__.startswith("torch."):
            own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
            static = [one.__func__ for base in cls.__mro__ for one in vars(base).values() if type(one) is staticmethod]
            values += _values([*methods_of(cls).values(), cls.forward, own, *static])
    reached = reachable(model)
    is_opaque = is_opaque or any(_is_compiled(value) for value in values)
    is_opaque = is_opaque or any(_handles_errors(code) for code in _codes(reached, values))
    values += [part for value in values if isinstance(value, str) for part in _in_text(value)]
    found = {int(one) for one in values if _is_size(one)}
    near = {number + step for number in found for step in (-1, 0, 1) if number + step > 0}
    tuples = [
        one[-2:]
        for one in values
        if isinstance(one, tuple) and len(one) > 1 and all(isinstance(n, int) and _is_size(n) for n in one)
    ]
    return Code(
        sorted(near, key=lambda number: (number not in found, number)),
        list(dict.fromkeys(tuples)),
        _all_names(values),
        is_opaque,
        outside_of(model, reached),
    )


def _in_text(text: str) -> list[Any]:
    """Return the numbers that stand in a short text, as sizes do in "224x224", and all of them together."""
    numbers = [int(number) for number in re.findall(r"\d+", text)] if len(text) <= _LONGEST_TEXT else []
    return [*numbers, tuple(numbers)]


def _all_names(values: list[Any]) -> frozenset[str]:
    names = set().union(*(_names(value) for value in values if isinstance(value, CodeType)))
    called = (getattr(value, "__name__", "") for value in values if callable(value))
    return frozenset(names | {name for name in called if isinstance(name, str)})


def plain_state(model: nn.Module, *, with_tensors: bool = False) -> tuple[Any, ...]:
    """Return the plain values that the modules hold, those in containers too; of tensors their shapes, or identities.

    A module that holds others after a call has noted something of it.
    """
    found: list[Any] = []
    for module in model.modules():
        values: list[Any] = [{name: one for name, one in vars(module).items() if name not in OF_EVERY_MODULE}]
        values += [module._buffers]
        for _ in range(_DEPTH):
            inner: list[Any] = []
            for value in values:
                if isinstance(value, Tensor):
                    found.append(id(value) if with_tensors else tuple(value.shape))
                elif isinstance(value, dict):
                    inner += [*value, *value.values()]
                elif isinstance(value, tuple | list | set | frozenset):
                    found.append(len(value))
                    inner += value
                elif isinstance(value, bool | int | float | str | None):
                    found.append(value)
                elif not isinstance(value, nn.Module):
                    found.append(id(value) if with_tensors else type(value).__name__)
            values = inner[:_MOST_VALUES]
    return tuple(found)


def _is_size(value: Any) -> bool:
    """True for a number that may be compared with one of the sizes that are looked at."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _MOST_SIZE


def _is_compiled(value: Any) -> bool:
    return isinstance(value, torch.jit.ScriptFunction | torch.jit.ScriptModule)


def _handles_errors(code: CodeType) -> bool:
    return "suppress" in code.co_names or any(step.opname == "CHECK_EXC_MATCH" for step in steps_of(code))


def _codes(reached: Reached, values: list[Any]) -> Iterable[CodeType]:
    """Return the code that a forward may run; where methods are got by names that it makes up, all that there is."""
    if "getattr" in reached.names or reached.has_getattr:
        return [value for value in values if isinstance(value, CodeType)]
    return [code for function in reached.functions.values() for code in codes(function.__code__)]


def _values(values: list[Any]) -> list[Any]:
    """Return the values and what they are made of: what is in containers, functions and plain objects."""
    found: list[Any] = []
    seen = set[int]()
    for _ in range(_DEPTH):
        inner: list[Any] = []
        found += values
        for value in values:
            if len(seen) < _MOST_VALUES and id(value) not in seen and not isinstance(value, (int, float, *_NO_PARTS)):
                seen.add(id(value))
                inner += _parts(value)
        values = inner
    return found


def _parts(value: Any) -> list[Any]:
    """Return what a value is made of, of a function its constants and what it refers to."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, tuple | list | set | frozenset):
        return list(value)
    if isinstance(value, CodeType):
        return list(value.co_consts)
    function = inspect.unwrap(value) if callable(value) else None
    if isinstance(function, FunctionType) and not function.__module__.startswith("torch."):
        parts: list[Any] = [
            function.__code__,
            *(function.__defaults__ or ()),
            *(function.__kwdefaults__ or {}).values(),
        ]
        names = sorted(_names(function.__code__))
        referred = [function.__globals__.get(name) for name in names]
        of_modules = [one for one in referred if isinstance(one, ModuleType) and not one.__name__.startswith("torch")]
        parts += [*referred, *(vars(one)[name] for one in of_modules for name in names if name in vars(one))]
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # an empty cell
                parts.append(cell.cell_contents)
        return parts
    return list(getattr(value, "__dict__", {}).values())


def _names(code: CodeType) -> set[str]:
    return set(code.co_names).union(*(_names(value) for value in code.co_consts if isinstance(value, CodeType)))
