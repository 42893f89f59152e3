"""The shapes that a forward reads, as expressions of the sizes of its inputs.

Used by `size_symbols`, for questions about sizes that are none of the inputs'. The forward runs on tensors without
values whose sizes are PyTorch's symbols, which costs as much as many calls.
"""

from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._pytree import tree_map
from torch.utils._sympy.printers import PythonPrinter

from .circumstances import Circumstance, Shapes, call_as_before
from .fake_runs import FunctionShortcuts, Shortcuts, fake_mode
from .float64 import Inputs, call
from .process_state import quiet
from .shape_changes import shapes_in
from .size_questions import axis_name, evaluate
from .size_reads import SizeReads


class Values(ShapeEnv):
    """Answers what is asked of symbols by their values; it draws no conclusions, which would hide the next question."""

    def __init__(self) -> None:
        super().__init__(duck_shape=False, specialize_zero_one=False, assume_static_by_default=False)

    def evaluate_expr(self, orig_expr: Any, hint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return the value of an expression: a condition, or something that Python makes a plain number."""
        return sympy.sympify(hint)


class Formulas:
    """The shapes that a forward reads in one way that it takes, as expressions in the names of the axes of its inputs.

    They are found with symbols, which costs as much as many calls, and hold wherever the forward takes the same way. So
    they are found once, and again only where they do not give what is read.
    """

    def __init__(self) -> None:
        self._known: list[tuple[list[tuple[Any, ...]], Callable[..., Any]]] = []

    def know(self, formulas: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Return formulas that were found, and use them for the next inputs."""
        names = sorted({str(symbol) for shape in formulas for size in shape for symbol in size.free_symbols})
        shapes = ", ".join(f"({''.join(f'{PythonPrinter().doprint(size)}, ' for size in one)})" for one in formulas)
        with suppress(SyntaxError):
            given = "".join(f"{name}, " for name in names)
            self._known.append((formulas, evaluate(f"lambda {given}**_: [{shapes}]", {})))
        return formulas

    def known_for(self, given: Inputs, read: list[tuple[int, ...]]) -> list[tuple[Any, ...]]:
        """Return the formulas that give what is read for these inputs; none where no known ones do."""
        every = enumerate(shapes_in(given))
        sizes = {axis_name(number, axis): size for number, shape in every for axis, size in enumerate(shape)}
        for formulas, shapes_of in self._known:
            with suppress(ArithmeticError, NameError, TypeError):
                if shapes_of(**sizes) == read:
                    return formulas
        return []


def shapes_as_formulas(
    model: nn.Module, given: Inputs, circumstance: Circumstance, earlier: Callable[[Shapes], Inputs]
) -> list[tuple[Any, ...]]:
    """Return the shapes that the forward reads as expressions in the names of the axes of its inputs."""
    mode, reads, numbers = fake_mode(Values()), SizeReads(), count()
    names: dict[Any, Any] = {}

    def symbolic(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        number = next(numbers)
        context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * value.ndim)
        fake = mode.from_tensor(value, symbolic_context=context, source=ConstantSource(f"input_{number}"))
        sizes: Any = fake.shape
        for axis, size in enumerate(sizes):
            names[size.node.expr] = axis_symbol(number, axis)
        return fake

    inputs = tree_map(symbolic, given)
    with quiet(), torch.no_grad(), enable_python_dispatcher(), mode:
        call_as_before(model, circumstance, earlier)
        with circumstance.entered():
            inputs = circumstance.prepared(inputs)
            with Shortcuts(), FunctionShortcuts(), reads:
                call(model, inputs)
    return [
        tuple(size.node.expr.xreplace(names) if isinstance(size, torch.SymInt) else sympy.Integer(size) for size in one)
        for one in reads.shapes
    ]


def axis_symbol(number: int, axis: int) -> Any:
    """Return the symbol that stands for an axis of an input in formulas and questions."""
    return sympy.Symbol(axis_name(number, axis), integer=True, positive=True)
