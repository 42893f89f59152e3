"""A question of a forward about the sizes of its inputs, and sizes at which it gets another answer.

Used by `size_search`. A forward that reads a size may compute something else at another one: `if x.shape[0] < 7`.
`size_symbols` finds what it asks.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice, product
from math import log
from random import Random
from types import CodeType
from typing import Any

from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP

from .circumstances import Shapes

_MOST, _MOST_OF_TWO, _NEAREST = 4096, 96, 256  # sizes that are looked at, of two axes at once, and those compared
_PAIRS = 3  # of axes
_ROOM = 64  # sizes that differ by a multiple of this mostly are as good for whatever else a network wants


@dataclass(frozen=True)
class Question:
    """What a forward asked about sizes.

    Attributes:
        expression: in Python, of axes by name, such as "size_0_2 < 7"; true at the sizes at which it was asked.
        negation: the expression of the other answer.
        number: what became a number, and is that number in `expression`; "" for a comparison.
        is_seen: the number went into an operation and nowhere else; other uses of one cannot be followed.
    """

    expression: str
    negation: str
    number: str = ""
    is_seen: bool = True

    def of_values(self, values: Iterable[int]) -> Iterator["Question"]:
        """Return for a plain number whether it is each of these values, which it is not."""
        for value in values:
            yield Question(f"({self.number}) != {value}", f"({self.number}) == {value}")

    @cached_property
    def _code(self) -> CodeType:
        return compile(self.expression, "<sizes>", "eval")

    @cached_property
    def axes(self) -> list[tuple[int, int]]:
        """The axes that it is about: each as the number of the input and that of the axis."""
        found = re.findall(r"\bsize_(\d+)_(\d+)\b", self.expression)
        return sorted({(int(number), int(axis)) for number, axis in found})

    def holds(self, shapes: Shapes) -> bool:
        """True when the answer is as it was; False also where there is none, as in a division by zero."""
        try:
            return bool(evaluate(self._code, {axis_name(*axis): shapes[axis[0]][axis[1]] for axis in self.axes}))
        except ArithmeticError:
            return False

    def other_answers(self, path: list["Question"], shapes: Shapes) -> Iterator[Shapes]:
        """Return sizes at which it does not hold, those first at which the other questions still do, nearest first."""
        found = {new: cost for cost, new in self._changed(shapes) if not self.holds(new)}
        for moved in () if found else self._several_changed(shapes):
            found |= {new: _distance(shapes, new) for new in moved if not self.holds(new)}
            if found:
                break
        others = [one for one in path if one is not self]
        nearest = sorted(found, key=lambda new: found[new])[:_NEAREST]
        nearest += sorted((new for new in found if _is_roomy(shapes, new)), key=lambda new: found[new])[:_NEAREST]
        ranks = {new: sum(not other.holds(new) for other in others) for new in nearest}
        yield from sorted(ranks, key=lambda new: (ranks[new], found[new]))

    def _changed(self, shapes: Shapes) -> Iterator[tuple[float, Shapes]]:
        """Return other sizes of each of its axes, alone and together with axes of the same size; and their cost."""
        constants = {int(number) for number in re.findall(r"\b\d+\b", self.expression)}
        beyond = {near for constant in constants for near in (constant - 1, constant, constant + 1) if near > _MOST}
        for group in _groups(self.axes, shapes):
            for value in (*range(1, _MOST + 1), *sorted(beyond)):
                new = _moved(shapes, dict.fromkeys(group, value))
                if new != shapes:
                    yield _distance(shapes, new), new

    def _several_changed(self, shapes: Shapes) -> Iterator[Iterator[Shapes]]:
        """Return other sizes of two of its axes, pair after pair, and then of all, drawn; the channels change last."""
        axes = sorted(self.axes, key=lambda axis: axis[1] == 1)
        for pair in islice(combinations(axes, 2), _PAIRS):
            values = product(range(1, _MOST_OF_TWO), repeat=2)
            yield (_moved(shapes, dict(zip(pair, sizes, strict=True))) for sizes in values)
        drawn, free = Random(0), [axis for axis in axes if axis[1] != 1] or axes  # noqa: S311 -- no secret
        yield (_moved(shapes, {axis: drawn.randrange(1, _MOST_OF_TWO) for axis in free}) for _ in range(_MOST))


def evaluate(expression: str | CodeType, known: dict[str, int]) -> Any:
    """Return the value of an expression of sizes, as PyTorch prints it, given the sizes by name."""
    return eval(expression, dict(SYMPY_INTERP), known)  # noqa: S307 -- printed from symbols


def axis_name(number: int, axis: int) -> str:
    """Return the name of an axis of an input in a question."""
    return f"size_{number}_{axis}"


def in_words(expression: str) -> str:
    """Return an expression with "axis 2 of input 0" for the name of that axis."""
    return re.sub(r"\bsize_(\d+)_(\d+)\b", r"(axis \2 of input \1)", expression)


def _groups(axes: list[tuple[int, int]], shapes: Shapes) -> list[list[tuple[int, int]]]:
    """Return the axes that change together: each alone, those of its number and size, all behind the channels."""
    every = [(number, axis) for number, shape in enumerate(shapes) for axis in range(len(shape))]
    groups = [[axis] for axis in axes]
    for number, axis in axes:
        same = [one for one in every if shapes[one[0]][one[1]] == shapes[number][axis]]
        groups.append([one for one in same if one[1] == axis])
        groups.append([one for one in same if axis > 1 and one[1] > 1])
    return [list(group) for group in dict.fromkeys(tuple(group) for group in groups if group)]


def _moved(shapes: Shapes, values: dict[tuple[int, int], int]) -> Shapes:
    return tuple(
        tuple(values.get((number, axis), size) for axis, size in enumerate(shape))
        for number, shape in enumerate(shapes)
    )


def _distance(shapes: Shapes, new: Shapes) -> float:
    pairs = ((a, b) for one, other in zip(shapes, new, strict=True) for a, b in zip(one, other, strict=True))
    return sum(abs(log(b / max(a, 1))) for a, b in pairs)


def _is_roomy(shapes: Shapes, new: Shapes) -> bool:
    pairs = ((a, b) for one, other in zip(shapes, new, strict=True) for a, b in zip(one, other, strict=True))
    return all((a - b) % _ROOM == 0 for a, b in pairs)
