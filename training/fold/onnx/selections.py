"""Operations that pick channels, by index, as a slice or as a part, as a list of what they pick.

Used by `flow`. A channel shuffle by index, a flip and a half of the channels are all selections; each channel of the
result is a copy of one channel of the input.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from ..refusals import Refusal, RefusalCode
from .axes import axis_of_node
from .constants import integers_at
from .graph import OnnxGraph, Use
from .protos import attributes, operation

SELECTIONS = frozenset({"Gather", "GatherND", "SequenceAt", "Slice", "Split"})

Picks = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """One value that copies parts of another.

    Attributes:
        graph: holds both.
        node: makes `result`.
        source: what the parts are copied from.
        result: one output of the node.
        makes_other_parts: other values that are read copy other parts of `source` by the same node.
    """

    graph: OnnxGraph
    node: NodeProto
    source: str
    result: str
    makes_other_parts: bool = False

    @property
    def axis(self) -> int | None:
        """The axis along which it selects; None for a Slice, which may do so along several."""
        if operation(self.node) == "Slice":
            return None
        if operation(self.node) == "GatherND":
            return int(attributes(self.node).get("batch_dims", 0))
        return axis_of_node(self.graph, self._splitting_node())

    def picks(self, axis: int) -> Picks | None:
        """Return which channel of `source` each channel of `result` copies, None when it selects along others only.

        Raises:
            Refusal: axis when it may select along `axis`, and what is not known.
        """
        shape = self.graph.shape(self.source)
        if shape is None or not isinstance(shape[axis], int):
            raise self._unknown("selects from channels of unknown number")
        channels = np.arange(int(shape[axis]))
        if operation(self.node) == "Slice":
            return self._sliced(channels, axis, len(shape))
        if self.axis != axis:
            return None
        if operation(self.node) == "Split":
            sizes = [self._size(str(name), axis) for name in self.node.output]
            start = sum(sizes[: list(self.node.output).index(self.result)])
            return channels[start : start + self._size(self.result, axis)]
        return self._part_of_sequence(channels) if operation(self.node) == "SequenceAt" else self._gathered(channels)

    def _gathered(self, channels: Picks) -> Picks:
        indices, shape = integers_at(self.graph, self.node, 1), self.graph.shape(self.node.input[1])
        is_list = shape is not None and shape[1:] == ((1,) if operation(self.node) == "GatherND" else ())
        if indices is None or not is_list:
            raise self._unknown("picks channels that are not known, or a single one")
        return channels[np.array(indices, np.int64)]

    def _part_of_sequence(self, channels: Picks) -> Picks:
        node = self._splitting_node()
        sizes, index = integers_at(self.graph, node, 1), integers_at(self.graph, self.node, 1)
        if sizes is None or index is None or not attributes(node).get("keepdims", 1):
            raise self._unknown("picks channels that are not known, or a single one")
        is_one_size = self.graph.shape(node.input[1]) == ()
        ends = np.arange(sizes[0], len(channels), sizes[0]) if is_one_size else np.cumsum(sizes)[:-1]
        return np.split(channels, ends)[index[0]]

    def _sliced(self, channels: Picks, axis: int, rank: int) -> Picks | None:
        fields, names = attributes(self.node), ("starts", "ends", "axes", "steps")
        if self.graph.opset < 10:
            starts, ends, axes, steps = (fields.get(name) for name in names)
            are_given = [name in fields for name in names]
        else:
            starts, ends, axes, steps = (integers_at(self.graph, self.node, i) for i in range(1, 5))
            are_given = [len(self.node.input) > i and bool(self.node.input[i]) for i in range(1, 5)]
        if starts is not None and not are_given[2]:
            axes = list(range(len(starts)))
        if axes is not None and axis not in {one % rank for one in axes}:
            return None
        if starts is None or ends is None or axes is None or (steps is None and are_given[3]):
            raise self._unknown("cuts the channel axis, or may cut it")
        at = [one % rank for one in axes].index(axis)
        return channels[slice(starts[at], ends[at], steps[at] if steps else 1)]

    def _splitting_node(self) -> NodeProto:
        sequence = self.graph.producer(self.node.input[0]) if operation(self.node) == "SequenceAt" else None
        return self.node if sequence is None else sequence

    def _size(self, value: str, axis: int) -> int:
        shape = self.graph.shape(value)
        if shape is None or not isinstance(shape[axis], int):
            raise self._unknown(f"makes {value!r}, a part of unknown size")
        return int(shape[axis])

    def _unknown(self, what: str) -> Refusal:
        return Refusal(RefusalCode.AXIS, f"{self.node.op_type} {self.node.name!r} {what}")


def selection_of(graph: OnnxGraph, node: NodeProto, result: str) -> Selection | None:
    """Return `result`, an output of `node`, as a selection; None when it is none."""
    if operation(node) not in SELECTIONS:
        return None
    if operation(node) == "SequenceAt":
        whole = graph.producer(node.input[0])
        if whole is None or operation(whole) != "SplitToSequence":
            return None
        return Selection(graph, node, str(whole.input[0]), result, makes_other_parts=True)
    others = [name for name in node.output if name != result and (graph.uses(name) or name in graph.outputs)]
    return Selection(graph, node, str(node.input[0]), result, bool(others))


def selections_by(graph: OnnxGraph, use: Use) -> list[Selection]:
    """Return what this reader of a value selects from it; nothing when it is no selection, or not only that."""
    if use.index != 0:
        return []
    if operation(use.node) == "SplitToSequence":
        readers = [one.node for one in graph.uses(use.node.output[0])]
        results = [(node, str(node.output[0])) for node in readers]
        if any(operation(node) != "SequenceAt" for node in readers):
            return []
    else:
        read = [name for name in use.node.output if graph.uses(name) or name in graph.outputs]
        results = [(use.node, str(name)) for name in read]
    parts = [selection_of(graph, node, result) for node, result in results]
    return [part for part in parts if part is not None]
