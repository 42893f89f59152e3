"""Run any model or any aten operation in float64, whatever dtype its parameters and casts ask for.

Used to evaluate constants of the graph and, in the proof, both forms of a model. Tensors are widened where they enter
an operation, so hooks, hand-written classes and plain-tensor statistics need no `.double()`; a cast to float32 that is
written into a model's forward stays in float64 as well.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

from ...errors import FoldError
from ..tiled import convolve, give_memory_back
from .plain_layers import has_plain_layers_only

Inputs = tuple[Any, ...] | Mapping[str, Any]
_SMALL, _LARGE, _GIVEN_BACK_EVERY = 2**18, 2**20, 2**24  # bytes
_OF_TORCH = (Tensor, nn.Parameter)
NARROW = (torch.float32, torch.float16, torch.bfloat16)
_NO_PARTS = (nn.Module, type, ModuleType, FunctionType, str, bytes, int, float, type(None))
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_MOST_VALUES = 4096  # of a module that are looked into
_LEAVES = (Tensor, int, float, str, torch.dtype, torch.device, type(None))


class _Widening:
    """What both modes share: which value takes an argument's place."""

    def __init__(self, exact: Mapping[int, Tensor]):
        super().__init__()
        self._exact = exact

    def widened(self, value: Any) -> Any:
        if isinstance(value, Tensor) and id(value) in self._exact:
            return self._exact[id(value)]
        return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else widen(value)

    def all_widened(self, values: Any) -> Any:
        """Return arguments, a tuple or a dict, with each tensor and dtype in them widened."""
        if isinstance(values, tuple) and all(isinstance(value, _LEAVES) for value in values):
            return tuple(map(self.widened, values))  # most calls: looking for nested ones costs more than they do
        return tree_map(self.widened, values) if values else values


class _Functions(_Widening, TorchFunctionMode):
    """Widens the arguments of calls from Python, before an operation compares their dtypes."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__set__":
            return func(*args, **(kwargs or {}))
        if name.endswith("_") and not name.endswith("__") and args:
            _refuse_narrow_writes(name, args[:1])
        return func(*self.all_widened(args), **self.all_widened(kwargs or {}))


class _Operations(_Widening, TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Widens what operations make by themselves: new tensors, and casts on the way down."""

    _made = 0  # bytes of large results since memory was given back

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _draws(func):
            return self._draw(func, args, kwargs or {})
        if writes(func):
            _refuse_narrow_writes(str(func), args[:1])
        if func is torch.ops.aten.convolution.default and not kwargs and not args[6]:
            return self._counted(_convolution(*self.all_widened(args)))
        result = func(*self.all_widened(args), **self.all_widened(kwargs or {}))
        return self._counted(widen(result) if isinstance(result, Tensor) else tree_map(widen, result))

    def _counted(self, result: Any) -> Any:
        """Return the result; freed memory goes back to the system now and then, where results are large."""
        is_plain = type(result) is Tensor and result.layout is torch.strided  # others may have no size
        if is_plain and result.nbytes > _LARGE:
            self._made += result.nbytes
            if self._made > _GIVEN_BACK_EVERY:
                self._made = 0
                give_memory_back()
        return result

    def _draw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Draw random numbers in float32, as the deployed model does: in float64 they would be others."""
        if func._schema.name.endswith("_") and args[0].dtype is torch.float64:
            drawn = func(torch.empty_like(args[0], dtype=torch.float32), *args[1:], **kwargs)
            return args[0].copy_(drawn)
        return tree_map(widen, func(*tree_map(_narrow, args), **tree_map(_narrow, kwargs)))


@cache
def _draws(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


@cache
def writes(func: Any) -> bool:
    """True for an operation that says that it writes into an argument."""
    return any(one.alias_info is not None and one.alias_info.is_write for one in func._schema.arguments)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *given: Any) -> Any:
    """Return a convolution, computed in stretches where it is large."""
    (stride, padding, dilation), rest = given[:3], given[3:]

    def convolution(part: Tensor, pads: Any) -> Any:
        return torch.ops.aten.convolution.default(part, weight, bias, stride, pads, dilation, *rest)

    rank = weight.ndim - 2
    if x.dtype is not torch.float64 or any(len(one) != rank for one in given[:3]):
        return convolution(x, padding)
    return convolve(convolution, x, weight, stride, padding, dilation)


def _narrow(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype is torch.float64:
        return value.to(torch.float32)
    return torch.float32 if value is torch.float64 else value


def widen(value: Any) -> Any:
    """Return a narrow floating-point tensor as float64; anything else as it is."""
    if not isinstance(value, Tensor) or value.dtype not in NARROW:
        return value
    return (value.detach() if torch.is_grad_enabled() else value).to(torch.float64)


def _refuse_narrow_writes(name: str, written: Iterable[Any]) -> None:
    """Raise when an operation writes into a float32 tensor: the write would go to a widened copy and be lost."""
    if any(isinstance(value, Tensor) and value.dtype in NARROW for value in written):
        raise FoldError(
            f"the model writes into one of its own tensors ({name}); expected a forward without side effects: "
            "put the model in eval mode and call it under torch.no_grad()"
        )


def run_in_float64(
    function: Callable[..., Any], args: tuple[Any, ...], exact: Mapping[int, Tensor] | None = None
) -> Any:
    """Return what `function(*args)` gives when evaluated in float64, without gradients.

    Args:
        function: a module or any callable on tensors.
        args: its arguments; float tensors are widened.
        exact: float64 tensors to use in place of the function's own, by `id` of the tensor that they replace.
    """
    wide = tree_map(widen, args)
    with torch.no_grad(), _Operations(exact or {}), _Functions(exact or {}):
        return function(*wide)


def run_model_in_float64(model: nn.Module, inputs: Inputs, exact: Mapping[int, Tensor] | None = None) -> Any:
    """Return what `model` gives for `inputs` when evaluated in float64; its own tensors stay as they are.

    Args:
        model: any; one with torch.cond and the like runs as a widened copy, for no mode looks into their bodies.
        inputs: positional arguments, or a mapping of keyword arguments.
        exact: as in `run_in_float64`.
    """
    runnable = copy_to_run(model, keep=exact or ())
    small = _small_ones_widened(runnable)  # held: what a model lets go would leave its `id` to another tensor
    wide = {**{id(one): widened for one, widened in small}, **(exact or {})}
    try:
        return run_in_float64(lambda given: call(runnable, given), (inputs,), wide)
    except RuntimeError as err:
        if not needs_no_mode(err):
            raise
    torch.compiler.reset()  # torch.cond keeps what it compiled under the mode, which does not run without it
    with torch.no_grad():
        return call(_widened_copy(model, exact or {}), tree_map(widen, inputs))


def _small_ones_widened(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return the small tensors of a model and each in float64: where they are used, under the modes, costs far more."""
    with _disable_current_modes(), torch.no_grad():
        named = named_tensors(model)
        small = [one for _, one in named if type(one) in _OF_TORCH and one.dtype in NARROW and one.nbytes <= _SMALL]
        return [(one, widen(one)) for one in small]


def needs_no_mode(err: RuntimeError) -> bool:
    """True when a model cannot run under our modes because of torch.cond and the like."""
    return "HigherOrderOperator" in str(err) or type(err).__module__.startswith("torch._dynamo")


def _widened_copy(model: nn.Module, exact: Mapping[int, Tensor]) -> nn.Module:
    copied = full_copy(model)
    for (_, mine), (_, its) in zip(named_tensors(model), named_tensors(copied), strict=True):
        its.data = exact.get(id(mine), widen(its.data))
    return copied


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors of a model's output (tensor, tuple, list, dict or data class), depth first."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return tensors_in(vars(value)) if hasattr(value, "__dataclass_fields__") else []


WRITING: WeakSet[nn.Module] = WeakSet()  # those whose forward writes into their parameters, see `writing.apart`


def is_writing(model: nn.Module) -> bool:
    """True for what `writing.apart` put in the place of a model whose forward writes into its parameters."""
    return any(module in WRITING for module in model.modules())


def sharing_copy(model: nn.Module, keep: Iterable[int] = ()) -> nn.Module:
    """Return a copy of the module tree around the very same parameters, to run without a trace on the model itself.

    Norms update buffers, or assign their statistics anew, even in eval mode; these are the copy's own. So are the
    parameters where the forward writes into those; see `writing.apart`.

    Args:
        model: what to copy.
        keep: `id` of tensors to share although they are no parameters.
    """
    shared = set(keep)
    shares = not is_writing(model)
    own = [tensor for _, tensor in named_tensors(model) if shares and isinstance(tensor, nn.Parameter)]
    kept = [tensor for _, tensor in kept_tensors(model) if id(tensor) in shared] if shared else []
    return full_copy(model, {id(tensor): tensor for tensor in [*own, *kept]})


def copy_to_run(model: nn.Module, keep: Iterable[int] = ()) -> nn.Module:
    """Return what can be called without a trace on the model: a `sharing_copy`, or itself where no call leaves one."""
    return model if has_plain_layers_only(model) else sharing_copy(model, keep)


def full_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of the model; objects in `memo`, by `id`, are replaced by what it says.

    What cannot be copied is shared, such as locks, files and modules; of a tensor with a history only the value is
    copied, such as the activation that a hook kept.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # copying a GraphModule warns about pytrees of torch's own
        try:
            return copy.deepcopy(model, dict(memo or {}))
        except Exception:  # whatever the __deepcopy__ of somebody's class raises
            return copy.deepcopy(model, _with_uncopyable(model, dict(memo or {})))


def _with_uncopyable(model: nn.Module, memo: dict[int, Any]) -> dict[int, Any]:
    """Return the memo with what takes the place of each attribute that cannot be copied."""
    pending: list[Any] = [model]
    visited: set[int] = set()
    while pending:
        value = pending.pop()
        if id(value) in visited or id(value) in memo:
            continue
        visited.add(id(value))
        if isinstance(value, nn.Module):
            pending.extend(vars(value).values())
        elif isinstance(value, dict | list | tuple | set):
            pending.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, Tensor):
            memo |= {} if value.is_leaf else {id(value): value.detach().clone()}
        elif not _can_be_copied(value):
            memo[id(value)] = value
    return memo


def _can_be_copied(value: Any) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:
        return False
    return True


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Return what the model gives for positional arguments, or for keyword arguments when `inputs` is a mapping."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return parameters, buffers and plain tensor attributes with their qualified names, each under its first name."""
    visited: set[int] = set()
    named = []
    for path, module in model.named_modules():
        for name, value in [*module._parameters.items(), *module._buffers.items(), *vars(module).items()]:
            if isinstance(value, Tensor) and id(value) not in visited:
                visited.add(id(value))
                named.append((f"{path}.{name}" if path else name, value))
    return named


def kept_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return `named_tensors` and those in containers and plain objects that modules hold, such as a cache by device.

    The name of one of these is its way, and for people and for telling it from others alone.
    """
    found = named_tensors(model)
    visited = {id(tensor) for _, tensor in found}
    for path, module in model.named_modules():
        pending = [(f"{path}.{name}", value) for name, value in vars(module).items() if name not in OF_EVERY_MODULE]
        for way, value in pending:
            if id(value) in visited or isinstance(value, _NO_PARTS) or len(pending) > _MOST_VALUES:
                continue
            visited.add(id(value))
            if isinstance(value, Tensor):
                found.append((way, value))
            elif isinstance(value, Mapping):
                pending += [(f"{way}[{key}]", one) for key, one in value.items()]
            elif isinstance(value, list | tuple | set | frozenset):
                pending += [(f"{way}[{place}]", one) for place, one in enumerate(value)]
            else:
                pending += [(f"{way}.{name}", one) for name, one in getattr(value, "__dict__", {}).items()]
    return found


def tensor_named(model: nn.Module, name: str) -> Tensor:
    """Return the parameter, buffer or plain tensor attribute with a qualified name."""
    path, _, attribute = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), attribute)
    assert isinstance(tensor, Tensor)
    return tensor
