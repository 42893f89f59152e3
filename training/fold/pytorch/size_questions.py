"""What a forward asks about the sizes of its inputs, and sizes at which it gets another answer.

Used by `sizes`. A forward that reads a size may compute something else at another one: `if x.shape[0] < 7`. It runs
here on tensors without values, and the sizes that its Python code reads are symbols of PyTorch's own, which note each
comparison, each conversion to a plain number, and each argument of an operation that is made of them.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, count, islice, product
from math import log, prod
from random import Random
from threading import Lock
from types import CodeType
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP, DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils._sympy.printers import PythonPrinter

from .circumstances import ATTRIBUTES, PLAIN, Circumstance, Shapes, call_as_before, is_of_torch
from .float64 import Inputs, call, sharing_copy
from .process_state import quiet

_PARTS = ("__iter__", "unbind", "split", "tensor_split", "chunk", "__len__")  # how many there are is a size, too
_READS = ("shape", "size", "numel", "nelement", "nbytes", "stride", "is_same_size", *_PARTS)
# Functions whose arguments follow the sizes by themselves, so that other arguments are no other computation.
FOLLOW: tuple[str, ...] = ("view", "reshape", "expand", "slice", "select", "arange", "upsample", "adaptive", "repeat")
FOLLOW += ("split", "zeros", "ones", "empty", "full", "narrow", "flatten", "sym_", "as_strided", "rand", "index")
FOLLOW += ("chunk", "interpolate", "item__")
_MACHINERY = ("torch._subclasses", "torch._prims", "torch._refs", "torch._decomp", "torch.fx", "torch.utils._pytree")
_MOST, _MOST_OF_TWO, _NEAREST = 4096, 96, 256  # sizes that are looked at, of two axes at once, and those compared
_PAIRS, _MOST_ASKED = 3, 512  # of axes; questions of one forward, beyond which it is not followed
_CHANGED = Lock()
_ROOM = 64  # sizes that differ by a multiple of this mostly are as good for whatever else a network wants


def _is_of_torch_itself() -> bool:
    """True when PyTorch's own machinery calls the function that is asking, such as for the first sight of a weight."""
    return str(sys._getframe(2).f_globals.get("__name__", "")).startswith(_MACHINERY)


def is_fake(value: Any) -> bool:
    """True for a tensor without values."""
    return isinstance(value, FakeTensor)


class SizeReads(TorchFunctionMode):
    """Notes the shapes that Python reads of tensors that depend on the inputs; what reads none cannot choose by it.

    Args:
        depends: whether a tensor does; by default those that have no values do.
    """

    def __init__(self, depends: Callable[[Tensor], bool] | None = None) -> None:
        super().__init__()
        self._depends = depends or is_fake
        self.shapes: list[tuple[Any, ...]] = []
        self.names = set[str]()  # of what else it reads

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = _name(func)
        if name in ATTRIBUTES and not is_of_torch(sys._getframe(1)):
            self.names.add(name)
        if name in _READS and not _is_of_torch_itself():
            tensors = args[: 2 if name == "is_same_size" else 1]
            self.shapes += [tuple(tensor.shape) for tensor in tensors if self._depends(tensor)]
        return func(*args, **(kwargs or {}))


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


def questions(
    model: nn.Module,
    given: Inputs,
    reads: list[list[tuple[int, ...]]],
    circumstance: Circumstance = PLAIN,
    earlier: Callable[[Shapes], Inputs] = tuple,
) -> list[Question] | None:
    """Return what a forward asks about the sizes of these inputs; None when it cannot be followed.

    Args:
        model: in eval mode.
        given: the inputs; their values are not looked at.
        reads: the shapes that it reads, see `SizeReads`, first for these inputs and then for others: what is the same
            for all of them does not vary.
        circumstance: in which it is called.
        earlier: makes the inputs of its earlier calls.
    """
    asked = _Asked(reads)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    original, model = model, sharing_copy(model)  # it may keep a symbol
    try:
        inputs = tree_map(lambda value: asked.named(mode, value) if isinstance(value, Tensor) else value, given)
        with quiet(), torch.no_grad(), mode:
            call_as_before(model, circumstance, earlier)
            with circumstance.entered():
                inputs = circumstance.prepared(inputs)
                with asked, _as_numbers():
                    call(model, inputs)
        if asked.count != len(reads[0]):
            return None  # it went another way with symbols
        return asked.questions(
            _formulas(sharing_copy(original), given, circumstance, earlier) if asked.needs_formulas else []
        )
    except Exception:  # a size as the key of a dict, and whatever else symbols cannot do
        return None


@contextmanager
def _as_numbers() -> Iterator[None]:
    """Let a symbol be a key, a text and a part of divmod, as the number is; each asks for the number."""
    ways: dict[str, Any] = {
        "__hash__": lambda size: hash(int(size)),
        "__repr__": lambda size: repr(int(size)),
        "__format__": lambda size, spec: format(int(size), spec),
        "__divmod__": lambda size, other: (size // other, size % other),
        "bit_length": lambda size: int(size).bit_length(),
    }
    with _CHANGED:  # one thread at a time, or the second would take the first one's ways for PyTorch's
        before = {name: vars(torch.SymInt)[name] for name in ways if name in vars(torch.SymInt)}
        for name, way in ways.items():
            setattr(torch.SymInt, name, way)
        try:
            yield
        finally:
            for name in ways:
                if name in before:
                    setattr(torch.SymInt, name, before[name])
                else:
                    delattr(torch.SymInt, name)


class _Values(ShapeEnv):
    """Answers what is asked of symbols by their values; it draws no conclusions, which would hide the next question."""

    def __init__(self) -> None:
        super().__init__(duck_shape=False, specialize_zero_one=False, assume_static_by_default=False)

    def evaluate_expr(self, orig_expr: Any, hint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return the value of an expression: a condition, or something that Python makes a plain number."""
        return sympy.sympify(hint)


class _Symbols(_Values):
    """Notes what is asked of symbols.

    Attributes:
        asked: conditions that are true, in their order; see `Question` for the rest.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    def evaluate_expr(self, orig_expr: Any, hint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Note an expression, and return its value."""
        self.ask(orig_expr, hint)
        return super().evaluate_expr(orig_expr, hint)

    def ask(self, expression: Any, value: Any, *, is_seen: bool = False) -> None:
        """Note an expression with its value; `is_seen` when the value goes into an operation and nowhere else."""
        if len(self.asked) >= _MOST_ASKED:
            raise RecursionError("the forward asks more about sizes than can be followed")
        if isinstance(value, bool):
            self.asked.append((expression if value else sympy.Not(expression), None, True))
        else:
            self.asked.append((sympy.Eq(expression, value), expression, is_seen))


class _Asked(TorchFunctionMode):
    """Gives symbols for sizes, and notes what is asked of them."""

    def __init__(self, reads: list[list[tuple[int, ...]]]):
        super().__init__()
        self.count = 0  # of reads so far
        self._env = _Symbols()
        first, *rest = reads  # of other sizes there may be fewer or more
        self._varying = [_varying(own, [r[i] for r in rest if len(r) > i]) for i, own in enumerate(first)]
        self._sizes: dict[int, tuple[Tensor, tuple[Any, ...]]] = {}  # with the tensor, so that no other gets its id
        self._places: dict[Any, tuple[int | None, int, int]] = {}  # of a symbol: input or None, read, axis

    def named(self, mode: FakeTensorMode, tensor: Tensor) -> Tensor:
        """Return the next input without values."""
        fake, number = mode.from_tensor(tensor), len(self._sizes)
        sizes = tuple(self._symbol(size, (number, 0, axis)) for axis, size in enumerate(tensor.shape))
        self._sizes[id(fake)] = fake, sizes
        return fake

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _is_of_torch_itself():
            return func(*args, **(kwargs or {}))
        name = _name(func)
        follows = any(word in name for word in (*FOLLOW, *_READS))
        args, kwargs = self._plain(args, follows), self._plain(kwargs or {}, follows)
        if name in _READS and isinstance(args[0], FakeTensor):
            return self._read(func, name, args, kwargs)
        return func(*args, **kwargs)

    def _read(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "is_same_size":
            one, other = self._read(func, "shape", args[:1], {}), args[1]
            return one == (self._read(func, "shape", args[1:], {}) if isinstance(other, FakeTensor) else other.shape)
        sizes = self._sizes_of(args[0])
        self.count += 1
        if name == "shape":
            return torch.Size(sizes)
        if name == "size":
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            return torch.Size(sizes) if axis is None else sizes[axis]
        if name in ("numel", "nelement", "nbytes"):
            return prod(sizes) * (args[0].element_size() if name == "nbytes" else 1)
        if name == "__len__":
            return int(sizes[0])
        if name != "stride":
            _ask_for_parts(name, sizes, *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _sizes_of(self, tensor: Tensor) -> tuple[Any, ...]:
        if id(tensor) not in self._sizes:
            varying = self._varying[self.count]
            sizes = tuple(
                self._symbol(size, (None, self.count, axis)) if varying[axis] else size
                for axis, size in enumerate(tensor.shape)
            )
            self._sizes[id(tensor)] = tensor, sizes
        return self._sizes[id(tensor)][1]

    def _symbol(self, size: int, place: tuple[int | None, int, int]) -> Any:
        source = ConstantSource("_".join(map(str, place)))
        symbol = self._env.create_symbol(
            size, source, DimDynamic.DYNAMIC, None, positive=None, do_not_specialize_zero_one=True
        )
        self._places[symbol] = place
        return self._env.create_symintnode(symbol, hint=size, source=source)

    def _plain(self, values: Any, follows: bool) -> Any:
        """Return arguments with numbers for symbols; what does not follow the sizes is a question of its own."""

        def plain(value: Any) -> Any:
            if isinstance(value, slice):
                return slice(*(plain(part) for part in (value.start, value.stop, value.step)))
            if not isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
                return value
            if not follows:
                self._env.ask(value.node.expr, value.node.hint, is_seen=True)
            return value.node.hint

        return tree_map(plain, values)

    @property
    def needs_formulas(self) -> bool:
        """True when something is asked of a size that is none of the inputs'."""
        return any(self._places[symbol][0] is None for one, *_ in self._env.asked for symbol in one.free_symbols)

    def questions(self, formulas: list[tuple[Any, ...]]) -> list[Question]:
        """Return what was asked, in its order, given the shapes that were read as expressions; see `_formulas`."""
        known = {}
        for symbol, (number, read, axis) in self._places.items():
            if number is not None or formulas:
                known[symbol] = _axis_symbol(number, axis) if number is not None else formulas[read][axis]
        text = PythonPrinter().doprint
        asked = []
        for condition, number, is_seen in self._env.asked:
            here = condition.xreplace(known)
            if here.free_symbols:
                of = "" if number is None else text(number.xreplace(known))
                asked.append(Question(text(here), text(sympy.Not(here)), of, is_seen))
        return list(dict.fromkeys(asked))


def _ask_for_parts(name: str, sizes: tuple[Any, ...], count: Any = None, dim: int = 0, **kwargs: Any) -> None:
    """Ask how many parts there are; the names of the keyword arguments are those of `torch.split` and its relatives."""
    if name in ("__iter__", "unbind"):
        int(sizes[kwargs.get("dim", 0) if count is None else count])
        return
    count = kwargs.get("split_size", kwargs.get("chunks", count))
    if isinstance(count, int) and name != "tensor_split":
        size = sizes[dim]
        int(-(-size // (count if name == "split" else -(-size // count))))


def _varying(own: tuple[int, ...], others: list[tuple[int, ...]]) -> list[bool]:
    """Return which axes of a shape that was read differ for other inputs; all when nothing is known of others."""
    if not others:
        return [True] * len(own)
    return [any(len(other) != len(own) or other[axis] != size for other in others) for axis, size in enumerate(own)]


def _formulas(
    model: nn.Module, given: Inputs, circumstance: Circumstance, earlier: Callable[[Shapes], Inputs]
) -> list[tuple[Any, ...]]:
    """Return the shapes that the forward reads as expressions in the names of the axes of its inputs."""
    mode, reads, numbers = FakeTensorMode(shape_env=_Values(), allow_non_fake_inputs=True), SizeReads(), count()
    names: dict[Any, Any] = {}

    def symbolic(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        number = next(numbers)
        context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * value.ndim)
        fake = mode.from_tensor(value, symbolic_context=context, source=ConstantSource(f"input_{number}"))
        sizes: Any = fake.shape
        for axis, size in enumerate(sizes):
            names[size.node.expr] = _axis_symbol(number, axis)
        return fake

    inputs = tree_map(symbolic, given)
    with quiet(), torch.no_grad(), enable_python_dispatcher(), mode:
        call_as_before(model, circumstance, earlier)
        with circumstance.entered():
            inputs = circumstance.prepared(inputs)
            with reads:
                call(model, inputs)
    return [
        tuple(size.node.expr.xreplace(names) if isinstance(size, torch.SymInt) else sympy.Integer(size) for size in one)
        for one in reads.shapes
    ]


def _axis_symbol(number: int, axis: int) -> Any:
    return sympy.Symbol(axis_name(number, axis), integer=True, positive=True)


def _name(func: Any) -> str:
    name = str(getattr(func, "__name__", ""))
    return str(getattr(getattr(func, "__self__", None), "__name__", "")) if name == "__get__" else name
