"""What a forward may choose by that belongs to PyTorch, NumPy or the standard library: time, chance, dtypes, modes.

Used by `outside`. What can be made to answer otherwise is tried; of the rest the report speaks.
"""

import datetime
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch.utils import _python_dispatch as modes

from .answers import CLOCKS, DATES, TIMES, OtherTensors, answering, at_time
from .bytecode import Use, end_of_call, is_attribute, steps_of, use_of
from .circumstances import Circumstance
from .loads import Load
from .other_values import FLOATS, constants_of, others_of
from .places import Place, with_others
from .reachable import Reached, codes, home, is_of_others

Swaps = list[tuple[Any, Any, Any]]
_READ_OF_TENSORS = {"dtype": "dtype", "device": "device", "is_cuda": "device", "is_cpu": "device", "is_mps": "device"}
_KINDS = {name: f"the {name} of a tensor" for name in ("is_floating_point", "is_complex")}
_KINDS |= dict.fromkeys(("isEnabledFor", "getEffectiveLevel"), "the level of a logger")
_DEVICES = ("cuda", "mps", "xpu", "meta")
# While a network is looked at, modes are there, and every tensor has functions of its own; as it is used, none is.
_WITHOUT_MODES: list[tuple[Any, Any]] = [
    (torch.overrides.has_torch_function, False),
    (torch.overrides.has_torch_function_unary, False),
    (torch.overrides.has_torch_function_variadic, False),
    (torch.overrides._get_current_function_mode, None),
    (torch.overrides._get_current_function_mode_stack, []),
    (torch._C._len_torch_function_stack, 0),
    (modes.is_in_torch_dispatch_mode, False),
    (modes._get_current_dispatch_mode, None),
    (modes._get_current_dispatch_mode_stack, []),
    (torch._C._len_torch_dispatch_stack, 0),
]
_OF_THE_PROCESS = frozenset({
    "is_available", "is_initialized", "are_deterministic_algorithms_enabled", "is_anomaly_enabled", "device_count",
    "get_num_threads", "get_rank", "get_world_size",
})  # fmt: skip
_UNPREDICTABLE = frozenset({"default_rng", "SystemRandom", "urandom", "uuid1", "uuid4", "token_bytes", "token_hex"})
_UNPREDICTABLE |= {"randbits", "randbelow", "getrandom"}
_SAME_EACH_TIME = frozenset({
    "abc", "builtins", "cmath", "collections", "contextlib", "copy", "dataclasses", "datetime", "decimal", "enum",
    "fractions", "functools", "inspect", "itertools", "logging", "math", "numbers", "operator", "random", "re",
    "_random", "statistics", "string", "time", "types", "typing", "typing_extensions", "warnings", "_operator",
})  # fmt: skip


class Foreign:
    """Gathers what code takes from elsewhere, and what it asks of tensors.

    Args:
        reached: what a forward may run.
        dtypes: of the parameters of the model.
    """

    def __init__(self, reached: Reached, dtypes: set[torch.dtype]):
        self._dtypes = dtypes
        self.notes: list[str] = ["a clock that it holds"] if reached.holds_clock else []
        self._clocks: dict[tuple[int, str], Place] = {}
        self._answers: dict[tuple[int, str], tuple[Place, list[Any]]] = {}
        self._said: dict[torch.dtype | torch.device, str] = {}
        for function in reached.functions.values():
            for code in codes(function.__code__):
                self._take_tensors(code)

    def take(self, load: Load) -> None:
        """Take in something that is loaded."""
        place, value = load.place, load.place.value
        if load.root.owner is sys.modules and load.root.value in (time, datetime):
            self._clocks[id(sys.modules), load.root.key] = load.root
        elif _is_clock(place):
            replaced = load.root if at_time(load.root.value, float) is not None else place
            self._clocks[id(replaced.owner), str(replaced.key)] = replaced
        if not callable(value) or load.use_of_result is Use.CALCULATED:
            return
        others = _other_answers(value, str(place.key), constants_of([load.code]))
        if others:
            self._answers[id(place.owner), place.text] = place, others
        elif (str(place.key) in _UNPREDICTABLE and is_of_others(home(value))) or _may_differ(place):
            self.notes.append(f"{place.text}()")

    def circumstances(self, swaps: Swaps) -> list[Circumstance]:
        """Return the circumstances in which all of it answers otherwise.

        Args:
            swaps: what other values are needed besides, such as functions without what they kept.
        """
        found: list[Circumstance] = []
        if self._clocks:
            found += [Circumstance(words, entered=self._at(make, swaps)) for words, make in TIMES.items()]
        for place, others in self._answers.values():
            for answer in others:
                entered = with_others([*swaps, place.other(answering(place.value, answer))])
                found.append(Circumstance(f"where {place.text}() is {answer!r}", entered=entered))
        for said, name in self._said.items():
            found.append(Circumstance(f"for tensors whose {name} is {said}", entered=_saying(said, name)))
        return found

    def _at(self, make: Callable[[], Callable[[], float]], swaps: Swaps) -> Callable[[], Any]:
        places = list(self._clocks.values())

        def entered() -> Any:
            clock = make()
            return with_others([*swaps, *(one.other(at_time(one.value, clock)) for one in places)])()

        return entered

    def _take_tensors(self, code: Any) -> None:
        """Take in the attributes of tensors that a choice is made by."""
        if not (code.co_names and ({*_READ_OF_TENSORS, *_KINDS} & set(code.co_names))):
            return
        steps = steps_of(code)
        for number, step in enumerate(steps):
            if not is_attribute(step) or step.argval not in {*_READ_OF_TENSORS, *_KINDS}:
                continue
            last = number
            while step.argval in _READ_OF_TENSORS and is_attribute(steps[last + 1]):
                last += 1  # such as the type of a device
            last = end_of_call(steps, last) if step.argval in _KINDS else last
            if use_of(steps, last, lambda _: False) is Use.CALCULATED:
                continue
            if step.argval in _KINDS:
                self.notes.append(_KINDS[step.argval])
            elif _READ_OF_TENSORS[step.argval] == "dtype":
                self._said |= {one: "dtype" for one in FLOATS if {one} != self._dtypes}
            else:
                named = [one for one in constants_of([code]) if one in _DEVICES]
                self._said |= {torch.device(one): "device" for one in ["cuda", *named]}


def _saying(said: torch.dtype | torch.device, name: str) -> Callable[[], Any]:
    return lambda: OtherTensors(said, name)


def _is_clock(place: Place) -> bool:
    if any(place.value is getattr(time, name, None) for name in CLOCKS):
        return True
    owner = place.owner
    return place.key in DATES and isinstance(owner, type) and issubclass(owner, datetime.date)


def _other_answers(function: Any, name: str, constants: list[Any]) -> list[Any]:
    """Return what a function of PyTorch's may answer besides what it answers now, [] for any other function."""
    for one, answer in _WITHOUT_MODES:
        if function is one:
            return [answer]
    if function is torch.get_default_dtype:
        return [dtype for dtype in FLOATS if dtype is not torch.get_default_dtype()]
    if function is torch.get_default_device:
        return [torch.device("cuda")]
    if name not in _OF_THE_PROCESS:
        return []
    with suppress(Exception):  # such as the rank in a process that has no group
        answer = function()
        return [one for one in others_of(answer, constants) if type(one) is type(answer)]
    return []


def _may_differ(place: Place) -> bool:
    """True for a function of the standard library that may give another result each time, such as os.path.exists."""
    module = str(getattr(place.value, "__module__", "") or "").partition(".")[0]
    module = {"posixpath": "os", "genericpath": "os", "posix": "os", "nt": "os", "ntpath": "os"}.get(module, module)
    return not isinstance(place.value, type) and module in sys.stdlib_module_names and module not in _SAME_EACH_TIME
