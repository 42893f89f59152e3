"""Other values that something outside a model may have: those that the code compares it with, and their neighbours.

Used by `outside`. A choice by a number or a text has as many values as there are; what decides is on which side of the
constants of the code it lies, or which of them it is.
"""

from collections.abc import Iterable
from enum import Enum
from types import CodeType, ModuleType
from typing import Any

import torch

from .places import MISSING

_MOST_NUMBERS, _MOST_TEXTS, _MOST_OTHERS = 10, 6, 5
_LONGEST = 24  # letters of a text
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def constants_of(codes: Iterable[CodeType]) -> list[Any]:
    """Return the numbers and texts in code, and those in its tuples, in their order."""
    found: list[Any] = []
    for code in codes:
        for value in code.co_consts[1:] if code.co_consts[:1] == (code.__doc__,) else code.co_consts:
            found += value if isinstance(value, tuple | frozenset) else [value]
    return [one for one in dict.fromkeys(found) if isinstance(one, int | float | str) and not isinstance(one, bool)]


def others_of(value: Any, constants: list[Any]) -> list[Any]:
    """Return other values for one, [] where it is of a kind that has no others that could be tried.

    Args:
        value: as it is now, MISSING for nothing.
        constants: what it may be compared with, the likeliest first.
    """
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, Enum):
        return [one for one in type(value) if one is not value][:_MOST_NUMBERS]
    if isinstance(value, int | float):
        return _other_numbers(value, constants)
    if isinstance(value, str):
        return _other_texts(value, constants)
    if isinstance(value, torch.dtype):
        return [one for one in FLOATS if one is not value]
    if value is None or value is MISSING:
        likely = [*_other_texts("", constants)[1:_MOST_OTHERS], *_other_numbers(0, constants)[3:_MOST_OTHERS]]
        return [True, torch.relu, "", *likely]
    if isinstance(value, list | dict | tuple | set | frozenset):
        return [type(value)()] if value else [{True: True} if isinstance(value, dict) else type(value)([True])]
    return [] if isinstance(value, type | ModuleType) else [None]


def _other_numbers(value: float, constants: list[Any]) -> list[Any]:
    numbers = [one for one in constants if isinstance(one, int | float)]
    step: Any = 1 if isinstance(value, int) else max(abs(value) / 2, 0.5)
    far = 2 * max([abs(value), *map(abs, numbers)]) + step
    others: list[Any] = [value + step, value - step, far, -far]
    for one in sorted(numbers, key=lambda number: abs(number - value)):
        others += [one, one + (1 if one >= value else -1)]
    others.append(type(value)(0))
    return [one for one in dict.fromkeys(others) if one != value][:_MOST_NUMBERS]


def _other_texts(value: str, constants: list[Any]) -> list[str]:
    texts = [one for one in constants if isinstance(one, str) and len(one) <= _LONGEST and "\0" not in one]
    made = [f"{value}_", *texts[:_MOST_TEXTS], "", value + "_" * _LONGEST]
    return [one for one in dict.fromkeys(made) if one != value]
