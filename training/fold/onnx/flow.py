"""An affine on its way between a norm and the layers that take it, and how it passes one operation.

Used by `producers`, which goes backward, and by `consumers`, which goes forward; the rules are in `passing`, `axes` and
`selections`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto

from ..core import Affine
from ..refusals import Refusal, RefusalCode
from .axes import SHAPE_OPERATIONS, Axes, across_shape_operation
from .graph import OnnxGraph, Use
from .norms import AffineOp, Norm
from .passing import require_passing
from .protos import operation
from .selections import Selection, selections_by

_MOST_STEPS = 10_000
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Flow:
    """What is carried from a norm towards a layer.

    Attributes:
        affine: as the value needs it that was reached last; one channel when a scalar serves every element.
        axes: where its channels lie there, the last one counting up fastest; () for a scalar, one nearly always.
        changed: the values on the way, which mean something else once the norm is folded.
        absorbed: affine operations on the way, nearest to the norm first, which go with it; backward only.
        joined: the inputs of every Concat on the way; forward only.
    """

    affine: Affine
    axes: Axes
    changed: tuple[str, ...] = ()
    absorbed: tuple[AffineOp, ...] = ()
    joined: tuple[str, ...] = ()

    @classmethod
    def of(cls, norm: Norm) -> "Flow":
        """Return the flow at the norm itself."""
        return cls(norm.affine, () if norm.affine.channels == 1 else norm.axes)

    @property
    def axis(self) -> int | None:
        """The one channel axis, None for a scalar.

        Raises:
            Refusal: axis when the channels lie on several.
        """
        if len(self.axes) > 1:
            raise Refusal(RefusalCode.AXIS, f"the norm runs over the axes {list(self.axes)} together")
        return self.axes[0] if self.axes else None

    def reaching(self, value: str) -> "Flow":
        """Return the flow with `value` among those that it changes."""
        return replace(self, changed=(*self.changed, value))

    def across(self, graph: OnnxGraph, node: NodeProto, *, backward: bool) -> "Flow":
        """Return the flow on the other side of `node`, which is no layer, sum, Concat or selection of channels.

        Raises:
            Refusal: the affine does not pass, or its axes cannot be followed.
        """
        if operation(node) == "Identity":
            return self
        if operation(node) not in SHAPE_OPERATIONS:
            require_passing(graph, node, self.affine, self.axis)
            return self
        affine, axes = across_shape_operation(graph, node, self.affine, self.axes, backward=backward)
        return replace(self, affine=affine, axes=axes)

    def after(self, selection: Selection) -> "Flow":
        """Return the flow at what `selection` copies from the value that this one is at."""
        picks = None if self.axis is None else selection.picks(self.axis)
        if picks is None:
            return self.across(selection.graph, selection.node, backward=False)
        return replace(self, affine=self.affine.pick(picks))

    def before(self, selection: Selection) -> "Flow":
        """Return the flow at the source of `selection`: the identity for the channels that it leaves out.

        Raises:
            Refusal: axis when parts that others read would change, or a channel is copied twice and scaled differently.
        """
        axis, affine = self.axis, self.affine
        picks = None if axis is None else selection.picks(axis)
        if picks is None and selection.makes_other_parts:
            axis = selection.axis
            picks = None if axis is None or self.axes else selection.picks(axis)
            if axis is None or picks is None:
                reason = f"{selection.node.op_type} {selection.node.name!r} does not cut the axis of the norm, and its"
                raise Refusal(RefusalCode.AXIS, f"{reason} other parts are read as well")
            affine = affine.spread(len(picks))
        if axis is None or picks is None:
            return self.across(selection.graph, selection.node, backward=True)
        whole = Affine.identity(int((selection.graph.shape(selection.source) or ())[axis]))
        whole.scale[picks], whole.shift[picks] = affine.scale, affine.shift
        copied = whole.pick(picks)
        if not np.array_equal([copied.scale, copied.shift], [affine.scale, affine.shift]):
            what = f"{selection.node.op_type} {selection.node.name!r} picks a channel twice"
            raise Refusal(RefusalCode.AXIS, f"{what}, for which the norm has two scales or shifts")
        return replace(self, affine=whole, axes=(axis,))

    def touches(self, graph: OnnxGraph, use: Use) -> bool:
        """True when folding changes what this reader of the value reads; a selection may read other channels only."""
        selections = selections_by(graph, use)
        if not selections or len(self.axes) != 1:
            return True
        try:
            picks = [selection.picks(self.axes[0]) for selection in selections]
        except Refusal:
            return True
        is_changed = (self.affine.scale != 1.0) | (self.affine.shift != 0.0)
        return any(one is None or bool(is_changed[one].any()) for one in picks)


@dataclass(frozen=True)
class TargetLayer:
    """A layer and the affine that its weights have to take.

    Attributes:
        layer: one of `LAYERS`.
        flow: as the layer's output (backward) or data input (forward) needs it.
        data_input: forward, which input of the layer carries the data.
    """

    layer: NodeProto
    flow: Flow
    data_input: int = 0


Place = tuple[str, Flow]  # a value and what it needs there


def one_step_more(steps: int) -> int:
    """Return `steps` and one.

    Raises:
        Refusal: unknown-op after very many, where ways part and meet again and again.
    """
    if steps >= _MOST_STEPS:
        reason = f"the ways between the norm and its layers part and meet again, in more than {_MOST_STEPS} steps"
        raise Refusal(RefusalCode.UNKNOWN_OP, reason)
    return steps + 1


def one_per_layer(targets: Iterable[TargetLayer]) -> list[TargetLayer]:
    """Compose what reaches one layer on several ways: each changes other channels, so the order is free.

    Raises:
        Refusal: axis when the ways arrive on different axes, multi-use when affine operations would be taken in twice.
    """
    merged: dict[tuple[int, int], TargetLayer] = {}
    for target in targets:
        key, flow = (id(target.layer), target.data_input), target.flow
        if key in merged:
            one = merged[key].flow
            if one.axes != flow.axes or one.affine.channels != flow.affine.channels:
                layer = f"{target.layer.op_type} {target.layer.name!r}"
                raise Refusal(RefusalCode.AXIS, f"the norm reaches {layer} on two axes")
            if one.absorbed or flow.absorbed:  # what both ways share would count twice
                reason = f"the norm reaches {target.layer.name!r} on two ways, with affine operations on them"
                raise Refusal(RefusalCode.MULTI_USE, reason)
            flow = Flow(
                one.affine.then(flow.affine),
                one.axes,
                (*one.changed, *flow.changed),
                joined=(*one.joined, *flow.joined),
            )
        merged[key] = TargetLayer(target.layer, flow, target.data_input)
    return list(merged.values())
