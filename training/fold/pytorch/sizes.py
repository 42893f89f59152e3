"""What is known of the sizes of a model's inputs after a look at it: those it accepts, and what its forward asks.

`look` makes it; the fold decides by it where norms may go, and for which sizes a result is proved and runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .circumstances import PLAIN, Circumstance
from .float64 import Inputs
from .recorded_calls import Variant
from .shape_changes import batch_of, elements_of, shapes_in
from .size_questions import Question


@dataclass(frozen=True)
class Sizes:
    """The sizes and circumstances that were looked at.

    Attributes:
        variants: the example's own sizes, and all others that were tried and accepted by the model.
        matters: comparisons of its own sizes in the forward where another answer makes another computation, or none.
        is_complete: every question about sizes was answered both ways, as far as there are such sizes.
        circumstances: those in which it computes otherwise than in a first call without gradients.
        unanswered: axes, each as the number of the input and that of the axis, about which something is asked that has
            another answer at no size that was found.
        may_vary: sizes may be others than the example's.
        outside: what the report says of choices by what is neither an input nor a module.
        trains_with_gradients: it takes gradients for the sign of training, and updates its statistics then.
        unjudged: why nothing can be said of it as a whole; "" as a rule.
    """

    variants: list[Variant]
    matters: tuple[Question, ...] = ()
    is_complete: bool = True
    circumstances: tuple[Circumstance, ...] = ()
    unanswered: frozenset[tuple[int, int]] = frozenset()
    may_vary: bool = True
    outside: tuple[str, ...] = ()
    trains_with_gradients: bool = False
    unjudged: str = ""

    @property
    def fixed(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """The axes that may decide what is computed and have one size wherever the model was looked at, with it."""
        if not self.variants:
            return {}
        own = self.variants[0].shapes
        every = {(number, axis) for number, shape in enumerate(own) for axis in range(len(shape))}
        asked = self.unanswered & every if self.is_complete else every
        seen = {(number, axis): {one.shapes[number][axis] for one in self.variants} for number, axis in asked}
        return {axis: tuple(sizes) for axis, sizes in seen.items() if len(sizes) == 1}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the report has to say of them."""
        if self.is_complete:
            return self.outside
        tried = len(self.variants)
        words = f"what the forward asks about sizes cannot be followed to its end: {tried} sizes were looked at"
        return (words, *self.outside)

    @property
    def is_otherwise_traced(self) -> bool:
        """True when the model computes otherwise while it is compiled or exported."""
        return any(one.is_traced for one in self.circumstances)

    def joined(self, other: "Sizes") -> "Sizes":
        """Return both."""
        return Sizes(
            [*self.variants, *other.variants],
            tuple(dict.fromkeys((*self.matters, *other.matters))),
            self.is_complete and other.is_complete,
            tuple(dict.fromkeys((*self.circumstances, *other.circumstances))),
            self.unanswered | other.unanswered,
            self.may_vary,
            self.outside,
            self.trains_with_gradients,
            self.unjudged,
        )


def declared_axes(dynamic: Any, example: Inputs) -> set[tuple[int, int]]:
    """Return the axes that the caller lets vary, each as the number of a tensor among the inputs and that of the axis.

    Args:
        dynamic: as in `api.fold`.
        example: the inputs.
    """
    shapes = shapes_in(example)
    if isinstance(dynamic, bool) or dynamic is None:
        return {(number, 0) for number, shape in enumerate(shapes) if dynamic is True and shape}
    if isinstance(dynamic, Mapping):
        given = [dynamic.get(name) for name in example] if isinstance(example, Mapping) else list(dynamic.values())
    else:
        given = list(dynamic)
    if len(given) != len(shapes):  # nested: what is declared is not told apart
        return {(number, axis) for number, shape in enumerate(shapes) for axis in range(len(shape))}
    declared = set()
    for number, axes in enumerate(given):
        pairs = axes.items() if isinstance(axes, Mapping) else enumerate(axes or ())
        declared |= {(number, axis) for axis, one in pairs if one is not None}
    return declared


def second_sizes(accepted: list[Variant], example: Inputs) -> list[Inputs]:
    """Return inputs of other sizes to prove a fold on, best first: another batch, with other sizes where accepted."""
    own = shapes_in(example)
    batch, accepted = batch_of(own), [one for one in accepted if one.circumstance is PLAIN]
    if not batch or not accepted:
        return []
    new = batch - 1 if batch > 1 else 2
    small = [variant.shapes for variant in accepted[1:] if elements_of(variant.shapes) <= 2 * elements_of(own)]
    shapes = [tuple((new, *shape[1:]) if shape else shape for shape in one) for one in [*small, own]]
    return [Variant(one, ()).inputs(example) for one in shapes]
