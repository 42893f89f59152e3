"""The shapes that the Python code of a forward reads; what reads none cannot choose by one.

Used by `recorded_calls`, and by `size_symbols`, which puts symbols in the place of what is read.
"""

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from .circumstances import ATTRIBUTES, is_of_torch
from .fake_runs import is_fake

_PARTS = ("__iter__", "unbind", "split", "tensor_split", "chunk", "__len__")  # how many there are is a size, too
READS = ("shape", "size", "numel", "nelement", "nbytes", "stride", "is_same_size", *_PARTS)
# Functions whose arguments follow the sizes by themselves, so that other arguments are no other computation.
FOLLOW: tuple[str, ...] = ("view", "reshape", "expand", "slice", "select", "arange", "upsample", "adaptive", "repeat")
FOLLOW += ("split", "zeros", "ones", "empty", "full", "narrow", "flatten", "sym_", "as_strided", "rand", "index")
FOLLOW += ("chunk", "interpolate", "item__")
_MACHINERY = ("torch._subclasses", "torch._prims", "torch._refs", "torch._decomp", "torch.fx", "torch.utils._pytree")


def is_of_torch_itself() -> bool:
    """True when PyTorch's own machinery calls the function that is asking, such as for the first sight of a weight."""
    return str(sys._getframe(2).f_globals.get("__name__", "")).startswith(_MACHINERY)


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
        name = function_name(func)
        if name in ATTRIBUTES and not is_of_torch(sys._getframe(1)):
            self.names.add(name)
        if name in READS and not is_of_torch_itself():
            tensors = args[: 2 if name == "is_same_size" else 1]
            self.shapes += [tuple(tensor.shape) for tensor in tensors if self._depends(tensor)]
        return func(*args, **(kwargs or {}))


def function_name(func: Any) -> str:
    """Return the name of a function or attribute of tensors, as a mode is given it."""
    name = str(getattr(func, "__name__", ""))
    return str(getattr(getattr(func, "__self__", None), "__name__", "")) if name == "__get__" else name
