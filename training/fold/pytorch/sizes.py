"""Other sizes of the inputs: which a model accepts, and at which it computes in another way.

Between reading a model and placing its norms. A graph is read at one size, and a forward may choose by size, such as
whether to pad; what is legal there must be legal at every size at which the model does something else. Only operations
are recorded here, on tensors without values, so that large sizes cost nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .float64 import Inputs, call
from .process_state import quiet

Change = Callable[[int], int]
Trace = tuple[tuple[str, str], ...]


def _other_parity(n: int) -> int:
    """Return a size near half of it, or one less than a small one, even for odd and odd for even: any divisor ends."""
    return n - 1 if n <= 32 else n // 2 + (n // 2 % 2 == n % 2)


# How the first free axis changes, and how the others do: to another parity, at which a proof costs less; down; far up.
_CHANGES: tuple[tuple[Change, Change], ...] = (
    (_other_parity, _other_parity),
    (lambda n: 16 * n + 1, lambda n: n // 2),
    (lambda n: n // 2, lambda n: 16 * n + 3),
)
_INSTEAD: tuple[tuple[Change, Change], ...] = (  # for a model that does not accept one of those
    (lambda n: n + 1, lambda n: n + 2),
    (lambda n: 2 * n, lambda n: 2 * n),
    (lambda n: 16 * n, lambda n: 16 * n),
)
# For a model that reads sizes: residues by 64, with which a size halved again and again is odd and even at every depth.
_RESIDUES = ((0, 0), (1, 1), (63, 63), (21, 42), (42, 11), (11, 21))
_READS: tuple[str, ...] = ("shape", "size", "numel", "nelement", "nbytes", "__len__")
_READS += ("__iter__", "unbind", "split", "tensor_split", "chunk")  # how many parts there are is a size, too
_LAYERS = ("convolution", "mm.", "batch_norm", "linear")
# Operations whose arguments follow the sizes by themselves, so that other arguments are no other computation.
_FOLLOW: tuple[str, ...] = ("view", "reshape", "expand", "slice", "select", "arange", "upsample", "adaptive", "repeat")
_FOLLOW += (
    "split",
    "zeros",
    "ones",
    "empty",
    "full",
    "narrow",
    "flatten",
    "sym_",
    "as_strided",
    "rand",
    "index",
    "chunk",
)


@dataclass(frozen=True)
class Variant:
    """Sizes of the inputs that a model accepts, and the operations that it runs for them.

    Attributes:
        shapes: of each tensor among the inputs, in their order.
        trace: the operations, with those arguments that are no tensors.
        reads_sizes: the model's forward looks at the size of a tensor, and may choose by it.
    """

    shapes: tuple[tuple[int, ...], ...]
    trace: Trace
    reads_sizes: bool = True

    def inputs(self, example: Inputs, *, has_values: bool = True) -> Inputs:
        """Return the example in these sizes, its values repeated or left out; without values at no cost."""
        shapes = iter(self.shapes)

        def resize(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            shape = next(shapes)
            if not has_values:
                return torch.empty(shape, dtype=value.dtype, device=value.device)
            for axis, size in enumerate(shape):
                places = torch.arange(size, device=value.device) % value.shape[axis]
                value = value if size == value.shape[axis] else value.index_select(axis, places)
            return value

        resized: Inputs = tree_map(resize, dict(example) if isinstance(example, Mapping) else example)
        return resized


def variants(model: nn.Module, example: Inputs) -> list[Variant]:
    """Return the example's own sizes and all others that are tried and accepted by the model.

    Args:
        model: in eval mode; a copy, whose state may change.
        example: positional arguments, or a mapping of keyword arguments.
    """
    own = _shapes(example)
    first = _variant(model, example, own)
    if first is None:
        return []  # it runs on no tensor without values
    changes = (*_CHANGES, *map(_to_residues, _RESIDUES)) if first.reads_sizes else _CHANGES[:1]
    for axes in _free_axes(own):
        accepted = _accepted(model, example, axes, changes)
        if len(accepted) < min(len(changes), len(_CHANGES)):
            accepted += _accepted(model, example, axes, _INSTEAD)
        if accepted:
            return [first, *accepted]
    return [first]


def _to_residues(residues: tuple[int, int]) -> tuple[Change, Change]:
    """Return changes to sizes that leave these residues by 64."""
    one, other = (lambda n, residue=residue: -(-n // 64) * 64 + residue for residue in residues)
    return one, other


def other_computations(accepted: list[Variant], example: Inputs) -> list[Inputs]:
    """Return inputs without values of the sizes at which the model runs other operations than for its example.

    Sizes are left out at which whatever happens between two layers is what happens there at a size before.
    """
    known: set[tuple[tuple[int, int], Trace]] = set()
    others = []
    for variant in accepted:
        stretches = _stretches(variant.trace)
        if known and not stretches <= known:
            others.append(variant.inputs(example, has_values=False))
        known |= stretches
    return others


def _stretches(trace: Trace) -> set[tuple[tuple[int, int], Trace]]:
    """Return the operations from each layer to the next, with the number of the layer and of all layers."""
    starts = [0, *(place for place, (name, _) in enumerate(trace) if any(word in name for word in _LAYERS))]
    ends = [*starts[1:], len(trace)]
    pairs = enumerate(zip(starts, ends, strict=True))
    return {((number, len(starts)), trace[start:end]) for number, (start, end) in pairs}


def second_sizes(accepted: list[Variant], example: Inputs) -> list[Inputs]:
    """Return inputs of other sizes to prove a fold on, best first: another batch, with other sizes where accepted."""
    own = _shapes(example)
    batches = {shape[0] for shape in own if shape}
    if len(batches) != 1 or not accepted:
        return []
    batch = batches.pop()
    new = batch - 1 if batch > 1 else 2
    small = [variant.shapes for variant in accepted[1:] if _count(variant.shapes) <= 2 * _count(own)]
    shapes = [tuple((new, *shape[1:]) if shape else shape for shape in one) for one in [*small, own]]
    return [Variant(one, ()).inputs(example) for one in shapes]


def _count(shapes: tuple[tuple[int, ...], ...]) -> int:
    return sum(prod(shape) for shape in shapes)


def _accepted(
    model: nn.Module, example: Inputs, axes: tuple[int, list[int]], changes: tuple[tuple[Change, Change], ...]
) -> list[Variant]:
    shapes = [_shapes_after(_shapes(example), axes, change) for change in changes]
    tried = [_variant(model, example, one) for one in dict.fromkeys(shapes)]
    return [variant for variant in tried if variant is not None]


def _shapes(inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    leaves = tree_leaves(dict(inputs) if isinstance(inputs, Mapping) else inputs)
    return tuple(tuple(value.shape) for value in leaves if isinstance(value, Tensor))


def _free_axes(shapes: tuple[tuple[int, ...], ...]) -> list[tuple[int, list[int]]]:
    """Return what may change: the number of an input and its axes behind the channels, or else its second axis."""
    largest = max(range(len(shapes)), key=lambda number: len(shapes[number]), default=None)
    if largest is None or len(shapes[largest]) < 2:
        return []
    behind = list(range(2, len(shapes[largest])))
    return [(largest, axes) for axes in (behind, [1]) if axes]


def _shapes_after(
    shapes: tuple[tuple[int, ...], ...], free: tuple[int, list[int]], change: tuple[Change, Change]
) -> tuple[tuple[int, ...], ...] | None:
    """Return the shapes with the free axes changed, and with them the axes of other inputs that have their size."""
    number, axes = free
    new = {axis: change[min(place, 1)](shapes[number][axis]) for place, axis in enumerate(axes)}
    if min(new.values()) < 1:
        return None
    sizes = {shapes[number][axis]: size for axis, size in new.items()}
    others = [[size if axis == 0 else sizes.get(size, size) for axis, size in enumerate(shape)] for shape in shapes]
    others[number] = [new.get(axis, size) for axis, size in enumerate(shapes[number])]
    return tuple(tuple(shape) for shape in others)


def _variant(model: nn.Module, example: Inputs, shapes: tuple[tuple[int, ...], ...] | None) -> Variant | None:
    """Return the sizes with what the model runs for them, None when it does not accept them."""
    if shapes is None:
        return None
    inputs = Variant(shapes, ()).inputs(example, has_values=False)
    mode, recorder, reads = FakeTensorMode(allow_non_fake_inputs=True), _Recorder(), _SizeReads()
    try:
        fake = tree_map(lambda value: mode.from_tensor(value) if isinstance(value, Tensor) else value, inputs)
        with quiet(), torch.no_grad(), mode, recorder, reads:
            call(model, fake)
    except Exception:  # whatever a model raises for sizes that are not its own
        return None
    return Variant(shapes, tuple(recorder.trace), reads.any)


class _SizeReads(TorchFunctionMode):
    """Notes whether Python reads the size of a tensor; what reads none cannot choose by it."""

    any = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        owner = getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else name
        self.any = self.any or owner in _READS
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operation with its arguments that are numbers, unless they follow the sizes; of a padding, if any."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace: list[tuple[str, str]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        follows = any(word in name for word in _FOLLOW)
        numbers = [] if follows else [a for a in tree_leaves((args, kwargs)) if not isinstance(a, Tensor)]
        numbers = [any(numbers)] if "constant_pad" in name else numbers
        self.trace.append((name, str(numbers)))
        return func(*args, **(kwargs or {}))
