"""Tensors without values at the least cost: PyTorch's mode for them without its cache, and operations cut short.

Used by `recorded_calls` and `size_symbols`, which run a forward many times to see what it does and asks. A norm alone
costs there as much as twenty other operations.
"""

import re
from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp.decompositions import upsample_compute_output_size
from torch._ops import OpOverload
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_ATEN = torch.ops.aten
_RECURRENT = frozenset({"gru", "lstm", "rnn_tanh", "rnn_relu"})
# fmt: off
_VIEWS = frozenset({
    _ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.slice.Tensor, _ATEN.select.int, _ATEN.transpose.int,
    _ATEN.t.default, _ATEN.permute.default, _ATEN.expand.default, _ATEN.unsqueeze.default, _ATEN.squeeze.dim,
    _ATEN.detach.default, _ATEN.alias.default, _ATEN.split.Tensor, _ATEN.split_with_sizes.default, _ATEN.unbind.int,
})
_RESHAPES = frozenset({_ATEN.view.default, _ATEN._unsafe_view.default})
_UNARY = frozenset({
    _ATEN.relu.default, _ATEN.silu.default, _ATEN.sigmoid.default, _ATEN.tanh.default, _ATEN.gelu.default,
    _ATEN.leaky_relu.default, _ATEN.hardtanh.default, _ATEN.elu.default, _ATEN.hardswish.default,
    _ATEN.hardsigmoid.default, _ATEN.exp.default, _ATEN.sqrt.default, _ATEN.rsqrt.default, _ATEN.neg.default,
})
_BINARY = frozenset({_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor})
# fmt: on
_RESIZES = re.compile(
    r"aten\._?upsample_(nearest_exact|nearest|linear|bilinear|trilinear|bicubic)[123]d(_aa)?\.default"
)


def fake_mode(shape_env: ShapeEnv | None = None) -> FakeTensorMode:
    """Return a mode in which tensors have no values; sizes are symbols of `shape_env` where there is one.

    What it would keep of an operation is of no use for another size, and finding that out costs as much again.
    """
    mode = FakeTensorMode(shape_env=shape_env, allow_non_fake_inputs=True)
    mode.cache_enabled = False
    return mode


def is_fake(value: Any) -> bool:
    """True for a tensor without values."""
    return isinstance(value, FakeTensor)


class Shortcuts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Cuts operations short, see `cut_short`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return cut_short(func, args, kwargs or {})


class FunctionShortcuts(TorchFunctionMode):
    """Cuts functions short that PyTorch takes apart before a mode sees an operation.

    These are recurrent layers, step by step, and `interpolate` where sizes are symbols.

    Args:
        note: gets the name, arguments and results of each recurrent layer.
    """

    def __init__(self, note: Callable[[str, tuple[Any, ...], tuple[Tensor, ...]], None] = lambda *_: None) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        recurrent = _recurrent(*args) if name in _RECURRENT and len(args) == 9 and not kwargs else None
        if recurrent is not None:
            self._note(name, args, recurrent)
            return recurrent
        resized = _interpolated(*args, **(kwargs or {})) if func is F.interpolate else None
        return func(*args, **(kwargs or {})) if resized is None else resized


def cut_short(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what an operation gives on tensors without values, of some operations by a shorter way; see `_shortly`."""
    is_plain = not kwargs and len(args) > 0 and is_fake(args[0]) and args[0].constant is None
    short = _shortly(func, args) if is_plain else None
    return func(*args, **kwargs) if short is None else short


def _shortly(func: Any, args: tuple[Any, ...]) -> Any:
    """Return what an operation gives, None where there is no shorter way.

    Of norms, resizes and functions of single values only the form of the result is made; views are made by PyTorch's
    kernel in C++ in the place of its twin in Python.
    """
    x = args[0]
    if func is _ATEN.native_batch_norm.default and not args[5] and None not in args[3:5]:
        return _like(x), *(torch.empty(0, device=x.fake_device) for _ in range(2))
    if func is torch.ops.prim.device.default:
        return x.fake_device
    if func in _VIEWS:
        return _view_of_symbols(func, x, *args[1:]) if _has_symbols(args) else _by_kernel(func, x, *args[1:])
    if func in _UNARY and x.is_floating_point() and not any(isinstance(one, Tensor) for one in args[1:]):
        return _like(x)
    if func in _BINARY and is_fake(args[1]) and _is_alike(x, args[1]):
        return _like(x)
    is_resize = isinstance(func, OpOverload) and _RESIZES.fullmatch(str(func))
    return _resized(x, args[1]) if is_resize else None


def _view_of_symbols(func: Any, x: Any, *args: Any) -> Any:
    """Return a tensor of the sizes of a view; that it is one was seen with numbers in the place of symbols."""
    if func not in _RESHAPES:
        return None
    (sizes,) = args
    known = prod(size for size in sizes if not (isinstance(size, int) and size == -1))
    return x.new_empty([x.numel() // known if isinstance(size, int) and size == -1 else size for size in sizes])


def _like(x: Any) -> Any:
    return torch.empty_like(x) if x._has_symbolic_sizes_strides else _by_kernel(_ATEN.empty_like.default, x)


def _is_alike(x: Any, other: Any) -> bool:
    if x._has_symbolic_sizes_strides or other._has_symbolic_sizes_strides:
        return False
    return bool(x.shape == other.shape and x.stride() == other.stride() and _kind(x) == _kind(other))


def _kind(x: Any) -> tuple[Any, ...]:
    return x.dtype, x.fake_device, x.fake_mode


def _has_symbols(args: tuple[Any, ...]) -> bool:
    return args[0]._has_symbolic_sizes_strides or any(isinstance(one, torch.SymInt) for one in tree_leaves(args[1:]))


def _by_kernel(func: Any, x: Any, *args: Any) -> Any:
    """Return what the kernel for tensors without values gives for one such tensor and plain numbers."""
    mode = x.fake_mode
    with in_kernel_invocation_manager(mode):
        made = func(x, *args)
    return tree_map(lambda one: mode.fake_tensor_converter.from_meta_and_device(mode, one, x.fake_device), made)


def _recurrent(x: Tensor, state: Any, weights: Any, *options: Any) -> tuple[Tensor, ...] | None:
    """Return outputs and last states of a recurrent layer, in the order of the arguments of `torch.gru` and others."""
    states = tuple(state) if isinstance(state, tuple | list) else (state,)
    is_usual = isinstance(weights, tuple | list) and all(map(is_fake, (x, *states))) and x.ndim == 3
    if not is_usual or x.shape[-1] != weights[0].shape[1]:
        return None
    is_bidirectional = options[4]
    output = x.new_empty((*x.shape[:2], states[0].shape[-1] * (2 if is_bidirectional else 1)))
    return output, *map(torch.empty_like, states)


def _interpolated(
    x: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *_: Any, **more: Any
) -> Any:
    if mode == "area" or not is_fake(x) or not x._has_symbolic_sizes_strides:
        return None
    factors = [scale_factor] * (x.ndim - 2) if isinstance(scale_factor, float | int) else scale_factor
    sizes = [size] * (x.ndim - 2) if isinstance(size, int | torch.SymInt) else size
    if more.get("recompute_scale_factor") or (sizes is None) is (factors is None):
        return None
    return _resized(x, upsample_compute_output_size(x.size(), sizes, factors))  # type: ignore[no-untyped-call]


def _resized(x: Tensor, sizes: Any) -> Tensor | None:
    """Return a map of another size, as a resize does; None where it would not."""
    if len(sizes) != x.ndim - 2 or any(isinstance(one, int) and one < 1 for one in (*x.shape, *sizes)):
        return None
    return x.new_empty((*x.shape[:2], *sizes)).contiguous(memory_format=suggest_memory_format(x))
