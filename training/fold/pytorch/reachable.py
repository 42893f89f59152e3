"""The user's functions that a forward may run: of the classes of its modules, and what these refer to, by name.

Used by `loads`, which looks in their code for what lies outside the model. Nothing is run here, so that what is found
may be more than what is run: a method counts as soon as anything uses its name.
"""

import functools
import inspect
import random
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor, nn

from .bytecode import is_global, steps_of
from .guarded_classes import unguarded_class

_OF_OTHERS = frozenset({"torch", "numpy", "foldserve", *sys.stdlib_module_names}) - {"__main__"}
_MOST = 8_192  # values that are looked into
_NEVER_RUN = frozenset({
    "__init__", "__new__", "__del__", "__repr__", "__str__", "__reduce__", "__reduce_ex__", "__getstate__",
    "__setstate__", "__deepcopy__", "__copy__", "__dir__", "__init_subclass__", "__class_getitem__", "__set_name__",
})  # fmt: skip
_PLAIN = (bool, int, float, complex, str, bytes, type(None), Tensor, CodeType)
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)


@dataclass
class Reached:
    """What a forward may run, and what it may read. What is outside is what copies of the model share.

    Attributes:
        functions: of the user's, by `id`.
        names: what their code calls things.
        called: under which names there are such functions, or modules with a forward of the user's.
        classes: of the user's, each with its instances among modules and what they hold, None for one of no known.
        shared: attributes of modules that copies of the model share: classes and modules of Python.
        cached: functions that keep what they returned: an owner, a name, and what computes it anew.
        objects: outside the model, of the user's classes.
        dicts: outside the model.
        mappings: anywhere, also those of modules.
        generators: of random numbers, other than those of Python and NumPy itself.
        imported: modules of the user's that functions import when they run.
        holds_clock: a module holds a clock.
    """

    functions: dict[int, FunctionType] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    classes: dict[type, list[Any]] = field(default_factory=dict)
    shared: dict[str, list[Any]] = field(default_factory=dict)
    cached: list[tuple[Any, str, Any]] = field(default_factory=list)
    objects: list[Any] = field(default_factory=list)
    dicts: list[dict[Any, Any]] = field(default_factory=list)
    mappings: list[Mapping[Any, Any]] = field(default_factory=list)
    generators: list[Any] = field(default_factory=list)
    imported: list[ModuleType] = field(default_factory=list)
    holds_clock: bool = False

    @functools.cached_property
    def has_getattr(self) -> bool:
        """True when a class of the user's makes up attributes, maybe of the items of a dict."""
        return any("__getattr__" in vars(base) for cls in self.classes for base in cls.__mro__ if _is_users(base))

    @functools.cached_property
    def attributes(self) -> frozenset[str]:
        """The names of what the user's classes have."""
        named = (vars(base) for cls in self.classes for base in cls.__mro__ if _is_users(base))
        return frozenset(name for scope in named for name in scope if not name.startswith("__"))


def reachable(model: nn.Module) -> Reached:
    """Return what the forward of a model may run and read."""
    return _Search(model).reached


def is_of_others(name: str) -> bool:
    """True for the name of a module of PyTorch, NumPy or the standard library."""
    return name.partition(".")[0] in _OF_OTHERS


def home(value: Any) -> str:
    """Return the name of the module of Python that a value, or its class, comes from."""
    if isinstance(value, ModuleType):
        return value.__name__
    return str((value if isinstance(value, type) else type(value)).__module__)


def codes(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function and of the functions in it."""
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from codes(value)


def cells_of(function: FunctionType) -> list[tuple[Any, Any]]:
    """Return the cells of a closure, each with its content, in the order of their names; an empty one as None."""
    filled: list[tuple[Any, Any]] = []
    for cell in function.__closure__ or ():
        try:
            filled.append((cell, cell.cell_contents))
        except ValueError:  # empty
            filled.append((None, None))
    return filled


class _Search:
    """Goes from each value to what it is made of; of classes, objects and modules only to what has a name in use."""

    def __init__(self, model: nn.Module):
        self.reached = Reached()
        self._seen: dict[int, tuple[Any, bool]] = {}  # with the values, so that no other gets their id
        self._scopes: list[tuple[Any, Mapping[str, Any], bool]] = []
        self._pending: list[tuple[Any, bool]] = []
        for module in model.modules():
            self._add([module], is_outside=False)
        known = (-1, -1)
        while (len(self.reached.names), len(self._scopes)) != known or self._pending:
            known = len(self.reached.names), len(self._scopes)
            while self._pending and len(self._seen) < _MOST:
                self._visit(*self._pending.pop())
            self._pending.clear()
            for owner, scope, is_outside in list(self._scopes):
                self._name(owner, scope, self.reached.names & scope.keys(), is_outside)

    def _add(self, values: Iterable[Any], *, is_outside: bool) -> None:
        for value in values:
            is_known = id(value) in self._seen and (self._seen[id(value)][1] or not is_outside)
            if not isinstance(value, _PLAIN) and not is_known:
                self._seen[id(value)] = value, is_outside
                self._pending.append((value, is_outside))

    def _name(self, owner: Any, scope: Mapping[str, Any], names: Iterable[str], is_outside: bool) -> None:
        """Take in what an owner holds under names that are in use."""
        for name in names:
            value = scope[name]
            if _is_caching(value) and not any(one[:2] == (owner, name) for one in self.reached.cached):
                self.reached.cached.append((owner, name, value.__wrapped__))
            if callable(value) or isinstance(value, property | classmethod | staticmethod):
                self.reached.called.add(name)
            self._add([value], is_outside=is_outside)

    def _visit(self, value: Any, is_outside: bool) -> None:
        if isinstance(value, FunctionType):
            self._visit_function(value)
        elif isinstance(value, nn.Module):
            self._visit_module(value)
        elif isinstance(value, type):
            self._visit_class(value)
        elif isinstance(value, _GENERATORS):
            self.reached.generators += [] if value in self.reached.generators else [value]
        elif isinstance(value, BuiltinFunctionType):
            is_clock = not is_outside and value.__module__ == time.__name__
            self.reached.holds_clock = self.reached.holds_clock or is_clock
        elif isinstance(value, Mapping):
            self.reached.mappings.append(value)
            self.reached.dicts += [value] if is_outside and isinstance(value, dict) else []
            self._add(list(value.values()), is_outside=is_outside)
        elif isinstance(value, list | tuple | set | frozenset):
            self._add(value, is_outside=is_outside)
        elif isinstance(value, ModuleType):
            self._scopes += [] if is_of_others(value.__name__) else [(value, vars(value), True)]
        elif (parts := _parts(value)) is not None:
            self._add(parts, is_outside=is_outside)
        elif not is_of_others(type(value).__module__) or isinstance(value, SimpleNamespace | Namespace):
            self.reached.objects += [value] if is_outside else []
            self._take_class(type(value), value)
            self._add(list(getattr(value, "__dict__", {}).values()), is_outside=is_outside)

    def _visit_module(self, module: nn.Module) -> None:
        cls = unguarded_class(type(module))
        own = {name: value for name, value in vars(module).items() if not isinstance(value, _PLAIN)}
        if not is_of_others(cls.__module__):
            self._take_class(cls, module)
            self.reached.called |= {name for name, value in module._modules.items() if value is not None}
            self.reached.mappings += [own["_modules"]]
            self._scopes.append((module, own, False))
            for name, value in own.items():
                if isinstance(value, type | ModuleType) and not is_of_others(home(value)):
                    self.reached.shared.setdefault(name, []).append(value)
        elif isinstance(module, nn.ModuleDict):
            self.reached.mappings.append(module._modules)
        hooks = (module._forward_hooks, module._forward_pre_hooks)
        self._add([hook for some in hooks for hook in some.values()], is_outside=False)
        self._add([own[name] for name in ("forward", "__call__", "_call_impl") if name in own], is_outside=False)

    def _take_class(self, cls: type, instance: Any = None) -> None:
        """Take in a class with what Python itself may run of it; the rest by name."""
        is_new = cls not in self.reached.classes
        self.reached.classes.setdefault(cls, []).append(instance)
        for base in cls.__mro__ if is_new else ():
            if is_of_others(base.__module__) or base is object:
                continue
            of_python = {name for name in vars(base) if name.startswith("__")} - _NEVER_RUN
            of_python |= {"forward"} & vars(base).keys() if issubclass(base, nn.Module) else set()
            self._name(base, vars(base), of_python, is_outside=True)
            self._scopes.append((base, vars(base), True))

    def _visit_class(self, cls: type) -> None:
        if not is_of_others(cls.__module__):
            self._take_class(cls)
            self._add([vars(cls).get("__init__")], is_outside=True)

    def _visit_function(self, function: FunctionType) -> None:
        inner = inspect.unwrap(function)
        if inner is not function:
            self._add([inner, *getattr(function, "registry", {}).values()], is_outside=True)
        if is_of_others(str(function.__module__)):
            return
        self.reached.functions[id(function)] = function
        self.reached.called.add(function.__name__)
        own = list(codes(function.__code__))
        names = set[str]().union(*(code.co_names for code in own))
        texts = {value for code in own for value in code.co_consts if isinstance(value, str)}
        imported = [sys.modules[name] for name in names & sys.modules.keys() if not is_of_others(name)]
        self.reached.imported += [one for one in imported if one not in self.reached.imported]
        self.reached.names |= names | texts  # a text may be the name that getattr gets
        self._add(imported, is_outside=True)
        loaded = {step.argval for code in own for step in steps_of(code) if is_global(step)}
        self._name(function.__globals__, function.__globals__, loaded & function.__globals__.keys(), is_outside=True)
        self._add([*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()], is_outside=True)
        self._add([content for _, content in cells_of(function)], is_outside=True)


def _parts(value: Any) -> list[Any] | None:
    """Return what something that is called, or stands for a function, is made of; None for any other value."""
    if _is_caching(value):
        return [value.__wrapped__]
    if isinstance(value, functools.partial | functools.partialmethod):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, classmethod | staticmethod):
        return [value.__func__]
    if isinstance(value, functools.singledispatchmethod):
        return [value.func, value.dispatcher]
    return [value.func] if isinstance(value, functools.cached_property) else None


def _is_users(cls: type) -> bool:
    return cls is not object and not is_of_others(cls.__module__)


def _is_caching(value: Any) -> bool:
    return hasattr(type(value), "cache_clear") and callable(getattr(value, "__wrapped__", None))
