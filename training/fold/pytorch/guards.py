"""Guards of a folded network: a subclass of its own class that raises where it would give other numbers.

After the proof. The guards are of the class and hold no state besides a `TracedWay` on the instance, a plain value, so
that copies, pickles and wrappers of the network have them too.
"""

import abc
import copyreg
import functools
import inspect
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ...errors import FoldError
from .entrances import TracedWay, attributes_used, defined_in, require_form, ways_of_modules
from .float64 import named_tensors
from .guarded_classes import BASES, unguarded_class

_M = TypeVar("_M", bound=nn.Module)


def guarded(model: _M, way: TracedWay) -> _M:
    """Return the model with guards: itself, with a subclass of its class, or a graph around the same tensors."""
    if isinstance(model, GraphModule):
        graph = _GuardedGraph(model, model.graph)
        graph._tracer_cls = None
        return graph.eval()  # type: ignore[return-value]
    for path, inner in ways_of_modules(model, way).items():
        if path:
            _guard(model.get_submodule(path), inner, _GuardedInner)
    _guard(model, way, _GuardedModule)
    return model


def _guard(module: nn.Module, way: TracedWay, kind: type) -> None:
    object.__setattr__(module, "__class__", _class_with_guards(unguarded_class(type(module)), kind))
    module.__dict__["_traced_way"] = way


class _Guard:
    """What all guarded networks have in common."""

    def train(self, mode: bool = True) -> Any:
        """Put the network in eval mode; raise FoldError for training mode."""
        if mode and not _is_open(self):
            raise FoldError(
                "a folded network has no norms to train: their statistics are in the weights. Train the original and "
                'fold again, or fold with entrances="any" to train what is left'
            )
        return super().train(mode)  # type: ignore[misc]


class _GuardedGraph(_Guard, GraphModule):
    """A folded graph; torch.fx makes a class of its own for each, below this one."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _new_graph, super().__reduce__()


def _new_graph(make: Callable[..., GraphModule], arguments: tuple[Any, ...]) -> GraphModule:
    graph = make(*arguments)
    graph._tracer_cls = None
    return guarded(graph, TracedWay({}, (), ()))


class _GuardedInner:
    """Before the user's class in the class of a module of a guarded network, whose methods read changed weights."""

    def __init_subclass__(cls) -> None:
        """Keep the class out of the lists that a class of the user's may keep of those below it."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        make, arguments, *rest = reduced
        is_usual = make is copyreg.__newobj__  # type: ignore[attr-defined]
        return (_new_module, (*_bases(type(self)), *arguments[1:]), *rest) if is_usual else reduced

    def __prepare_scriptable__(self) -> Any:
        """Return the same network without guards: torch.jit.script cannot read them."""
        unguarded, _ = _bases(type(self))
        plain: Any = unguarded.__new__(unguarded)
        plain.__dict__.update({name: value for name, value in vars(self).items() if name != "_traced_way"})
        return plain


class _GuardedModule(_Guard, _GuardedInner):
    """Before the user's class in the class of a guarded network."""

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *options: Any) -> None:
        """Load what belongs to the network; raise FoldError for the weights of one whose norms are not folded."""
        own = {prefix + name for name, _ in named_tensors(self)} | {prefix + name for name in self.state_dict()}  # type: ignore[arg-type, attr-defined]
        removed = () if _is_open(self) else tuple(f"{prefix}{path}." for path in _way(self).removed)  # type: ignore[arg-type]
        strange = next((name for name in state if name.startswith(removed) and name not in own), None)
        if strange is not None:
            raise FoldError(
                f"the weights have '{strange}', of a norm that this network has in its other weights; expected those "
                "of a folded network. Load them into the original, and fold it again"
            )
        super()._load_from_state_dict(state, prefix, *options)  # type: ignore[misc]


def _bases(cls: type) -> tuple[type[nn.Module], type]:
    """Return the user's class and the kind of guard of a class with guards; a module may have any other attribute."""
    bases: tuple[type[nn.Module], type] = vars(cls)[BASES]
    return bases


def _new_module(base: type[nn.Module], kind: type, *arguments: Any) -> nn.Module:
    cls: Any = _class_with_guards(base, kind)
    module: nn.Module = cls.__new__(cls, *arguments)
    return module


def _class_with_guards(base: type[nn.Module], kind: type) -> type[nn.Module]:
    """Return the subclass of `base` that raises away from the traced way; it has the name of its base."""
    if (base, kind) in _classes:
        return _classes[base, kind]
    guards: dict[str, Any] = {name: _watched(one) for name, one in defined_in(base).items() if _is_watched(one)}
    guards |= {BASES: (base, kind)}
    if kind is _GuardedModule:
        guards["forward"] = _only_traced(base.forward)
    guards |= {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    metaclass: Any = type(base)
    new = next(one.__new__ for one in metaclass.__mro__ if one in (type, abc.ABCMeta))  # its own may keep lists too
    _classes[base, kind] = new(metaclass, base.__name__, (kind, base), guards)
    return _classes[base, kind]


_classes: dict[tuple[type[nn.Module], type], type[nn.Module]] = {}


_active = threading.local()  # which networks are inside their traced way, in this thread


class _Entered:
    """A network inside its traced way."""

    def __init__(self, network: nn.Module):
        self._network = network

    @functools.cached_property
    def parts(self) -> set[int]:
        """The `id` of the network and of all modules in it."""
        return {id(module) for module in self._network.modules()}

    def has(self, module: nn.Module) -> bool:
        return module is self._network or id(module) in self.parts


@contextmanager
def _inside(model: nn.Module) -> Iterator[None]:
    networks: list[_Entered] = vars(_active).setdefault("networks", [])
    networks.append(_Entered(model))
    try:
        yield
    finally:
        networks.pop()


def _is_inside(model: nn.Module) -> bool:
    """True when the model, or a network that it is a part of, is inside its traced way."""
    return any(network.has(model) for network in vars(_active).get("networks", ()))


def _only_traced(forward: Any) -> Any:
    @functools.wraps(forward)
    def traced(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_inside(self) and not _is_open(self):
            require_form(self, _way(self), args, kwargs)
        if torch.compiler.is_dynamo_compiling():
            return forward(self, *args, **kwargs)
        with _inside(self):
            return forward(self, *args, **kwargs)

    return traced


def _is_watched(defined: Any) -> bool:
    """True for methods; a property computes nothing of values that it is not given."""
    return isinstance(defined, FunctionType | functools.partialmethod)


def _watched(method: Any) -> Any:
    """Return the method with a watch on what it computes, also where it does that only when it is asked to go on."""
    if isinstance(method, functools.partialmethod):
        return functools.partialmethod(_watched(method.func), *method.args, **method.keywords)

    @functools.wraps(method)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling() or _is_inside(self) or _is_open(self):
            return method(self, *args, **kwargs)
        removed = attributes_used(method.__code__) & set(_way(self).removed)
        if removed:
            raise _other_entrance(method.__name__, f"uses the norm '{min(removed)}', which is gone")
        with _Watch(self, method.__name__):
            result = method(self, *args, **kwargs)
        return _watched_steps(result, self, method.__name__) if inspect.isgenerator(result) else result

    @functools.wraps(method)
    async def awaited(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await _Awaited(self, method, args, kwargs)

    return awaited if inspect.iscoroutinefunction(method) else watched


class _Awaited:
    """A call of a coroutine of a network, watched whenever it goes on."""

    def __init__(self, model: nn.Module, method: FunctionType, args: tuple[Any, ...], kwargs: Mapping[str, Any]):
        self._model, self._method = model, method
        self._steps = method(model, *args, **kwargs).__await__()

    def __await__(self) -> Generator[Any, Any, Any]:
        is_free = _is_inside(self._model) or _is_open(self._model)
        return self._steps if is_free else _watched_steps(self._steps, self._model, self._method.__name__)


def _watched_steps(steps: Generator[Any, Any, Any], model: nn.Module, method: str) -> Generator[Any, Any, Any]:
    """Return what a generator yields and returns, each step of it watched."""
    sent: Any = None
    while True:
        with _Watch(model, method):
            try:
                value = steps.send(sent)
            except StopIteration as end:
                return end.value
        sent = yield value


class _Watch(TorchFunctionMode):
    """Raises FoldError when a changed tensor meets a value that is none of the model's, away from the traced way."""

    def __init__(self, model: nn.Module, method: str):
        super().__init__()
        self._model, self._method = model, method
        self._own = {id(tensor): name for name, tensor in named_tensors(model)}
        self._changed = {name for name in self._own.values() if name in _way(model).changed}
        self._made: list[Tensor] = []  # from the model's tensors alone; kept, so that no other tensor gets their id

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [value for value in tree_leaves((args, kwargs or {})) if isinstance(value, Tensor)]
        own = [self._own[id(value)] for value in given if id(value) in self._own]
        changed = next((name for name in own if name in self._changed), None)
        if changed is None or _is_inside(self._model):
            return func(*args, **(kwargs or {}))
        if len(own) < len(given) and not _writes(func, args[0], self._own):
            raise _other_entrance(self._method, f"reads '{changed}', which has taken a norm in")
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._made.append(result)
                self._own.setdefault(id(result), changed)
        return results


def _writes(func: Any, first: Any, own: Mapping[int, str]) -> bool:
    """True when the operation gives a tensor of the model other values, as loading a state does."""
    name = getattr(func, "__name__", "")
    return name == "__set__" or (name.endswith("_") and not name.endswith("__") and id(first) in own)


def _is_open(model: object) -> bool:
    """True for a network that was made anew with the class of a guarded one: nothing in it is folded."""
    return isinstance(model, _GuardedInner) and "_traced_way" not in vars(model)


def _way(model: nn.Module) -> TracedWay:
    way: TracedWay = vars(model)["_traced_way"]
    return way


def _other_entrance(method: str, how: str) -> FoldError:
    return FoldError(
        f"{method}() of a folded network {how}; only its forward, as it was traced, computes what the original does. "
        'Call the original, fold a model whose forward is what you need, or fold with entrances="any" if this is meant'
    )
