"""Puts the nodes of an ONNX graph into an order in which each reads only what was made before, as the format wants it.

Before everything else in the ONNX flow. Runtimes sort for themselves, and some converters to float16 leave graphs that
only they accept.
"""

import heapq
from graphlib import CycleError, TopologicalSorter

import onnx

from .protos import captures


def with_nodes_in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model`, or a copy with the main graph's nodes sorted when one reads what a later one makes.

    A cycle stays as it is, for ONNX's check to name.
    """
    nodes = model.graph.node
    makers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    reads = {i: {makers[n] for n in (*node.input, *captures(node)) if n in makers} for i, node in enumerate(nodes)}
    if all(maker < i for i, needed in reads.items() for maker in needed):
        return model
    try:
        order = _earliest_first(reads)
    except CycleError:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes[i] for i in order)
    return copy


def _earliest_first(reads: dict[int, set[int]]) -> list[int]:
    """Return the nodes' numbers, each as early as its place and what it reads allow."""
    sorter = TopologicalSorter(reads)
    sorter.prepare()
    ready: list[int] = []
    order: list[int] = []
    while sorter.is_active():
        for i in sorter.get_ready():
            heapq.heappush(ready, i)
        order.append(heapq.heappop(ready))
        sorter.done(order[-1])
    return order
