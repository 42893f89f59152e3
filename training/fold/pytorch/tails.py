"""What the outputs of a network were before the saturating operations at its end.

Used by `model_proof`. Behind a sigmoid that has come to 1, or a ReLU that has come to 0, different networks are
equal; so the values before are compared as well. They are recorded while the network runs, whatever its form.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

_LONGEST = 8  # operations at the end of a network that are looked back over
# fmt: off
_SATURATES = {
    "sigmoid", "hardsigmoid", "tanh", "hardtanh", "relu", "relu6", "clamp", "clamp_min", "clamp_max", "_softmax",
    "_log_softmax", "log_sigmoid_forward", "softplus", "elu", "gelu", "silu", "mish", "hardswish", "leaky_relu",
    "threshold", "exp", "erf", "argmax", "argmin", "max", "min", "topk", "sort", "argsort", "round",
    "floor", "ceil", "sign", "gt", "ge", "lt", "le", "eq", "ne", "nan_to_num", "softshrink", "hardshrink", "prelu",
    "softmax", "log_softmax",
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


@dataclass
class _Origin:
    """What made a tensor: the operands, and whether the operation saturates, or shifts a single operand."""

    operands: tuple[Tensor, ...]
    saturates: bool
    shifts: bool


class TailRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers, for each tensor that lives, the last few saturating operations that led to it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._origins: MutableMapping[Tensor, _Origin] = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        is_in_place = name.endswith("_") and not name.endswith("__")
        name = name.removesuffix("_") if is_in_place else name
        saturates = name in _SATURATES
        if not saturates and name not in _PASSES:
            return func(*args, **(kwargs or {}))
        operands = [value for value in torch.utils._pytree.tree_leaves(args) if isinstance(value, Tensor)]
        if is_in_place:
            origin = self._origins.get(operands[0])
            operands[0] = operands[0].clone()
            self._note(operands[0], origin)
        results = func(*args, **(kwargs or {}))
        origin = _Origin(tuple(operands), saturates, name in _SHIFTS and len(operands) == 1)
        for result in torch.utils._pytree.tree_leaves(results):
            if isinstance(result, Tensor):
                self._note(result, origin)
        return results

    def before(self, output: Tensor) -> list[Tensor]:
        """Return the values before the last saturating operations that `output` comes from, nearest first.

        A shift or a factor just before hides differences as well, so the value before that is among them; what lies
        before any other operation may have been changed by a fold.
        """
        tails: dict[int, Tensor] = {}
        pending, visited = [(output, False)], set()
        while pending:
            tensor, is_tail = pending.pop(0)
            origin = self._origins.get(tensor)
            if origin is None or id(tensor) in visited:
                continue
            visited.add(id(tensor))
            if origin.saturates or (is_tail and origin.shifts):
                tails.update((id(operand), operand) for operand in origin.operands[:1])
                pending.extend((operand, True) for operand in origin.operands[:1])
            elif not is_tail:
                pending.extend((operand, False) for operand in origin.operands)
        return list(tails.values())

    def _note(self, tensor: Tensor, origin: _Origin | None) -> None:
        if origin is None:
            return
        self._origins[tensor] = origin
        oldest = [origin]
        for _ in range(_LONGEST):
            known = (self._origins.get(operand) for one in oldest for operand in one.operands)
            oldest = [one for one in known if one is not None]
        for one in oldest:  # what lies further back is let go, with the memory that it holds
            one.operands = ()
