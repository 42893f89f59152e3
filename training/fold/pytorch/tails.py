"""What the outputs of a network were before the saturating operations at its end.

Used by `model_proof`. Behind a sigmoid that has come to 1, or a ReLU that has come to 0, different networks are
equal; so the values before are compared as well, as are those before a result of whole numbers or truth values. They
are recorded while the network runs, whatever its form. Which of its operations are at its end is known only when it has
run. So large values are not kept on suspicion: the run is then repeated, and the few that are wanted are kept.
"""

from collections.abc import Collection, MutableMapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

_LONGEST = 8  # operations at the end of a network that are looked back over
_MOST = 2**24  # bytes that are kept on suspicion
# fmt: off
_SATURATES = {
    "sigmoid", "hardsigmoid", "tanh", "hardtanh", "relu", "relu6", "clamp", "clamp_min", "clamp_max", "_softmax",
    "_log_softmax", "log_sigmoid_forward", "softplus", "elu", "gelu", "silu", "mish", "hardswish", "leaky_relu",
    "threshold", "exp", "erf", "argmax", "argmin", "max", "min", "topk", "sort", "argsort", "round",
    "floor", "ceil", "sign", "gt", "ge", "lt", "le", "eq", "ne", "nan_to_num", "softshrink", "hardshrink", "prelu",
    "softmax", "log_softmax", "fake_quantize_per_tensor_affine_cachemask", "fake_quantize_per_channel_affine_cachemask",
}
_SHIFTS = {
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "squeeze", "unsqueeze", "clone", "detach", "alias",
    "_to_copy", "mul", "div", "add", "sub", "neg", "rsub",
}
_PASSES = _SHIFTS | {
    "expand", "select", "slice", "split", "split_with_sizes", "unbind", "cat", "stack", "index", "gather", "flip",
    "mean", "sum", "amax", "amin",
}
# fmt: on


@dataclass(eq=False)
class _Origin:
    """What made a tensor.

    Attributes:
        number: of the operation, among those that saturate or pass values on.
        parents: origins of the operands, None for those that another kind of operation made.
        operand: the first operand, when it is kept.
        saturates: the operation does.
        shifts: it shifts or scales a single operand.
    """

    number: int
    parents: tuple["_Origin | None", ...]
    operand: Tensor | None
    saturates: bool
    shifts: bool


class TailRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers, for each tensor that lives, the last few saturating operations that led to it.

    Args:
        wanted: the numbers of the operations whose first operand is kept; None for all, as long as they are small.

    Attributes:
        count: operations that were looked at.
        has_overflown: the operands were too large to keep them all.
    """

    def __init__(self, wanted: Collection[int] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._wanted = wanted
        self._origins: MutableMapping[Tensor, _Origin] = WeakIdKeyDictionary()
        self._keeping: WeakSet[_Origin] = WeakSet()
        self._kept = 0  # bytes, at most
        self.count = 0
        self.has_overflown = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, is_in_place = _name(func)
        is_passed = name in _SATURATES or name in _PASSES
        operands = _tensors(args)
        shifts = name in _SHIFTS and len(operands) == 1
        operand = operands[0] if operands and (name in _SATURATES or shifts) and self._is_kept(operands[0]) else None
        operand = operand.clone() if operand is not None and is_in_place else operand
        parents = tuple(self._origins.get(one) for one in operands) if is_passed else ()
        results = func(*args, **(kwargs or {}))
        made = _tensors(results)
        counts = not is_in_place and _are_counted(operands, made)
        if not is_passed and not counts:
            return results
        if counts and operand is None and self._is_kept(operands[0]):
            operand = operands[0]
        self.count += 1
        parents = parents or tuple(self._origins.get(one) for one in operands)
        origin = _Origin(self.count, parents, operand, name in _SATURATES or counts, shifts)
        if operand is not None:
            self._keeping.add(origin)
        for result in made:
            self._note(result, origin)
        return results

    def before(self, output: Tensor) -> list[Tensor]:
        """Return the values before the last saturating operations that `output` comes from, nearest first.

        A shift or a factor just before hides differences as well, so the value before that is among them; what lies
        before any other operation may have been changed by a fold.
        """
        operands = [origin.operand for origin in self._tail(output)]
        return list({id(operand): operand for operand in operands if operand is not None}.values())

    def numbers(self, output: Tensor) -> list[int]:
        """Return the numbers of the operations whose operands `before` returns, kept or not."""
        return [origin.number for origin in self._tail(output)]

    def _tail(self, output: Tensor) -> list[_Origin]:
        tail: dict[int, _Origin] = {}
        pending, visited = [(self._origins.get(output), False)], set()
        while pending:
            origin, is_tail = pending.pop(0)
            if origin is None or id(origin) in visited:
                continue
            visited.add(id(origin))
            if origin.saturates or (is_tail and origin.shifts):
                tail[origin.number] = origin
                pending.extend((parent, True) for parent in origin.parents[:1])
            elif not is_tail:
                pending.extend((parent, False) for parent in origin.parents)
        return list(tail.values())

    def _is_kept(self, operand: Tensor) -> bool:
        """True when the operand of the next operation counted is kept; lets all go when that would be too much."""
        if operand.layout is not torch.strided:
            return False
        if self._wanted is not None:
            return self.count + 1 in self._wanted
        self._kept += operand.nbytes
        if self._kept > _MOST:
            self._kept = operand.nbytes + sum(one.operand.nbytes for one in self._keeping if one.operand is not None)
        if self._kept > _MOST and not self.has_overflown:
            self.has_overflown = True
            for origin in list(self._keeping):
                origin.operand = None
        return not self.has_overflown

    def _note(self, tensor: Tensor, origin: _Origin) -> None:
        self._origins[tensor] = origin
        oldest = [origin]
        for _ in range(_LONGEST):
            known = {id(parent): parent for one in oldest for parent in one.parents if parent is not None}
            oldest = list(known.values())
            if not oldest:
                return
        for one in oldest:  # what lies further back is let go, with the memory that it holds
            one.operand, one.parents = None, ()


@cache
def _name(func: Any) -> tuple[str, bool]:
    """Return the name of an operation without the mark of one that works in place, and whether it does."""
    name = func._schema.name.removeprefix("aten::")
    is_in_place = name.endswith("_") and not name.endswith("__")
    return (name.removesuffix("_") if is_in_place else name), is_in_place


def _tensors(values: Any) -> list[Tensor]:
    """Return the tensors among arguments or results of an operation, which holds them in lists and tuples at most."""
    if isinstance(values, Tensor):
        return [values]
    if not isinstance(values, list | tuple):
        return []
    return [tensor for value in values if isinstance(value, Tensor | list | tuple) for tensor in _tensors(value)]


def _are_counted(operands: list[Tensor], made: list[Tensor]) -> bool:
    """True when whole numbers or truth values are made of others, by whatever operation."""
    if not operands or not made or not (operands[0].is_floating_point() or operands[0].is_complex()):
        return False
    return not any(result.is_floating_point() or result.is_complex() for result in made)
