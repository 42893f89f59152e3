"""What a network returned, taken apart: its tensors, its numbers, and all else in words that can be compared.

Used by `model_proof`. Two networks are one function only if they return the same things in the same containers, under
the same keys and in the same order; what no word can be found for is said to be opaque.
"""

import enum
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_WORDS = (str, bytes, int, enum.Enum, torch.dtype, torch.device, torch.layout, slice, range, np.dtype)
_OPAQUE = (nn.Module, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, Iterator)


@dataclass
class Returned:
    """The parts of what one call returned.

    Attributes:
        tensors: depth first, in the order of `float64.tensors_in`.
        numbers: floats, complex numbers and arrays of numpy, as tensors of float64 and the like.
        form: path -> what stands there: a container, a tensor, a word. In the order in which they were met.
        dtypes: path -> dtype and layout of each tensor.
        opaque: paths of what cannot be compared.
    """

    tensors: list[Tensor] = field(default_factory=list)
    numbers: list[Tensor] = field(default_factory=list)
    form: dict[str, str] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    opaque: list[str] = field(default_factory=list)


def taken_apart(value: Any, *, is_graph: bool = False) -> Returned:
    """Return the parts of what a network returned.

    Args:
        value: whatever it is.
        is_graph: it is to be compared with what a graph returns, in which a data class has become a dict of its fields,
            and a Size a tuple.
    """
    parts = Returned()
    _Walk(parts, is_graph).visit("", value)
    return parts


class _Walk:
    """Visits a value and what it holds, each container once on the way down."""

    def __init__(self, parts: Returned, is_graph: bool):
        self._parts, self._is_graph = parts, is_graph
        self._above: set[int] = set()

    def visit(self, path: str, value: Any) -> None:
        parts = self._parts
        if isinstance(value, Tensor):
            parts.form[path] = "a tensor"
            parts.dtypes[path] = _dtype(value)
            parts.tensors.append(value)
        elif isinstance(value, float | complex | np.floating | np.complexfloating):
            parts.form[path] = f"a {type(value).__name__}"
            dtype = torch.complex128 if isinstance(value, complex | np.complexfloating) else torch.float64
            parts.numbers.append(torch.tensor(value, dtype=dtype))
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fciub":
            parts.form[path] = f"an array of {value.dtype} {value.shape}"
            parts.numbers.append(torch.from_numpy(np.array(value)))
        elif value is None or isinstance(value, (*_WORDS, np.integer, np.bool_)):
            parts.form[path] = f"{_name(value)} {value!r}"
        elif isinstance(value, set | frozenset):
            parts.form[path] = f"{_name(value)} {sorted(map(repr, value))}"
        else:
            self._visit_inside(path, value)

    def _visit_inside(self, path: str, value: Any) -> None:
        inside = None if isinstance(value, (*_OPAQUE, type)) or id(value) in self._above else self._held(value)
        if inside is None:
            self._parts.form[path] = _name(value)
            self._parts.opaque.append(path)
            return
        name, held = inside
        self._parts.form[path] = f"{name} of {', '.join(held) or 'nothing'}"
        self._above.add(id(value))
        for key, one in held.items():
            self.visit(path + key, one)
        self._above.discard(id(value))

    def _held(self, value: Any) -> tuple[str, dict[str, Any]] | None:
        """Return the name of a container and what it holds, by the end of a path; None when it shows nothing."""
        if isinstance(value, Mapping):
            return _name(value), {f"[{key!r}]": value[key] for key in value}
        if isinstance(value, list | tuple):
            name = "tuple" if self._is_graph and isinstance(value, torch.Size) else _name(value)
            return name, {f"[{place}]": one for place, one in enumerate(value)}
        if is_dataclass(value):
            held = {one.name: getattr(value, one.name) for one in fields(value) if hasattr(value, one.name)}
            if self._is_graph:
                return "dict", {f"[{key!r}]": one for key, one in held.items()}
            return _name(value), {f".{key}": one for key, one in held.items()}
        held = {name: getattr(value, name) for name in _slots(value) if hasattr(value, name)}
        held |= vars(value) if hasattr(value, "__dict__") else {}
        return (_name(value), {f".{key}": one for key, one in held.items()}) if held else None


def difference(expected: Returned, got: Returned, *, has_dtypes: bool) -> str:
    """Return what differs between what two networks return besides numbers, as a sentence; "" when nothing does.

    Args:
        expected: of the original.
        got: of the other one.
        has_dtypes: compare the dtypes of tensors too; in float64 they say nothing.
    """
    pairs = [(expected.form, got.form), *([(expected.dtypes, got.dtypes)] if has_dtypes else [])]
    for one, other in pairs:
        for path in [*one, *other]:
            if one.get(path) != other.get(path):
                where = f"{path} of its output" if path else "its output"
                returned, wanted = (form.get(path, "nothing") for form in (other, one))
                return f"the folded model returns {returned} as {where}, the original {wanted}"
        if list(one) != list(other):
            return f"the folded model returns {', '.join(other)} in this order, the original {', '.join(one)}"
    return ""


def _dtype(tensor: Tensor) -> str:
    layout = "" if tensor.layout is torch.strided else f", {str(tensor.layout).removeprefix('torch.')}"
    return f"a tensor of {str(tensor.dtype).removeprefix('torch.')}{layout}"


def _name(value: Any) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ in ("builtins", "torch") else f"{cls.__module__}.{cls.__qualname__}"


def _slots(value: Any) -> list[str]:
    return [name for cls in type(value).__mro__ for name in _as_tuple(getattr(cls, "__slots__", ()))]


def _as_tuple(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)
