"""The way into a network that was traced, and the others: which there are, for the report, and which one a call takes.

After the proof, before `guards`. A fold is exact for the forward that was traced. A flag of forward, another method or
training mode may read a changed weight without the norm that was taken into it, and would give other numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partialmethod
from inspect import Parameter, signature
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils._pytree import tree_leaves, tree_map

from ...errors import FoldError
from .float64 import Inputs
from .guarded_classes import unguarded_class
from .size_guard import OtherSize, require_no_gradients

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
        trains_with_gradients: with gradients on, the original trains.
    """

    arguments: Mapping[str, Any]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    has_one_size: bool = False
    fixed: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    trains_with_gradients: bool = False


@dataclass(frozen=True)
class _Rank:
    axes: int
    sizes: tuple[int, ...] = field(default=(), compare=False)
    constant: Any = field(default=None, compare=False)  # torch.jit.trace makes tensors of constants, defaults included


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
    trains_with_gradients: bool = False,
) -> TracedWay:
    """Return the way that `inputs` take through the forward of `model`; a model of one size stays one.

    Args:
        model: the original.
        inputs: of the example.
        changed: see `TracedWay`.
        removed: see `TracedWay`.
        has_one_size: see `TracedWay`.
        fixed: the sizes that axes may have, each by the number of the tensor among the inputs and that of the axis.
        trains_with_gradients: see `TracedWay`.
    """
    positional, keywords = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
    before = vars(model).get("_traced_way")
    has_one_size = has_one_size or (before is not None and before.has_one_size)
    numbers = {id(leaf): number for number, leaf in enumerate(_tensors(dict(keywords) or positional))}
    places = {numbers.get(id(leaf)): place for place, leaf in enumerate(_tensors(_bound(model, positional, keywords)))}
    new = tuple((places[number], axis, sizes) for (number, axis), sizes in (fixed or {}).items() if number in places)
    trains = trains_with_gradients or (before is not None and before.trains_with_gradients)
    return TracedWay(_form(model, positional, keywords, has_one_size), changed, removed, has_one_size, new, trains)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def other_entrances(model: nn.Module, way: TracedWay) -> tuple[str, ...]:
    """Return the other ways into a model that read a changed tensor, such as "embed()" and "forward(features)".

    Found by the names that the methods use, so that a method which comes to a weight in a roundabout way is missed.
    """
    ways = ways_of_modules(model, way)
    found = [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name in sorted(map(_as_read, _reading_methods(module, ways.get(path)).items()))
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


def _reading_methods(module: nn.Module, way: TracedWay | None) -> dict[str, Any]:
    """Return what the user's class defines that uses what a fold changed or removed, or such a method."""
    heads = set() if way is None else {name.split(".")[0] for name in (*way.changed, *way.removed)}
    defined = defined_in(unguarded_class(type(module)))
    used = {name: attributes_used(function.__code__) for name, one in defined.items() if (function := _function(one))}
    reading = {name for name, names in used.items() if names & heads}
    while more := {name for name, names in used.items() if name not in reading and names & reading}:
        reading |= more
    return {name: defined[name] for name in reading}


def _as_read(method: tuple[str, Any]) -> str:
    name, defined = method
    return name if isinstance(defined, property | cached_property) else f"{name}()"


def _function(defined: Any) -> FunctionType | None:
    """Return the function behind what a class defines: a method, a property, and their like."""
    for name in ("fget", "func", "__func__"):
        defined = getattr(defined, name, defined)
    return defined if isinstance(defined, FunctionType) else None


def methods_of(cls: type[nn.Module]) -> dict[str, FunctionType]:
    """Return the methods of the user's own classes, without forward and what PyTorch itself calls."""
    return {name: one for name, one in defined_in(cls).items() if isinstance(one, FunctionType)}


def defined_in(cls: type[nn.Module]) -> dict[str, Any]:
    """Return what the user's own classes define that runs code of theirs, as it stands there; see `methods_of`."""
    defined: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("torch.") or base is object:
            continue
        own = {name: value for name, value in vars(base).items() if isinstance(value, _DEFINED)}
        defined |= {n: one for n, one in own.items() if not n.startswith("__") and not hasattr(nn.Module, n)}
    return defined


_DEFINED = (FunctionType, property, cached_property, partialmethod, staticmethod, classmethod)


def require_form(model: nn.Module, way: TracedWay, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise FoldError for arguments of forward with other constants, or another form of tensors, than were traced.

    So does a call with gradients on where that is training mode by another name.
    """
    if way.trains_with_gradients:
        require_no_gradients()
    try:
        given = _form(model, args, kwargs, way.has_one_size)
    except TypeError:
        return  # the call itself says it best
    for name in [*way.arguments, *given]:
        one, other = way.arguments.get(name, _ABSENT), given.get(name, _ABSENT)
        other = other.constant if isinstance(one, _CONSTANTS) and isinstance(other, _Rank) and not other.axes else other
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


class _Unknown:
    """A value that torch.fx traces: nothing is known of it."""


def _is_incomparable(one: Any, other: Any) -> bool:
    if isinstance(other, _Unknown):
        return True
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
    own = vars(model).get("forward")  # one that was set on the model itself
    expected = signature(own or unguarded_class(type(model)).forward)
    bound = expected.bind(*args, **kwargs) if own else expected.bind(model, *args, **kwargs)
    bound.apply_defaults()
    named = dict(list(bound.arguments.items())[0 if own else 1 :])
    for name, parameter in expected.parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            named.update(named.pop(name, {}))
    return named


def _described(value: Any, has_one_size: bool) -> Any:
    if isinstance(value, Proxy):
        return _Unknown()
    if isinstance(value, Tensor) and value.ndim == 0 and torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return _Rank(0, constant=value.item())
    if isinstance(value, Tensor):
        return _Shape(tuple(value.shape)) if has_one_size else _Rank(value.ndim, tuple(value.shape))
    return value if isinstance(value, _CONSTANTS) else type(value).__name__


def attributes_used(code: CodeType) -> set[str]:
    """Return the attributes and the strings that a function uses, those in its inner functions included."""
    names = set(code.co_names) | {value for value in code.co_consts if isinstance(value, str)}
    return names.union(*(attributes_used(value) for value in code.co_consts if isinstance(value, CodeType)))
