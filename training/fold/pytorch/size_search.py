"""The search for sizes of the inputs at which a model computes in another way, in one circumstance.

Between `recorded_calls`, which says what is run for some sizes, and `look`, which looks at all circumstances. Each
question of a forward about a size is answered both ways, as far as there are such sizes.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

from torch import nn

from .circumstances import PLAIN, Circumstance, Shapes
from .float64 import Inputs
from .recorded_calls import Trace, Variant, new_computations, variant_of
from .shape_changes import (
    BATCHES,
    CHANGES,
    CHANNELS,
    INSTEAD,
    RESIDUES,
    SWEPT,
    Change,
    batch_of,
    channels_last,
    free_axes,
    same_size,
    shapes_after,
    shapes_in,
    to_residues,
    to_size,
)
from .size_formulas import Formulas
from .size_questions import Axis, Question
from .size_symbols import questions
from .sizes import Sizes
from .user_code import Code

_MOST_TRIED, _TRIES, _MOST_CONSTANTS = 96, 3, 32  # sizes, sizes for one question, values of a plain number
MOST_OPERATIONS, MOST_COMPUTATIONS = 4_000, 12
_FOLLOWING = 4  # a run with symbols, and one for the formulas of sizes, cost as much as so many without


def searched(search: "Search", first: Variant, code: Code, may_vary: bool) -> Sizes:
    """Return what is found from the sizes of the example in one circumstance."""
    search.know(first)
    if not may_vary:
        return Sizes(search.accepted)
    search.change_axes(CHANGES if first.reads or code.is_opaque else CHANGES[:1], INSTEAD)
    if not first.reads and not code.is_opaque:
        return Sizes(search.accepted)
    search.change_batch(change(batch_of(first.shapes)) for change in BATCHES)
    search.change_axes(tuple((to_size(one), to_size(other)) for one, other in code.pairs[:_MOST_CONSTANTS]))
    matters = search.answer_otherwise(first, code)
    is_followed = matters is not None and not code.is_opaque
    if not is_followed:
        search.change_axes(tuple(map(to_residues, RESIDUES)))
        search.change_channels(CHANNELS)
    is_complete = is_followed and not search.plain_axes
    if not is_complete and first.circumstance is PLAIN:
        search.sweep(first, code, search.plain_axes if is_followed and search.is_complete else None)
    is_complete = is_complete and search.is_complete
    return Sizes(search.accepted, tuple(matters or ()), is_complete, unanswered=frozenset(search.unanswered))


class Search:
    """Looks for sizes at which a model computes in another way."""

    def __init__(self, model: nn.Module, example: Inputs, circumstance: Circumstance = PLAIN):
        self._model, self._example, self._circumstance = model, example, circumstance
        self._tried: dict[Shapes, Variant | None] = {}
        self._operations = 0
        self._formulas: dict[Trace, Formulas] = {}
        self.unanswered = set[Axis]()
        self.is_complete = True
        self.plain_axes = set[Axis]()  # whose sizes became plain numbers

    @property
    def accepted(self) -> list[Variant]:
        """All that were tried and accepted by the model."""
        return [variant for variant in self._tried.values() if variant is not None]

    def know(self, variant: Variant) -> None:
        """Take a variant for tried."""
        self._tried[variant.shapes] = variant

    def tried(self, shapes: Shapes) -> Variant | None:
        """Return the sizes with what the model runs for them, None when it does not accept them."""
        if shapes not in self._tried:
            self._tried[shapes] = variant_of(self._model, self._example, shapes, self._circumstance)
            self._operations += len((self._tried[shapes] or self.accepted[0]).trace) if self.accepted else 0
        return self._tried[shapes]

    def _earlier(self, shapes: Shapes) -> Inputs:
        return Variant(shapes, ()).inputs(self._example, has_values=False)

    def change_axes(
        self, changes: tuple[tuple[Change, Change], ...], instead: tuple[tuple[Change, Change], ...] = ()
    ) -> None:
        """Try other sizes of what is behind the channels, or else of the second axis."""
        own = shapes_in(self._example)
        for axes in free_axes(own):
            accepted = self._changed(own, axes, changes)
            if len(accepted) < min(len(changes), len(CHANGES)):
                accepted += self._changed(own, axes, instead)
            if accepted:
                return

    def _changed(
        self, own: Shapes, axes: tuple[int, list[int]], changes: tuple[tuple[Change, Change], ...]
    ) -> list[Variant]:
        shapes = (shapes_after(own, axes, change) for change in changes)
        return [variant for one in shapes if one is not None and (variant := self.tried(one)) is not None]

    def change_batch(self, batches: Iterable[int]) -> None:
        """Try other sizes of the first axis, where all tensors have one in common."""
        own = shapes_in(self._example)
        for batch in batches if batch_of(own) else ():
            self.tried(tuple((batch, *shape[1:]) if shape else shape for shape in own))

    def change_channels(self, channels: Iterable[int]) -> None:
        """Try other sizes of the second axis, and the channels as the last."""
        own = shapes_in(self._example)
        for size in channels:
            self.tried(tuple((shape[0], size, *shape[2:]) if len(shape) > 2 else shape for shape in own))
        self.tried(channels_last(own))

    def sweep(self, first: Variant, code: Code, plain: set[Axis] | None) -> None:
        """Try the constants of the code and then many sizes: of the batch, and of all other axes.

        It ends early once there are enough other computations; each is a graph to be read.

        Args:
            first: the example's own.
            code: of the model.
            plain: the axes that became plain numbers; nothing new can come of others. None for any.
        """
        has_batch = plain is None or any(axis == 0 for _, axis in plain)
        has_others = plain is None or any(axis > 1 or len(first.shapes[number]) == axis + 1 for number, axis in plain)
        left = max(MOST_OPERATIONS // max(len(first.trace), 1), _MOST_CONSTANTS) + len(self._tried)
        constants, known = code.constants[:_MOST_CONSTANTS], len(new_computations(self.accepted))
        for size in dict.fromkeys((*constants, *SWEPT)):
            if len(self._tried) > left or len(new_computations(self.accepted)) > known + MOST_COMPUTATIONS:
                self.is_complete = False
                return
            if has_batch:
                self.change_batch([size])
            if has_others:
                self.change_axes(((to_size(size), to_size(size)),))
            if has_others and size in constants:
                self.change_axes(((to_size(size), same_size), (same_size, to_size(size))))

    def answer_otherwise(self, first: Variant, code: Code) -> list[Question] | None:
        """Try sizes at which what the forward asks has another answer, there again what it asks, and so on.

        Returns:
            what it asks at its own sizes where another answer makes another computation, or where none was found that
            the model accepts; None when it cannot be followed.
        """
        known, done, waiting = first.stretches, set[frozenset[str]](), [(first, True)]
        matters: list[Question] = []
        while waiting:
            here, is_new = waiting.pop(0)
            self._operations += _FOLLOWING * len(here.trace)
            if here is not first and self._operations > MOST_OPERATIONS:
                self.is_complete = False
                continue
            reads = [list(here.reads), *(list(v.reads) for v in self.accepted)]
            given = here.inputs(self._example, has_values=False)
            formulas = self._formulas.setdefault(here.trace, Formulas())
            asked = questions(self._model, given, reads, formulas, self._circumstance, self._earlier)
            if asked is None and here is first:
                return None
            if asked is None:
                self.is_complete = False
                continue
            for question, way in self._ways(asked, is_new, code.constants[:_MOST_CONSTANTS]):
                if way in done:
                    continue
                done.add(way)
                there = self._other_answer(question, asked, here)
                if there is None:
                    self.unanswered |= set(question.axes)
                stretches = set() if there is None else there.stretches
                if there is not None:
                    waiting.append((there, not stretches <= known))
                if here is first and not question.number and (there is None or there.trace != here.trace):
                    matters.append(question)
                known |= stretches
        return matters

    def _ways(
        self, asked: list[Question], is_new: bool, constants: list[int]
    ) -> Iterator[tuple[Question, frozenset[str]]]:
        """Return the questions, each with a key: of all answers on the way to another one, or of itself alone."""
        self.plain_axes |= {axis for question in asked if not question.is_seen for axis in question.axes}
        more = [one for question in asked if not question.is_seen for one in question.of_values(constants)]
        for place, question in enumerate([*asked, *more]):
            before = [one.expression for one in asked[:place] if is_new and not one.number]
            alone = () if is_new else (question.expression,)
            yield (
                question,
                frozenset([question.number or question.negation, *before, *(() if question.number else alone)]),
            )

    def _other_answer(self, question: Question, asked: list[Question], here: Variant) -> Variant | None:
        if len(self._tried) > _MOST_TRIED:
            self.is_complete = False
            return None
        for shapes in islice(question.other_answers(asked, here.shapes), _TRIES):
            if len(self._tried) > _MOST_TRIED:
                self.is_complete = False
                return None
            there = self.tried(shapes)
            if there is not None:
                return there
        last = channels_last(here.shapes)
        return None if any(axis != 1 for _, axis in question.axes) or question.holds(last) else self.tried(last)
