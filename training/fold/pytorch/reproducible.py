"""The first operation that gives another result when a model is run twice from the same random state.

Used by `model_proof` where a comparison fails: a network that is not a function of its input cannot be judged.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_UNWRITTEN = ("empty", "set_")  # what is not written yet holds anything


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records name and sum of every operation's results."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.records: list[tuple[str, tuple[str, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        if isinstance(func, HigherOrderOperator):
            return results
        tensors = [value for value in tree_leaves(results) if isinstance(value, Tensor)]
        if not _computes_nothing(func):
            self.records.append((func._schema.name, tuple(_sum(tensor) for tensor in tensors)))
        return results


def _computes_nothing(func: Any) -> bool:
    """True for memory that nothing was written into yet, and for views, of such memory too."""
    returned = [one.alias_info for one in func._schema.returns]
    is_view = bool(returned) and all(alias is not None and not alias.is_write for alias in returned)
    return is_view or any(word in func._schema.name for word in _UNWRITTEN)


def first_difference(run: Callable[[], Any]) -> str:
    """Return the operation from which two runs differ, such as "aten::rand (operation 4)"; "" when none does."""
    traces = _Trace(), _Trace()
    for trace in traces:
        with trace:
            run()
    for number, (one, other) in enumerate(zip(traces[0].records, traces[1].records, strict=False)):
        if one != other:
            return f"{one[0]} (operation {number})"
    return "" if len(traces[0].records) == len(traces[1].records) else "the number of its operations"


def _sum(tensor: Tensor) -> str:
    if tensor.is_meta or not tensor.numel():
        return ""
    total = tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64).sum()
    return str(total.item())  # as text, in which NaN equals NaN
