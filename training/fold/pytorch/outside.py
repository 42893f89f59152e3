"""What a forward may choose by that lies outside its inputs and its modules: globals, the environment, the clock.

Used by `look`. It is found in the code of the user's functions, where a choice is made by it. What has two values is
tried with the other one, as a circumstance of the call; of the rest the report says that only what is now is proved.
"""

import dis
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from .circumstances import Circumstance

_CLOCKS = tuple(getattr(time, name) for name in ("time", "monotonic", "perf_counter", "process_time"))
_DRAWS = tuple(getattr(random, name) for name in ("random", "randint", "randrange", "choice", "uniform"))
_DATES = frozenset({"now", "today", "utcnow"})
_OF_TENSORS = frozenset({"dtype", "device", "is_cuda", "is_floating_point", "is_complex"})
_OF_PYTORCH = frozenset({"get_default_dtype", "get_default_device", "is_floating_point", "is_complex"})
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_STOPS = ("STORE_", "RETURN_", "POP_TOP", "YIELD_")
_JUMPS = ("POP_JUMP", "JUMP_IF", "UNARY_NOT", "COMPARE_OP", "CONTAINS_OP", "IS_OP")
# A branch that was never taken may stop a program or write files; where a function names these, it is not tried.
_LEFT_ALONE = frozenset(
    {"breakpoint", "set_trace", "input", "exit", "_exit", "open", "save", "savefig", "show", "print"}
)
_MOST, _LONGEST = 8, 16  # of what is tried; letters of a value of the environment
_MISSING = object()


@dataclass(frozen=True)
class Outside:
    """What a forward may choose by.

    Attributes:
        circumstances: each with another value of a global, or of the environment.
        notes: for the report, of what cannot be tried.
    """

    circumstances: tuple[Circumstance, ...] = ()
    notes: tuple[str, ...] = ()


def outside_of(functions: Iterable[FunctionType]) -> Outside:
    """Return what the user's functions choose by outside the inputs and the modules of a network."""
    tried: dict[str, Circumstance] = {}
    notes: dict[str, None] = {}
    for function in functions:
        for code in _codes(function.__code__):
            is_tried = not _LEFT_ALONE & set(code.co_names)
            for words, others in _choices(code, function.__globals__):
                if others and is_tried:
                    tried.update({one.words: one for one in others})
                else:
                    notes[f"its forward may choose by {words}: what is proved holds for that as it is now"] = None
    return Outside(tuple(tried.values())[:_MOST], tuple(notes))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _codes(value)


def _choices(code: CodeType, known: dict[str, Any]) -> Iterator[tuple[str, list[Circumstance]]]:
    """Yield what a choice is made by, in words, and the circumstances in which it is otherwise."""
    steps = list(dis.get_instructions(code))
    for place, step in enumerate(steps):
        if step.opname in _ATTRIBUTES and step.argval in _OF_TENSORS and _decides(steps, place):
            yield f"the {step.argval} of a tensor", []
        if step.opname not in ("LOAD_GLOBAL", "LOAD_NAME") or step.argval not in known:
            continue
        owner, name, value, text, last = _followed(steps, place, known)
        if value in _CLOCKS or value in _DRAWS or (name in _DATES and text.startswith("date")) or ".random." in text:
            yield f"{text}()", []
        elif value is os.getenv or value is os.environ:
            yield from _of_environment(steps, place, last)
        elif isinstance(value, bool) and _decides(steps, last):
            yield text, [Circumstance(f"where {text} is {not value}", entered=_set(owner, name, not value))]
        elif isinstance(value, int | float | str) and not name.startswith("__") and _decides(steps, last):
            yield f"{text} ({value!r})", []
        elif name in _OF_PYTORCH and _decides(steps, last):
            yield f"{text}()", []


def _followed(steps: list[dis.Instruction], place: int, known: dict[str, Any]) -> tuple[Any, str, Any, str, int]:
    """Return the owner, name and value of a global or of what it holds, as written in the code, and where that ends."""
    owner, name = known, steps[place].argval
    value, text = known[name], name
    while place + 1 < len(steps) and steps[place + 1].opname in _ATTRIBUTES:
        is_owner = isinstance(value, ModuleType | type) or type(value).__module__ not in ("builtins", "torch", "numpy")
        if not is_owner or isinstance(value, Tensor | nn.Module) or value is os.environ:
            break
        inner = getattr(value, "__dict__", {}).get(steps[place + 1].argval, _MISSING)
        if inner is _MISSING:
            break
        place += 1
        owner, name, value = value, steps[place].argval, inner
        text = f"{text}.{name}"
    return owner, name, value, text, place


def _decides(steps: list[dis.Instruction], place: int) -> bool:
    """True when a choice or a comparison follows in the same statement, or what is read is all that is returned."""
    if steps[place + 1].opname == "RETURN_VALUE":
        return True
    for step in steps[place + 1 :]:
        if step.opname.startswith(_JUMPS):
            return True
        if step.opname.startswith(_STOPS):
            return False
    return False


def _of_environment(steps: list[dis.Instruction], start: int, last: int) -> Iterator[tuple[str, list[Circumstance]]]:
    """Yield the variable that is read here, with other values of it: none, "1", texts of the code."""
    near = [*steps[last + 1 : last + 4], *reversed(steps[max(start - 1, 0) : start])]
    name = next((s.argval for s in near if s.opname == "LOAD_CONST" and isinstance(s.argval, str)), "")
    if not re.fullmatch(r"\w+", name):
        yield "the environment", []
        return
    texts = [s.argval for s in steps if isinstance(s.argval, str) and s.opname == "LOAD_CONST" and s.argval != name]
    values = dict.fromkeys([None, "1", *(text for text in texts if len(text) <= _LONGEST and "\0" not in text)])
    others = [value for value in values if value != os.environ.get(name)][:3]
    yield (
        f"the variable {name} of the environment",
        [
            Circumstance(
                f"where {name} of the environment is {'not set' if value is None else repr(value)}",
                entered=_set(os.environ, name, _MISSING if value is None else value),
            )
            for value in others
        ],
    )


def _set(owner: Any, name: str, value: Any) -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which a name of a module, an object, or a dict has another value."""

    @contextmanager
    def entered() -> Iterator[None]:
        is_dict = isinstance(owner, dict | os._Environ)
        before = owner.get(name, _MISSING) if is_dict else getattr(owner, name)
        _put(owner, name, value, is_dict=is_dict)
        try:
            yield
        finally:
            _put(owner, name, before, is_dict=is_dict)

    return entered


def _put(owner: Any, name: str, value: Any, *, is_dict: bool) -> None:
    if not is_dict:
        setattr(owner, name, value)
    elif value is _MISSING:
        owner.pop(name, None)
    else:
        owner[name] = value
