"""The sizes and constants for which a graph was read, checked whenever it runs: others may mean something else.

Used by `write_graph`; a result in the user's own classes needs none, since its forward looks at the sizes itself.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.printers import PythonPrinter

from ...errors import FoldError
from .size_questions import axis_name, evaluate, in_words

_LEAST = 2  # torch.export assumes that a free axis has at least two; a single one is computed alike
_MOST = 2**31  # no limit


class OtherSize(FoldError, ValueError):  # noqa: N818 -- of the argument, as any ValueError
    """A folded graph was given inputs of a size that it was not read for."""


class SizeGuard(nn.Module):
    """Raises OtherSize for inputs of sizes, and FoldError for constants, that the graph was not read for.

    Args:
        shapes: for each tensor, each axis as a number, or as a Python expression in the names of free sizes.
        conditions: Python expressions in these names, or in names of axes such as size_0_2, that have to be true.
        constants: the other inputs, by name.
        trains_with_gradients: with gradients on, what the graph was read of trains.
    """

    _is_impure = True  # its call has no result, and stays all the same

    def __init__(
        self,
        shapes: list[tuple[int | str, ...]],
        conditions: list[str],
        constants: dict[str, Any],
        trains_with_gradients: bool = False,
    ):
        super().__init__()
        self.trains_with_gradients = trains_with_gradients
        self.shapes, self.conditions, self.constants = shapes, conditions, constants

    def forward(self, *inputs: Any) -> None:
        """Check the inputs: the tensors in the order of the graph, then the constants."""
        if self.trains_with_gradients:
            require_no_gradients()
        known: dict[str, int] = {}
        for value, (name, constant) in zip(inputs[len(self.shapes) :], self.constants.items(), strict=True):
            if value != constant:
                raise FoldError(
                    f"{name}={value!r}, but this folded graph was read for {name}={constant!r}: fold again with the "
                    "inputs that you need"
                )
        for number, (value, shape) in enumerate(zip(inputs, self.shapes, strict=False)):
            if value.ndim != len(shape):
                raise OtherSize(self._sentence(f"input {number} has shape {tuple(value.shape)}"))
            for size, expected in zip(value.shape, shape, strict=True):
                if isinstance(expected, str) and expected.isidentifier():
                    expected = known.setdefault(expected, size)
                elif isinstance(expected, str):
                    expected = evaluate(expected, known)
                if size != expected:
                    raise OtherSize(self._sentence(f"input {number} has shape {tuple(value.shape)}"))
        shapes = tuple(tuple(value.shape) for value in inputs[: len(self.shapes)])
        known |= {axis_name(i, axis): size for i, shape in enumerate(shapes) for axis, size in enumerate(shape)}
        for condition in self.conditions:
            if not _holds(condition, known):
                raise OtherSize(
                    self._sentence(f"inputs of {', '.join(map(str, shapes))} do not fulfil {in_words(condition)}")
                )

    def _sentence(self, problem: str) -> str:
        expected = ", ".join("(" + ", ".join(map(_free, shape)) + ")" for shape in self.shapes)
        return f"{problem}; this folded graph was read for {expected}: fold again with `dynamic` for other sizes"


def require_no_gradients() -> None:
    """Raise FoldError where gradients are on."""
    if torch.is_grad_enabled():
        raise FoldError(
            "forward of a folded network: gradients are on, and the original takes that for training: it norms by the "
            "batch and updates its statistics. Call the folded network under torch.no_grad(), or fold with "
            'entrances="any" if this is meant'
        )


def opened(model: nn.Module) -> nn.Module:
    """Return the model, whose guards let calls with gradients through from now on."""
    for module in model.modules():
        if isinstance(module, SizeGuard):
            module.trains_with_gradients = False
    return model


def size_guard(
    inputs: Iterable[Node],
    constants: Iterable[Node],
    conditions: Iterable[str] = (),
    trains_with_gradients: bool = False,
) -> SizeGuard:
    """Return the guard for a graph's inputs: the tensors, those that are none, and more conditions; see `SizeGuard`."""
    printer = PythonPrinter()
    sizes = [tuple(node.meta["val"].shape) for node in inputs]
    shapes = [tuple(_size(size, printer) for size in shape) for shape in sizes]
    symbolic = [size for shape in sizes for size in shape if isinstance(size, torch.SymInt)]
    names = {size for shape in shapes for size in shape if isinstance(size, str) and size.isidentifier()}
    assumed = _conditions(symbolic[0].node.shape_env, names, printer) if symbolic else []
    named = {node.name: node.meta["val"] for node in constants}
    return SizeGuard(shapes, [*assumed, *conditions], named, trains_with_gradients)


def _size(size: Any, printer: PythonPrinter) -> int | str:
    return int(size) if isinstance(size, int) else str(printer.doprint(size.node.expr))


def _conditions(env: ShapeEnv, names: set[str], printer: PythonPrinter) -> list[str]:
    """Return what was assumed of the free sizes `names`; that none of them is one does not count."""
    assumed = [guard.expr for guard in env.guards if getattr(guard.expr, "rel_op", "") != "!="]
    conditions = [str(printer.doprint(one)) for one in assumed if {str(s) for s in one.free_symbols} <= names]
    for symbol, values in env.var_to_range.items():
        if str(symbol) in names:
            conditions += [f"{symbol} >= {values.lower}"] if _LEAST < values.lower < _MOST else []
            conditions += [f"{symbol} <= {values.upper}"] if values.upper < _MOST else []
    return conditions


def _free(size: int | str) -> str:
    return "any" if isinstance(size, str) and size.isidentifier() else str(size)


def _holds(condition: str, known: dict[str, int]) -> bool:
    """True when a condition is fulfilled; False also where it has no value, as in a division by a size of zero."""
    with suppress(ArithmeticError):
        return bool(evaluate(condition, known))
    return False
