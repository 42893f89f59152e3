"""What a forward asks about the sizes of its inputs, found with symbols in their place.

Used by `size_search`. The forward runs here on tensors without values, and the sizes that its Python code reads are
symbols of PyTorch's own, which note each comparison, each conversion to a plain number, and each argument of an
operation that is made of them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from threading import Lock
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils._sympy.printers import PythonPrinter

from .circumstances import PLAIN, Circumstance, Shapes, call_as_before
from .fake_runs import Shortcuts, fake_mode
from .float64 import Inputs, call, sharing_copy
from .process_state import quiet
from .size_formulas import Formulas, Values, axis_symbol, shapes_as_formulas
from .size_questions import Question
from .size_reads import FOLLOW, READS, function_name, is_of_torch_itself

_MOST_ASKED = 512  # questions of one forward, beyond which it is not followed
_FEW = 4  # chunks
_CHANGED = Lock()


def questions(
    model: nn.Module,
    given: Inputs,
    reads: list[list[tuple[int, ...]]],
    formulas: Formulas,
    circumstance: Circumstance = PLAIN,
    earlier: Callable[[Shapes], Inputs] = tuple,
) -> list[Question] | None:
    """Return what a forward asks about the sizes of these inputs; None when it cannot be followed.

    Args:
        model: in eval mode.
        given: the inputs; their values are not looked at.
        reads: the shapes that it reads, see `SizeReads`, first for these inputs and then for others: what is the same
            for all of them does not vary.
        formulas: of the way that it takes for these inputs, as far as they are known.
        circumstance: in which it is called.
        earlier: makes the inputs of its earlier calls.
    """
    asked = _Asked(reads)
    mode = fake_mode()
    original, model = model, sharing_copy(model)  # it may keep a symbol
    try:
        inputs = tree_map(lambda value: asked.named(mode, value) if isinstance(value, Tensor) else value, given)
        with quiet(), torch.no_grad(), mode:
            call_as_before(model, circumstance, earlier)
            with circumstance.entered():
                inputs = circumstance.prepared(inputs)
                with Shortcuts(), asked, _as_numbers():
                    call(model, inputs)
        if asked.count != len(reads[0]):
            return None  # it went another way with symbols
        if not asked.needs_formulas:
            return asked.questions([])
        return asked.questions(
            formulas.known_for(given, reads[0])
            or formulas.know(shapes_as_formulas(sharing_copy(original), given, circumstance, earlier))
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


class _Symbols(Values):
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
        if is_of_torch_itself():
            return func(*args, **(kwargs or {}))
        name = function_name(func)
        follows = any(word in name for word in (*FOLLOW, *READS))
        args, kwargs = self._plain(args, follows), self._plain(kwargs or {}, follows)
        if name in READS and isinstance(args[0], FakeTensor):
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
                known[symbol] = axis_symbol(number, axis) if number is not None else formulas[read][axis]
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
        parts = -(-size // (count if name == "split" else -(-size // count)))
        if name == "split" or count > _FEW:
            int(parts)
        else:  # there are no more than asked for: a question for each number can be answered otherwise
            any(bool(parts == fewer) for fewer in range(1, count))


def _varying(own: tuple[int, ...], others: list[tuple[int, ...]]) -> list[bool]:
    """Return which axes of a shape that was read differ for other inputs; all when nothing is known of others."""
    if not others:
        return [True] * len(own)
    return [any(len(other) != len(own) or other[axis] != size for other in others) for axis, size in enumerate(own)]
