"""A question of a forward about the sizes of its inputs, and sizes at which it gets another answer.

Used by `size_search`. A forward that reads a size may compute something else at another one: `if x.shape[0] < 7`.
`size_symbols` finds what it asks.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations, islice, product
from math import log
from random import Random
from typing import Any

from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP

from .circumstances import Shapes

Axis = tuple[int, int]  # the number of an input, and that of its axis
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
    def axes(self) -> list[Axis]:
        """The axes that it is about: each as the number of the input and that of the axis."""
        found = re.findall(r"\bsize_(\d+)_(\d+)\b", self.expression)
        return sorted({(int(number), int(axis)) for number, axis in found})

    @cached_property
    def _answer(self) -> Callable[..., Any]:
        names = ", ".join(axis_name(*axis) for axis in self.axes)
        answer: Callable[..., Any] = evaluate(f"lambda {names}: ({self.expression})", {})
        return answer

    def _holds(self, sizes: Sequence[int]) -> bool:
        try:
            return bool(self._answer(*sizes))
        except ArithmeticError:
            return False

    def _own(self, shapes: Shapes) -> list[int]:
        return [shapes[number][axis] for number, axis in self.axes]

    def holds(self, shapes: Shapes) -> bool:
        """True when the answer is as it was; False also where there is none, as in a division by zero."""
        return self._holds(self._own(shapes))

    def other_answers(self, path: list["Question"], shapes: Shapes) -> Iterator[Shapes]:
        """Return sizes at which it does not hold, those first at which the other questions still do, nearest first."""
        others = [one for one in path if one is not self]
        later: list[tuple[int, Shapes]] = []
        for new in _nearest(self, shapes):
            differing = sum(not other.holds(new) for other in others)
            if differing:
                later.append((differing, new))
            else:
                yield new
        yield from (new for _, new in sorted(later, key=lambda one: one[0]))

    def one_changed(self, shapes: Shapes) -> list[dict[Axis, int]]:
        """Return other sizes of each of its axes at which it does not hold, alone and with axes of the same size."""
        constants = {int(number) for number in re.findall(r"\b\d+\b", self.expression)}
        beyond = {near for constant in constants for near in (constant - 1, constant, constant + 1) if near > _MOST}
        found: list[dict[Axis, int]] = []
        for group in _groups(self.axes, shapes):
            sizes, places = self._own(shapes), [place for place, axis in enumerate(self.axes) if axis in group]
            own = shapes[group[0][0]][group[0][1]]
            for value in (*range(1, _MOST + 1), *sorted(beyond)):
                for place in places:
                    sizes[place] = value
                if value != own and not self._holds(sizes):
                    found.append(dict.fromkeys(group, value))
        return found

    def several_changed(self, shapes: Shapes) -> list[dict[Axis, int]]:
        """Return the same of two of its axes, the first pair with any, or of all, drawn; the channels change last."""
        axes = sorted(self.axes, key=lambda axis: axis[1] == 1)
        drawn, free = Random(0), [axis for axis in axes if axis[1] != 1] or axes  # noqa: S311 -- no secret
        draws = {tuple(drawn.randrange(1, _MOST_OF_TWO) for _ in free): None for _ in range(_MOST)}
        pairs = list(islice(combinations(axes, 2), _PAIRS))
        for moving in (*pairs, tuple(free)):
            own = dict(zip(self.axes, self._own(shapes), strict=True))
            every = product(range(1, _MOST_OF_TWO), repeat=2) if moving in pairs else draws
            moves = (dict(zip(moving, sizes, strict=True)) for sizes in every)
            found = [one for one in moves if not self._holds([one.get(axis, own[axis]) for axis in self.axes])]
            if found:
                return found
        return []


@lru_cache(maxsize=1024)
def _nearest(question: Question, shapes: Shapes) -> list[Shapes]:
    """Return sizes at which a question has another answer: the nearest, and the nearest that are roomy."""
    found = question.one_changed(shapes) or question.several_changed(shapes)
    found.sort(key=lambda values: _distance(shapes, values))
    roomy = islice((values for values in found if _is_roomy(shapes, values)), _NEAREST)
    return list(dict.fromkeys(_moved(shapes, values) for values in (*found[:_NEAREST], *roomy)))


def evaluate(expression: str, known: dict[str, int]) -> Any:
    """Return the value of an expression of sizes, as PyTorch prints it, given the sizes by name."""
    return eval(expression, dict(SYMPY_INTERP), known)  # noqa: S307 -- printed from symbols


def axis_name(number: int, axis: int) -> str:
    """Return the name of an axis of an input in a question."""
    return f"size_{number}_{axis}"


def in_words(expression: str) -> str:
    """Return an expression with "axis 2 of input 0" for the name of that axis."""
    return re.sub(r"\bsize_(\d+)_(\d+)\b", r"(axis \2 of input \1)", expression)


def _groups(axes: list[Axis], shapes: Shapes) -> list[list[Axis]]:
    """Return the axes that change together: each alone, those of its number and size, all behind the channels."""
    every = [(number, axis) for number, shape in enumerate(shapes) for axis in range(len(shape))]
    groups = [[axis] for axis in axes]
    for number, axis in axes:
        same = [one for one in every if shapes[one[0]][one[1]] == shapes[number][axis]]
        groups.append([one for one in same if one[1] == axis])
        groups.append([one for one in same if axis > 1 and one[1] > 1])
    return [list(group) for group in dict.fromkeys(tuple(group) for group in groups if group)]


def _moved(shapes: Shapes, values: dict[Axis, int]) -> Shapes:
    return tuple(
        tuple(values.get((number, axis), size) for axis, size in enumerate(shape))
        for number, shape in enumerate(shapes)
    )


def _distance(shapes: Shapes, values: dict[Axis, int]) -> float:
    return sum(abs(log(value / max(shapes[number][axis], 1))) for (number, axis), value in sorted(values.items()))


def _is_roomy(shapes: Shapes, values: dict[Axis, int]) -> bool:
    return all((shapes[number][axis] - value) % _ROOM == 0 for (number, axis), value in values.items())
