"""The normalisation of a model's input, (x * scale - mean) / std, as one more norm to fold.

Used by `fold` and `fold_input`. It stands before the graph instead of in it, so it is planned and computed like any
other norm and its parameters are rounded once together with theirs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import FoldError
from ..core import Affine, Array
from .float64 import Inputs
from .graph import TorchGraph, shape
from .norms import Norm

Numbers = float | Sequence[float]


class CastInput(nn.Module):
    """A model after a cast of its first input, so that it takes uint8 pixels as they are.

    Args:
        model: takes floating-point values in its parameters' dtype.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def forward(self, x: Tensor, *rest: Any) -> Any:
        """Return what the model gives for `x` of any dtype, same shape."""
        return self.model(x.to(self._dtype), *rest)


@dataclass(frozen=True)
class InputNormalisation:
    """(x * scale - mean) / std on the model's first input, each a number or one number per channel (axis 1).

    Attributes:
        scale: what the raw value is multiplied by first, such as 1/255.
        mean: subtracted after that.
        std: divided by at last; not zero.
    """

    scale: Numbers = 1.0
    mean: Numbers = 0.0
    std: Numbers = 1.0

    def __post_init__(self) -> None:
        for name, value in (("scale", self.scale), ("mean", self.mean), ("std", self.std)):
            try:
                numbers = np.asarray(value, np.float64)
            except (TypeError, ValueError):
                numbers = np.asarray(np.nan)
            if numbers.ndim > 1 or not np.all(np.isfinite(numbers)):
                raise FoldError(f"{name} is {value!r}; expected a finite number, or one for each channel")
            if name != "mean" and np.any(numbers == 0):
                raise FoldError(f"{name} is {value!r}; expected no zero: it would erase the input")

    @property
    def affine(self) -> Affine:
        """The normalisation as a float64 affine, with one channel when all numbers are scalars."""
        scale, mean, std = (np.asarray(v, np.float64).reshape(-1) for v in (self.scale, self.mean, self.std))
        try:
            factor, shift = np.broadcast_arrays(scale / std, -mean / std)
        except ValueError as err:
            sizes = (scale.size, mean.size, std.size)
            raise FoldError(f"scale, mean and std have {sizes} channels; expected equal numbers, or one") from err
        return Affine(np.array(factor), np.array(shift))

    def norm(self, graph: TorchGraph) -> Norm:
        """Return the normalisation as a norm on the graph's first input.

        Raises:
            FoldError: the model has no float input, or another number of channels.
        """
        affine = self.affine
        if not graph.user_inputs:
            raise FoldError("the model takes no tensor; there is no input to normalise")
        source = graph.user_inputs[0]
        sizes = shape(source)
        if affine.channels > 1 and (len(sizes) < 2 or sizes[1] != affine.channels):
            known = ", ".join(str(size) if isinstance(size, int) else "any" for size in sizes)
            raise FoldError(f"mean and std have {affine.channels} channels, the input has shape ({known})")
        axis = None if affine.channels == 1 else 1
        magnitude = Affine(abs(affine.scale), abs(affine.shift))
        return Norm("input", source, source, (), axis, affine, magnitude)

    def apply(self, inputs: Inputs) -> Inputs:
        """Return the inputs with the first one normalised."""
        return _with_first(inputs, self._normalised)

    def invert(self, inputs: Inputs) -> Inputs:
        """Return raw inputs that normalise to these, in the dtype of these."""
        return _with_first(inputs, self._raw)

    def _normalised(self, value: Tensor) -> Tensor:
        scale, shift = self._columns(value)
        return value * scale + shift

    def _raw(self, value: Tensor) -> Tensor:
        scale, shift = self._columns(value.double())
        return ((value.double() - shift) / scale).to(value.dtype)

    def _columns(self, reference: Tensor) -> tuple[Tensor, Tensor]:
        def column(values: Array) -> Tensor:
            tensor = torch.from_numpy(values).to(reference)
            return tensor.reshape(()) if values.size == 1 else tensor.reshape([1, -1] + [1] * (reference.ndim - 2))

        return column(self.affine.scale), column(self.affine.shift)


def _with_first(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Return the inputs with the first tensor changed."""
    if isinstance(inputs, Mapping):
        first = next(name for name, value in inputs.items() if isinstance(value, Tensor))
        return {**inputs, first: change(inputs[first])}
    return (change(inputs[0]), *inputs[1:])
