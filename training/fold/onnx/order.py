"""Puts the nodes of an ONNX graph into an order in which each reads only what was made before, as the format wants it.

Before everything else in the ONNX flow. Runtimes sort for themselves, and some converters to float16 leave graphs that
only they accept.
"""

import onnx
from onnx import NodeProto

from .protos import captures


def with_nodes_in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model`, or a copy with the main graph's nodes sorted when one reads what a later one makes.

    A cycle stays as it is, for ONNX's check to name.
    """
    nodes = list(model.graph.node)
    order = _order(nodes)
    if order == list(range(len(nodes))):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes[i] for i in order)
    return copy


def _order(nodes: list[NodeProto]) -> list[int]:
    """Return the nodes' numbers, each as early as its place and what it reads allow."""
    makers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    order: list[int] = []
    state = [0] * len(nodes)  # 0 not seen, 1 waiting for what it reads, 2 placed
    for start in range(len(nodes)):
        pending = [start]
        while pending:
            i = pending[-1]
            reads = () if state[i] else (*nodes[i].input, *sorted(captures(nodes[i])))
            missing = [makers[name] for name in reads if name in makers and state[makers[name]] == 0]
            if state[i] == 0 and missing:
                state[i] = 1
                pending += [m for m in reversed(missing) if m != i]
                continue
            pending.pop()
            if state[i] != 2:
                state[i] = 2
                order.append(i)
    return order
