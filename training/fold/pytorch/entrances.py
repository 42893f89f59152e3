"""The way into a network that was traced, and the others: which there are, for the report, and which one a call takes.

After the proof, before `guards`. A fold is exact for the forward that was traced. A flag of forward, another method or
training mode may read a changed weight without the norm that was taken into it, and would give other numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ...errors import FoldError
from .float64 import Inputs
from .guarded_classes import unguarded_class
from .size_guard import OtherSize

_CONSTANTS = (bool, int, float, str, type(None), torch.dtype)


@dataclass(frozen=True)
class TracedWay:
    """What a guarded network lets through.

    Attributes:
        arguments: of forward, by name: constants as they were given, a tensor as the number of its axes in a `_Rank`,
            or as its `_Shape`.
        changed: names of the tensors that a fold changed.
        removed: paths of the modules whose norm is gone.
        has_one_size: tensors have to have the shapes of the example.
        fixed: of tensors in the order of the arguments: the number of one, an axis, and the sizes that it may have.
    """

    arguments: Mapping[str, Any]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    has_one_size: bool = False
    fixed: tuple[tuple[int, int, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class _Rank:
    axes: int
    sizes: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class _Shape:
    sizes: tuple[int, ...]


def traced_way(
    model: nn.Module,
    inputs: Inputs,
    changed: tuple[str, ...],
    removed: tuple[str, ...],
    has_one_size: bool = False,
    fixed: Mapping[tuple[int, int], tuple[int, ...]] | None = None,
) -> TracedWay:
    """Return the way that `inputs` take through the forward of `model`; a model of one size stays one.

    Args:
        model: the original.
        inputs: of the example.
        changed: see `TracedWay`.
        removed: see `TracedWay`.
        has_one_size: see `TracedWay`.
        fixed: the sizes that axes may have, each by the number of the tensor among the inputs and that of the axis.
    """
    positional, keywords = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
    before = vars(model).get("_traced_way")
    has_one_size = has_one_size or (before is not None and before.has_one_size)
    numbers = {id(leaf): number for number, leaf in enumerate(_tensors(dict(keywords) or positional))}
    places = {numbers.get(id(leaf)): place for place, leaf in enumerate(_tensors(_bound(model, positional, keywords)))}
    new = tuple((places[number], axis, sizes) for (number, axis), sizes in (fixed or {}).items() if number in places)
    return TracedWay(_form(model, positional, keywords, has_one_size), changed, removed, has_one_size, new)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def other_entrances(model: nn.Module, way: TracedWay) -> tuple[str, ...]:
    """Return the other ways into a model that read a changed tensor, such as "embed()" and "forward(features)".

    Found by the names that the methods use, so that a method which comes to a weight in a roundabout way is missed.
    """
    ways = ways_of_modules(model, way)
    found = [
        f"{path}.{name}()" if path else f"{name}()"
        for path, module in model.named_modules()
        for name in sorted(_reading_methods(module, ways.get(path)))
    ]
    constants = [name for name, form in way.arguments.items() if isinstance(form, _CONSTANTS) and name]
    return tuple([f"forward({name}=...)" for name in constants] + found)


def ways_of_modules(model: nn.Module, way: TracedWay) -> dict[str, TracedWay]:
    """Return what a fold changed and removed inside each module that has methods which read it, by path."""
    ways = {}
    for path, module in model.named_modules():
        start = f"{path}." if path else ""
        changed, removed = (
            tuple(name.removeprefix(start) for name in names if name.startswith(start))
            for names in (way.changed, way.removed)
        )
        inner = TracedWay({}, changed, removed)
        if _reading_methods(module, inner):
            ways[path] = inner
    return ways


def _reading_methods(module: nn.Module, way: TracedWay | None) -> set[str]:
    """Return the methods of the user's class that use what a fold changed or removed, or such a method."""
    heads = set() if way is None else {name.split(".")[0] for name in (*way.changed, *way.removed)}
    methods = methods_of(unguarded_class(type(module)))
    reading = {name for name, method in methods.items() if attributes_used(method.__code__) & heads}
    while more := {n for n, m in methods.items() if n not in reading and attributes_used(m.__code__) & reading}:
        reading |= more
    return reading


def methods_of(cls: type[nn.Module]) -> dict[str, FunctionType]:
    """Return the methods of the user's own classes, without forward and what PyTorch itself calls."""
    methods: dict[str, FunctionType] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("torch.") or base is object:
            continue
        own = {name: value for name, value in vars(base).items() if isinstance(value, FunctionType)}
        methods |= {n: m for n, m in own.items() if not n.startswith("__") and not hasattr(nn.Module, n)}
    return methods


def require_form(model: nn.Module, way: TracedWay, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise FoldError for arguments of forward with other constants, or another form of tensors, than were traced."""
    try:
        given = _form(model, args, kwargs, way.has_one_size)
    except TypeError:
        return  # the call itself says it best
    for name in [*way.arguments, *given]:
        one, other = way.arguments.get(name, _ABSENT), given.get(name, _ABSENT)
        if one != other and not _is_incomparable(one, other):
            kind = OtherSize if isinstance(one, _Rank | _Shape) else FoldError
            raise kind(
                f"forward of a folded network: {_text(name, other)}, but it was folded with {_text(name, one)}, and "
                'only that is promised. Fold with inputs as you need them, or with entrances="any" if this is meant'
            )
    _require_fixed(way, [one for one in tree_leaves(given) if isinstance(one, _Rank)])


def _require_fixed(way: TracedWay, given: list[_Rank]) -> None:
    for number, axis, sizes in way.fixed:
        if number < len(given) and given[number].sizes[axis] not in sizes:
            raise OtherSize(
                f"forward of a folded network: tensor {number} has shape {tuple(given[number].sizes)}, but its forward "
                f"asks about axis {axis}, which had the size {sizes[0]} wherever the fold was proved. Fold with an "
                'example of that size, with `dynamic` for that axis, or with entrances="any" if this is meant'
            )


_ABSENT = "nothing"


def _is_incomparable(one: Any, other: Any) -> bool:
    known = (*_CONSTANTS, _Rank, _Shape, list, tuple, dict)
    return not isinstance(one, known) and not isinstance(other, known)


def _text(name: str, form: Any) -> str:
    if isinstance(form, _Shape):
        return f"{name}=a tensor of shape {form.sizes}"
    return f"{name}=a tensor of {form.axes} axes" if isinstance(form, _Rank) else f"{name}={form!r}"


def _form(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], has_one_size: bool) -> dict[str, Any]:
    """Return the arguments of the model's forward by name, defaults included; see `TracedWay`."""
    named = _bound(model, args, kwargs)
    return {name: tree_map(lambda one: _described(one, has_one_size), value) for name, value in named.items()}


def _bound(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    expected = signature(unguarded_class(type(model)).forward)
    bound = expected.bind(model, *args, **kwargs)
    bound.apply_defaults()
    named = dict(list(bound.arguments.items())[1:])
    for name, parameter in expected.parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            named.update(named.pop(name, {}))
    return named


def _described(value: Any, has_one_size: bool) -> Any:
    if isinstance(value, Tensor):
        return _Shape(tuple(value.shape)) if has_one_size else _Rank(value.ndim, tuple(value.shape))
    return value if isinstance(value, _CONSTANTS) else type(value).__name__


def attributes_used(code: CodeType) -> set[str]:
    """Return the attributes and the strings that a function uses, those in its inner functions included."""
    names = set(code.co_names) | {value for value in code.co_consts if isinstance(value, str)}
    return names.union(*(attributes_used(value) for value in code.co_consts if isinstance(value, CodeType)))
