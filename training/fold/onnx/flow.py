"""An affine on its way between a norm and the layers that take it, and how it passes one operation.

Used by `producers`, which goes backward, and by `consumers`, which goes forward; `passing` and `axes` hold the rules.
"""

from dataclasses import dataclass, replace

from onnx import NodeProto

from ..core import Affine
from ..refusals import Refusal, RefusalCode
from .axes import SHAPE_OPERATIONS, across_reshape, across_transpose
from .graph import OnnxGraph
from .norms import AffineOp, Norm
from .passing import require_passing
from .protos import operation

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Flow:
    """What is carried from a norm towards a layer.

    Attributes:
        affine: as the value needs it that was reached last; one channel when a scalar serves every element.
        axis: its channel axis there, None for a scalar.
        changed: the values on the way, which mean something else once the norm is folded.
        absorbed: affine operations on the way, nearest to the norm first, which go with it; backward only.
        joined: the inputs of every Concat on the way; forward only.
    """

    affine: Affine
    axis: int | None
    changed: tuple[str, ...] = ()
    absorbed: tuple[AffineOp, ...] = ()
    joined: tuple[str, ...] = ()

    @classmethod
    def of(cls, norm: Norm) -> "Flow":
        """Return the flow at the norm itself."""
        return cls(norm.affine, None if norm.affine.channels == 1 else norm.axis)

    def reaching(self, value: str) -> "Flow":
        """Return the flow with `value` among those that it changes."""
        return replace(self, changed=(*self.changed, value))

    def across(self, graph: OnnxGraph, node: NodeProto, *, backward: bool) -> "Flow":
        """Return the flow on the other side of `node`.

        Raises:
            Refusal: the affine does not pass, or its axis cannot be followed.
        """
        if operation(node) not in SHAPE_OPERATIONS:
            require_passing(graph, node, self.affine, self.axis)
            return self
        if self.axis is None:
            return self
        if node.op_type != "Transpose":
            affine, axis = across_reshape(graph, node, self.affine, self.axis, backward=backward)
            return replace(self, affine=affine, axis=axis)
        shape = graph.shape(str(node.input[0])) or graph.shape(str(node.output[0]))
        if shape is None:
            raise Refusal(RefusalCode.AXIS, f"Transpose {node.name!r}: the rank of its input is not known")
        return replace(self, axis=across_transpose(node, len(shape), self.axis, backward=backward))


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
