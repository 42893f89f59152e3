"""Variables of closures that code may set again after the function that reads them was made.

Used by `loads`. A variable that is set once is a constant of the function, as a literal is; one that another function
sets, or its own maker for a second time, is something outside of it.
"""

import gc
import inspect
from types import CodeType, FunctionType
from typing import Any

from .bytecode import steps_of
from .reachable import codes


def may_be_set_again(function: FunctionType, name: str, cell: Any) -> bool:
    """Return whether code sets a variable of a closure again.

    Args:
        function: that reads it.
        name: of the variable.
        cell: that holds it.
    """
    maker = _maker(function)
    if maker is not None:
        return _is_set_again(list(codes(maker)), name)
    closures = [one for one in gc.get_referrers(cell) if isinstance(one, tuple)]
    others = [one for one in gc.get_referrers(*closures) if isinstance(one, FunctionType)] if closures else []
    return any(_sets(one.__code__, name) for one in others)


def _maker(function: FunctionType) -> CodeType | None:
    """Return the code of the function of a module, or a class, in which a function was made; None when not found."""
    first, *more = function.__qualname__.partition(".<locals>")[0].split(".")
    value: Any = function.__globals__.get(first)
    for name in more:
        value = inspect.getattr_static(value, name, None)
    value = getattr(value, "fget", None) or getattr(value, "__func__", value)
    value = inspect.unwrap(value) if callable(value) else None
    found = getattr(value, "__code__", None)
    return found if isinstance(found, CodeType) and function.__code__ in codes(found) else None


def _is_set_again(whole: list[CodeType], name: str) -> bool:
    """True when a variable is set in an inner function, or for a second time in its own; an argument is set once."""
    inner = [code for code in whole if name in code.co_freevars]
    own = [code for code in whole if name in code.co_cellvars]
    return any(_sets(code, name) for code in inner) or any(
        _sets(code, name) + (name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]) > 1 for code in own
    )


def _sets(code: CodeType, name: str) -> int:
    return sum(step.opname in ("STORE_DEREF", "DELETE_DEREF") and step.argval == name for step in steps_of(code))
