"""What PyTorch and the clock answer to the user's code in another circumstance; PyTorch's own code gets the truth.

Used by `outside`: tensors that say another dtype or device, functions that answer otherwise, and another time.
"""

import datetime
import sys
import time
from collections.abc import Callable
from itertools import count
from types import FrameType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from .circumstances import is_of_torch
from .size_reads import function_name

CLOCKS: tuple[str, ...] = ("time", "monotonic", "perf_counter", "process_time", "thread_time")
CLOCKS += tuple(f"{name}_ns" for name in CLOCKS)
DATES = ("now", "today", "utcnow")
_ON_DEVICE = {"is_cuda": "cuda", "is_mps": "mps", "is_xpu": "xpu", "is_cpu": "cpu"}
# Two times: one at which the clock stands, and one at which it leaps by more than a week whenever it is read.
TIMES: dict[str, Callable[[], Callable[[], float]]] = {
    "when the clock stands at 1970": lambda: lambda: 0.0,
    "when the clock leaps": lambda: (4e9 + 1_000_003.75 * number for number in count()).__next__,
}


def _asking() -> FrameType:
    """Return the frame that asks: the first one that is no mode's, from the caller of the caller on."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    return frame or sys._getframe(2)


def answering(function: Callable[..., Any], answer: Any) -> Callable[..., Any]:
    """Return a function that gives the user's code another answer than PyTorch's own."""

    def answered(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) if is_of_torch(sys._getframe(1)) else answer

    return answered


class OtherTensors(TorchFunctionMode):
    """Lets tensors say to the user's code that they have another dtype, or lie on another device.

    Where that is passed on to PyTorch, the true one is in its place.

    Args:
        said: the dtype or device.
        name: of the attribute, "dtype" or "device".
    """

    def __init__(self, said: torch.dtype | torch.device, name: str) -> None:
        super().__init__()
        self._said, self._name, self._true = said, name, None

    def __enter__(self) -> "OtherTensors":
        own = self._of_fakes = vars(FakeTensor)["device"]
        if self._name == "device":  # of tensors without values no mode is asked for it

            def device(tensor: FakeTensor) -> Any:
                if is_of_torch(sys._getframe(1)):
                    return own.__get__(tensor)
                self._true = own.__get__(tensor)
                return self._said

            FakeTensor.device = property(device, own.__set__)  # type: ignore[assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        FakeTensor.device = self._of_fakes  # type: ignore[method-assign]
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function_name(func)
        if (
            name == self._name
            and isinstance(args[0], Tensor)
            and self._is_other(args[0])
            and not is_of_torch(_asking())
        ):
            self._true = func(*args)
            return self._said
        if self._name == "device" and name in _ON_DEVICE and not is_of_torch(_asking()):
            return self._said.type == _ON_DEVICE[name]  # type: ignore[union-attr]
        args, kwargs = tree_map(self._truly, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _is_other(self, tensor: Tensor) -> bool:
        return self._name == "device" or tensor.is_floating_point()

    def _truly(self, value: Any) -> Any:
        is_said = type(value) is type(self._said) and value == self._said
        return self._true if is_said and self._true is not None else value


def at_time(value: Any, clock: Callable[[], float]) -> Any:
    """Return what takes the place of a clock, a date, or the module of either, at another time; None for others."""
    if value is time or value is datetime:
        proxy = ModuleType(value.__name__)
        vars(proxy).update({key: at_time(one, clock) or one for key, one in vars(value).items()})
        return proxy
    if value is datetime.datetime or value is datetime.date:
        return _dates(value, clock)
    if any(value is getattr(time, one, None) for one in CLOCKS):
        is_whole = value.__name__.endswith("_ns")
        return lambda: int(clock() * 1e9) if is_whole else clock()
    return None


def _dates(cls: Any, clock: Callable[[], float]) -> Any:
    class Kind(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, datetime.date)

    def at(_: Any, tz: Any = None) -> Any:
        return cls.fromtimestamp(clock(), tz) if tz is not None else cls.fromtimestamp(clock())

    return Kind(cls.__name__, (cls,), {name: classmethod(at) for name in DATES if hasattr(cls, name)})
