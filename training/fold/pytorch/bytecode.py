"""What the code of a function does with a value that it loads: chooses by it, passes it on, or only calculates with it.

Used by `outside`. It reads the instructions of Python 3.11 to 3.14 in their order, which is enough to tell the three
apart in nearly all code; where it is not, a value counts as one that is chosen by, which costs a run more.
"""

import dis
from collections.abc import Callable
from enum import IntEnum
from types import CodeType

Steps = list[dis.Instruction]
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
CHOICES: tuple[str, ...] = ("POP_JUMP", "JUMP_IF", "UNARY_NOT", "TO_BOOL", "COMPARE_OP", "CONTAINS_OP", "IS_OP")
CHOICES += ("MATCH_", "GET_ITER", "UNPACK_")
_ENDS = ("RETURN_", "POP_TOP", "YIELD_", "STORE_")
_RETURNS = ("RETURN_", "YIELD_")


class Use(IntEnum):
    """What becomes of a value."""

    CALCULATED = 0
    PASSED = 1
    CHOSEN = 2


def steps_of(code: CodeType) -> Steps:
    """Return the instructions of one function, those of functions in it left out."""
    return list(dis.get_instructions(code))


def is_attribute(step: dis.Instruction) -> bool:
    """True where an attribute or a method is taken."""
    return step.opname in _ATTRIBUTES


def is_subscript(step: dis.Instruction) -> bool:
    """True where an item is taken."""
    return step.opname == "BINARY_SUBSCR" or (step.opname == "BINARY_OP" and step.argrepr == "[]")


def is_constant(step: dis.Instruction) -> bool:
    """True where a constant is loaded."""
    return step.opname in ("LOAD_CONST", "LOAD_SMALL_INT")


def is_global(step: dis.Instruction) -> bool:
    """True where a global is loaded, or what is built in."""
    return step.opname in ("LOAD_GLOBAL", "LOAD_NAME")


def is_call(step: dis.Instruction) -> bool:
    """True where a function is called."""
    return step.opname.startswith("CALL")


def end_of_call(steps: Steps, place: int) -> int:
    """Return the number of the next call from a place on; the place itself where there is none."""
    return next((number for number in range(place + 1, len(steps)) if is_call(steps[number])), place)


def loaded_names(step: dis.Instruction) -> tuple[str, ...]:
    """Return the local variables that are loaded, of which one instruction may load two."""
    if "LOAD_FAST" not in step.opname or step.argval is None:
        return ()
    names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
    return tuple(names[1:] if step.opname.startswith("STORE_FAST_LOAD_FAST") else names)


def use_of(steps: Steps, last: int, is_users: Callable[[dis.Instruction], bool]) -> Use:
    """Return what becomes of the value that is there after the instruction `last`.

    Args:
        steps: of the function.
        last: place of the instruction.
        is_users: whether an instruction loads a function of the user's, or one of Python's that may choose.
    """
    return _use(steps, last, is_users, set())


def _use(steps: Steps, last: int, is_users: Callable[[dis.Instruction], bool], followed: set[str]) -> Use:
    following = steps[last + 1 :]
    if following and (is_subscript(following[0]) or is_attribute(following[0])):
        return Use.CHOSEN
    is_called = is_calculated = False
    for place, step in enumerate(following, start=last + 1):
        if step.opname.startswith(CHOICES):
            return Use.CHOSEN
        is_calculated = is_calculated or step.opname.startswith("BINARY_OP")
        is_called = is_called or is_call(step)
        if not step.opname.startswith(_ENDS) or (step.opname == "STORE_FAST" and steps[place - 1].opname == "COPY"):
            continue  # what is copied, as by :=, is used here too
        if is_called:
            return Use.PASSED if any(map(is_users, _statement(steps, last, place))) else Use.CALCULATED
        if step.opname.startswith("STORE_FAST"):
            name = step.argval[0] if isinstance(step.argval, tuple) else step.argval
            return _use_of_local(steps, name, is_users, followed | {name}) if name not in followed else Use.CALCULATED
        if step.opname.startswith(_RETURNS) and is_calculated:
            return Use.CALCULATED
        return Use.PASSED
    return Use.CALCULATED


def _use_of_local(steps: Steps, name: str, is_users: Callable[[dis.Instruction], bool], followed: set[str]) -> Use:
    places = [place for place, step in enumerate(steps) if name in loaded_names(step)]
    return max((_use(steps, place, is_users, followed) for place in places), default=Use.CALCULATED)


def _statement(steps: Steps, place: int, end: int) -> Steps:
    """Return the instructions of the statement around a place, as far as its end."""
    start = place
    while start and not steps[start - 1].opname.startswith(_ENDS):
        start -= 1
    return steps[start:end]
