"""Where an ONNX graph decides: its If nodes, and comparisons of sizes.

Used by `model_proof` when any two models are compared, whose difference may lie in what no run has reached: a branch
that is taken from a batch of seven on. It says at which sizes a decision may turn, which ways a run has taken, and
writes a model in which a branch is taken by force.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from ..refusals import Refusal
from .constants import read_constant
from .graph import OnnxGraph
from .operators import CONTROL_FLOW, NEVER_CONSTANT, SHAPE_ONLY
from .protos import Values, label, operation

_COMPARED = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"})
_TURNING = _COMPARED | {"Clip", "Loop", "Max", "Min", "Mod", "Relu", "Sign"}  # results that bend at a size
_LARGEST = 4096  # size at which a decision is looked for
_FEW = 16  # elements of a constant that may be such a size
_MOST = 12  # sizes that are tried

Way = tuple[int, bool]  # the number of an If, and what its condition is


@dataclass
class Decisions:
    """The decisions of one model, and the ways that its runs have taken.

    Attributes:
        count: how many If nodes there are.
        branches: number -> condition of each If in the main graph that can go either way.
        hidden: numbers of the If nodes inside bodies, whose conditions no run tells.
        comparisons: comparisons of sizes with numbers that a size may have.
        steps: how often each Loop of the main graph runs, where that is no constant.
        sizes: at which, or beside which, one of them may turn, a few.
        seen: condition or comparison -> the values that it had.
    """

    count: int = 0
    branches: dict[int, str] = field(default_factory=dict)
    hidden: set[int] = field(default_factory=set)
    comparisons: set[str] = field(default_factory=set)
    steps: set[str] = field(default_factory=set)
    sizes: set[int] = field(default_factory=set)
    seen: dict[str, set[bool]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: onnx.ModelProto) -> "Decisions":
        """Return the decisions of a model without local functions."""
        found, main = cls(), {id(node) for node in model.graph.node}
        ifs = [node for node, _ in _ifs(model.graph)]
        if not any(operation(node) in CONTROL_FLOW | SHAPE_ONLY for node in model.graph.node):
            return found
        graph, found.count = OnnxGraph(model), len(ifs)
        found.hidden = {number for number, node in enumerate(ifs) if id(node) not in main}
        conditions = {number: str(node.input[0]) for number, node in enumerate(ifs)}
        found.branches = {
            number: name
            for number, name in conditions.items()
            if number not in found.hidden and name not in graph.constants
        }
        loops = [node for node in graph.nodes if operation(node) == "Loop"]
        found.steps = {str(node.input[0]) for node in loops if node.input[0]} - graph.constants
        about = _about_sizes(graph)
        for node in graph.nodes:
            numbers = _numbers_behind(graph, node, about) if operation(node) in _TURNING else set()
            found.sizes |= {number + by for number in numbers for by in (-1, 0, 1)} - {0}
            if numbers and operation(node) in _COMPARED and node.output[0] in about:
                found.comparisons.add(str(node.output[0]))
        return found

    @property
    def wanted(self) -> set[str]:
        """The values that tell which way a run went."""
        return {*self.branches.values(), *self.comparisons, *self.steps}

    def note(self, values: Mapping[str, Values]) -> None:
        """Take note of what a run made of `wanted`."""
        for name in self.wanted & values.keys():
            self.seen.setdefault(name, set()).update(map(bool, np.ravel(values[name])))

    def untaken(self) -> set[Way]:
        """Return the ways that no run is known to have taken."""
        both = (False, True)
        ways = {(n, way) for n, name in self.branches.items() for way in both if way not in self.seen.get(name, ())}
        return ways | {(number, way) for number in self.hidden for way in both}

    def unturned(self) -> list[str]:
        """Return the comparisons of sizes that came out alike in every run, and the steps of loops that never ran."""
        alike = {name for name in self.comparisons if len(self.seen.get(name, ())) < 2}
        return sorted(alike | {name for name in self.steps if True not in self.seen.get(name, ())})


def sizes_to_try(decisions: Iterable[Decisions]) -> list[int]:
    """Return the sizes at which a decision of one of these models may turn, the smallest ones of too many."""
    return sorted({size for one in decisions for size in one.sizes})[:_MOST]


def name_of_way(model: onnx.ModelProto, way: Way) -> tuple[str, str]:
    """Return what the report calls the If of `way`, and its branch in words."""
    node, _ = list(_ifs(model.graph))[way[0]]
    return label(node), f"the {'then' if way[1] else 'else'} branch of {label(node)!r}"


def with_way(model: onnx.ModelProto, way: Way) -> onnx.ModelProto:
    """Return a copy of `model` that takes this branch, and those around it, whatever the conditions are."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = list(_ifs(copy.graph))
    for number, value in (*nodes[way[0]][1], way):
        name = f"forced condition {number}"
        nodes[number][0].input[0] = name
        copy.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return copy


def _ifs(graph: onnx.GraphProto) -> list[tuple[NodeProto, tuple[Way, ...]]]:
    """Return the If nodes of a graph and of the bodies in it, each with the ways that lead to it."""
    found: list[tuple[NodeProto, tuple[Way, ...]]] = []

    def collect(graph: onnx.GraphProto, around: tuple[Way, ...]) -> None:
        for node in graph.node:
            number = len(found)
            if operation(node) == "If":
                found.append((node, around))
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    is_way = operation(node) == "If"
                    collect(attribute.g, (*around, (number, attribute.name == "then_branch")) if is_way else around)

    collect(graph, ())
    return found


def _about_sizes(graph: OnnxGraph) -> set[str]:
    """Return the values that follow from free sizes and constants alone."""
    about: set[str] = set()
    for node in graph.nodes:
        reads = {name for name in node.input if name}
        starts = operation(node) in SHAPE_ONLY and node.output[0] not in graph.constants
        if starts or (operation(node) not in NEVER_CONSTANT and reads & about and reads <= about | graph.constants):
            about.update(name for name in node.output if name)
    return about


def _numbers_behind(graph: OnnxGraph, node: NodeProto, about: set[str]) -> set[int]:
    """Return the numbers, those that a size may have, that go into `node` together with sizes."""
    pending = [str(name) for name in node.input if name]
    numbers: set[int] = set()
    if not about & {*pending}:
        return numbers
    visited: set[str] = set()
    while pending:
        name = pending.pop()
        maker = graph.producer(name)
        if name in visited:
            continue
        visited.add(name)
        if name in about and maker is not None and operation(maker) not in SHAPE_ONLY:
            pending += [str(one) for one in maker.input if one]
        elif name in graph.constants:
            numbers |= _sizes_in(graph, name)
    return numbers


def _sizes_in(graph: OnnxGraph, name: str) -> set[int]:
    try:
        constant = read_constant(graph, name)
    except Refusal:  # callers may replace it
        return set()
    if constant is None or constant.values.size > _FEW or constant.values.dtype.kind not in "iuf":
        return set()
    return {int(value) for value in constant.values.reshape(-1) if 1 <= value <= _LARGEST}
