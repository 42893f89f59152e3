"""The new parameters of every layer in a placement: exact in float64, then rounded once to the layer's own dtype.

After `placement`, before either way of writing the result. Layers that share their weights share one `Change`.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.fx import Node

from ..core import (
    Array,
    Layout,
    border_kernel,
    fold_consumer,
    fold_parallel,
    fold_producer,
    out_channels,
)
from ..failures import during
from ..refusals import Refusal
from ..rounding import max_ulp, round_once
from .graph import TorchGraph, dtype, shape
from .layers import Layer
from .norms import Norm
from .placement import LayerAffines, Placement


@dataclass
class Value:
    """One parameter after folding.

    Attributes:
        exact: float64.
        dtype: name without "torch.", such as "float32".
        max_ulp: largest rounding error in units in the last place, at most 0.5.

    Raises:
        Refusal: a value does not fit the dtype.
    """

    exact: Array
    dtype: str
    max_ulp: float = field(init=False)

    def __post_init__(self) -> None:
        self.max_ulp = max_ulp(self.stored, self.exact, self.dtype)

    @property
    def stored(self) -> npt.NDArray[Any]:
        """The values rounded once, in `dtype` (float32 for bfloat16); computed anew, for the model holds them too."""
        return round_once(self.exact, self.dtype)


@dataclass
class Change:
    """The new weights of one layer, or of several calls that share them.

    Attributes:
        layers: the calls.
        weight: None when the layer has a bias alone.
        bias: None when there was none and none is needed.
        border: correction for zero padding, (out, 1, *kernel), or (1, out, *kernel) transposed; None nearly always.
        cancellation: largest (|s| |b| + |t|) / |new bias|.
    """

    layers: list[Layer]
    weight: Value | None
    bias: Value | None
    border: Value | None = None
    cancellation: float = 1.0

    @property
    def max_ulp(self) -> float:
        """Largest rounding error of any of its parameters."""
        return max((value.max_ulp for value in (self.weight, self.bias, self.border) if value is not None), default=0.0)


def compute_changes(graph: TorchGraph, placement: Placement) -> tuple[list[Change], dict[Norm, Refusal]]:
    """Return the new parameters for what each layer of the placement takes, one entry per set of shared weights.

    Returns:
        The parameters, and the norms that must stay because theirs do not fit the layer's dtype, with the reason.
    """
    made: dict[tuple[Node | None, ...], Change] = {}
    misfits: dict[Norm, Refusal] = {}
    for affines in placement.affines.values():
        own = () if _is_plain(affines.layer) else (affines.layer.node,)
        key = (affines.layer.weight, affines.layer.bias, *own)
        try:
            if key in made:
                made[key].layers.append(affines.layer)
            else:
                with during(f"computing the weights of '{affines.layer.node.name}'"):
                    made[key] = _change(graph, affines)
        except Refusal as refusal:
            misfits.update(dict.fromkeys(_norms_in(placement, affines.layer), refusal))
    return list(made.values()), misfits


def _norms_in(placement: Placement, layer: Layer) -> list[Norm]:
    return [norm for norm, (layers, _) in placement.folded.items() if any(one.node is layer.node for one in layers)]


def _is_plain(layer: Layer) -> bool:
    """True when the layer's tensors are the model's own; those that it computes are written anew for each call."""
    return all(tensor is None or tensor.op == "placeholder" for tensor in (layer.weight, layer.bias))


def _change(graph: TorchGraph, affines: LayerAffines) -> Change:
    layer = affines.layer
    bias = None if layer.bias is None else graph.constant(layer.bias).numpy()
    if layer.weight is None:
        return _addend(affines, bias)
    bias = None if bias is None else bias.reshape(-1)
    weight = graph.constant(layer.weight).numpy()
    kind = str(dtype(layer.weight)).removeprefix("torch.")
    new_weight, new_bias, border = _folded(affines, weight, bias)
    keeps_none = bias is None and not np.any(new_bias)
    return Change(
        [layer],
        Value(new_weight, kind),
        None if keeps_none else Value(new_bias, kind),
        None if border is None else Value(border, kind),
        _cancellation(affines, bias, new_bias),
    )


def _addend(affines: LayerAffines, addend: Array | None) -> Change:
    """Return the new values of a vector or map that is added: s v + t, along the channel axis of the sum."""
    layer, after = affines.layer, affines.after
    assert addend is not None
    assert layer.bias is not None
    assert after is not None
    kind = str(dtype(layer.bias)).removeprefix("torch.")
    sizes = [-1] + [1] * (len(shape(layer.node)) - 1 - layer.out_axis)
    scale, shift = after.scale.reshape(sizes), after.shift.reshape(sizes)
    moved = scale * addend + shift
    ratio = (abs(scale * addend) + abs(shift)) / np.where(moved == 0, np.inf, abs(moved))
    moved = moved.reshape(addend.shape) if moved.size == addend.size else moved
    return Change([layer], None, Value(moved, kind), None, float(np.max(ratio, initial=1.0)))


def _folded(affines: LayerAffines, weight: Array, bias: Array | None) -> tuple[Array, Array, Array | None]:
    layer, border = affines.layer, None
    new_weight: Array = weight
    new_bias: Array = np.zeros(out_channels(weight, layer.layout, layer.groups)) if bias is None else bias
    if affines.before is not None:
        inside = affines.before
        if layer.borders and layer.layout in (Layout.CONV, Layout.CONV_TRANSPOSE) and np.any(inside.shift):
            border = border_kernel(weight, inside, layer.groups, layer.layout)
            inside = inside.without_shift()
        new_weight, new_bias = fold_consumer(new_weight, new_bias, inside, layer.layout, layer.groups)
    if affines.after is not None:
        new_weight, new_bias = fold_producer(new_weight, new_bias, affines.after, layer.layout, layer.groups)
        if border is not None:
            border = fold_producer(border, None, affines.after.without_shift(), layer.layout)[0]
    if affines.parallel is not None:
        parallel = affines.parallel.spread(len(new_bias))
        new_weight, new_bias = fold_parallel(new_weight, new_bias, parallel, layer.groups)
    return new_weight, new_bias, border


def _cancellation(affines: LayerAffines, bias: Array | None, new_bias: Array) -> float:
    if affines.after is None:
        return 1.0
    old = np.zeros_like(new_bias) if bias is None else np.abs(bias)
    size = old * np.abs(affines.after.scale) + np.abs(affines.after.shift)
    return float(np.max(size / np.where(new_bias == 0, np.inf, np.abs(new_bias)), initial=1.0))
