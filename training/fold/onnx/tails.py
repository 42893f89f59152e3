"""What the outputs of a graph were before the saturating operations at its end.

Used by `model_proof`. Behind a Sigmoid that has come to 1, or a Relu that has come to 0, different models are equal; so
the values before are compared as well.
"""

import onnx

from .operators import SATURATING
from .protos import operation

_LONGEST = 8  # operations at the end of a graph that are looked back over
# fmt: off
_PASSED = frozenset({
    "Add", "Cast", "Concat", "Div", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Mul", "Neg", "ReduceMean",
    "ReduceSum", "Reshape", "Slice", "Split", "Squeeze", "Sub", "Sum", "Transpose", "Unsqueeze",
})
# fmt: on


def tail_of(model: onnx.ModelProto, output: str) -> list[str]:
    """Return the values before the saturating operations that `output` comes from, nearest first."""
    producers = {name: node for node in model.graph.node for name in node.output}
    before: list[str] = []
    reached = [output]
    for _ in range(_LONGEST):
        nodes = [producers[name] for name in dict.fromkeys(reached) if name in producers]
        before += [str(node.input[0]) for node in nodes if operation(node) in SATURATING and node.input]
        reached = [name for node in nodes if operation(node) in SATURATING | _PASSED for name in node.input if name]
    return [name for name in dict.fromkeys(before) if name in producers]
