"""Puts the nodes of an ONNX graph into an order in which each reads only what was made before, as the format wants it.

Before everything else in the ONNX flow. Runtimes sort for themselves, and some converters to float16 leave graphs that
only they accept.
"""

import heapq
from collections.abc import Iterator
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter

import onnx

from .protos import captures, subgraphs


def with_nodes_in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model`, or a copy with the nodes sorted of each graph in which one reads what a later one makes.

    A cycle stays as it is, for ONNX's check to name.
    """
    if all(_is_in_order(graph) for graph in _graphs(model.graph)):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for graph in _graphs(copy.graph):
        _sort(graph)
    return copy


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and the bodies in it."""
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from _graphs(body)


def _is_in_order(graph: onnx.GraphProto) -> bool:
    return all(maker < i for i, needed in _reads(graph).items() for maker in needed)


def _reads(graph: onnx.GraphProto) -> dict[int, set[int]]:
    """Return for each node, by its number, those that make what it and its bodies read."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    names = ((i, {*node.input, *captures(node)}) for i, node in enumerate(graph.node))
    return {i: {makers[name] for name in read if name in makers} for i, read in names}


def _sort(graph: onnx.GraphProto) -> None:
    with suppress(CycleError):
        order = _earliest_first(_reads(graph))
        nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
        del graph.node[:]
        graph.node.extend(nodes)


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
