"""Other values that something outside a model may have: those that the code compares it with, and their neighbours.

Used by `outside`. A choice by a number or a text has as many values as there are; what decides is on which side of the
constants of the code it lies, or which of them it is.
"""

from collections.abc import Iterable
from enum import Enum, Flag
from types import CodeType, ModuleType
from typing import Any

import numpy as np
import torch

from .places import MISSING

_MOST_NUMBERS, _MOST_TEXTS, _MOST_OTHERS = 11, 6, 5
_LONGEST = 24  # letters of a text
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def constants_of(codes: Iterable[CodeType]) -> list[Any]:
    """Return the numbers and texts in code, and those in its tuples, in their order."""
    found: list[Any] = []
    for code in codes:
        for value in code.co_consts[1:] if code.co_consts[:1] == (code.__doc__,) else code.co_consts:
            found += value if isinstance(value, tuple | frozenset) else [value]
    known = (one for one in found if isinstance(one, int | float | str | bytes) and not isinstance(one, bool))
    return list({(type(one), one): one for one in known}.values())


def rests_of(texts: Iterable[str], parts: Iterable[str]) -> list[str]:
    """Return what is left of texts without one of the parts at either end: with it, the text is made again."""
    parts = [one for one in parts if one]
    starts = [text.removeprefix(part) for text in texts for part in parts if text.startswith(part)]
    return [*starts, *(text.removesuffix(part) for text in texts for part in parts if text.endswith(part))]


def others_of(value: Any, constants: list[Any]) -> list[Any]:
    """Return other values for one, [] where it is of a kind that has no others that could be tried.

    Args:
        value: as it is now, MISSING for nothing.
        constants: what it may be compared with, the likeliest first.
    """
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, np.generic):
        return [type(value)(one) for one in others_of(value.item(), constants) if isinstance(one, bool | int | float)]
    if isinstance(value, Enum):
        return _other_members(value)
    if isinstance(value, int | float):
        return [*_other_numbers(value, constants), None]
    if isinstance(value, str | bytes):
        return [*_other_texts(value, constants), None]
    if isinstance(value, torch.dtype):
        return [one for one in FLOATS if one is not value]
    if value is None or value is MISSING:
        numbers = _other_numbers(0, constants)
        return [True, torch.relu, "", *_other_texts("", constants)[1:_MOST_OTHERS], *numbers[2:3], *numbers[5:8]]
    if isinstance(value, list | dict | tuple | set | frozenset):
        return [type(value)()] if value else [{True: True} if isinstance(value, dict) else type(value)([True])]
    return [] if isinstance(value, type | ModuleType) else [None]


def _other_members(value: Enum) -> list[Any]:
    """Return the other members of an enumeration, of one that may be combined all of them together too."""
    others: list[Any] = [one for one in type(value) if one is not value][:_MOST_NUMBERS]
    if isinstance(value, Flag):
        others += [value | one for one in others] + [~value]
    return others


def _other_numbers(value: float, constants: list[Any]) -> list[Any]:
    numbers = [one for one in constants if isinstance(one, int | float)]
    step: Any = 1 if isinstance(value, int) else max(abs(value) / 2, 0.5)
    far = 2 * max([abs(value), *map(abs, numbers)]) + step
    others: list[Any] = [value + step, value - step, far, -far, far**2]
    for one in sorted(numbers, key=lambda number: abs(number - value)):
        others += [one, one + (1 if one >= value else -1)]
    others.append(type(value)(0))
    return [one for one in dict.fromkeys(others) if one != value][:_MOST_NUMBERS]


def _other_texts(value: Any, constants: list[Any]) -> list[Any]:
    kind = type(value) if type(value) in (str, bytes) else str
    more, zero = ("_", "\0") if kind is str else (b"_", b"\0")
    texts = [one for one in constants if type(one) is kind and len(one) <= _LONGEST and zero not in one]
    made = [value + more, *texts[:_MOST_TEXTS], kind(), value + more * _LONGEST]
    return [one for one in dict.fromkeys(made) if one != value]
