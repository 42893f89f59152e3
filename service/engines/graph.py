"""An ONNX graph that can be changed: nodes, weights, and which node consumes which tensor.

Between the model file and the rewrites that suit it to a machine. Holds no more of ONNX than those need; whatever else
stands in the file is written back as it was. Field numbers are those of onnx.proto, IR version 13.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..artifacts.protobuf import Message

LARGEST_FILE_BYTES = 64 * 1024 * 1024  # of files worth reading: a large network takes long, and its layers are wide

Floats = npt.NDArray[np.float32]

_MODEL_GRAPH, _MODEL_OPSETS = 7, 8
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_VALUE_INFO = 1, 5, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_STRING, _ATTRIBUTE_INTS, _ATTRIBUTE_TYPE = 1, 3, 4, 8, 20
_ATTRIBUTE_GRAPHS = (6, 11)
_TYPE_INTS = 7
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 4, 8, 9
_FLOAT, _INT64 = 1, 7


@dataclass(eq=False)
class Node:
    """One operation; attributes are written back as they were unless `set_integers` changes them."""

    message: Message

    @classmethod
    def new(cls, op: str, name: str, inputs: Sequence[str], outputs: Sequence[str], **lists: Sequence[int]) -> "Node":
        """Return a node of ONNX's own operators, with `lists` as its attributes."""
        node = cls(Message.of({_NODE_INPUT: inputs, _NODE_OUTPUT: outputs, _NODE_NAME: [name], _NODE_TYPE: [op]}))
        for key, values in lists.items():
            node.set_integers(key, values)
        return node

    @property
    def op(self) -> str:
        """The operator, with its domain in front where that is not ONNX's own."""
        domain = self.message.text(_NODE_DOMAIN)
        return f"{domain}.{self.message.text(_NODE_TYPE)}" if domain else self.message.text(_NODE_TYPE)

    @property
    def inputs(self) -> list[str]:
        """Names of the tensors that it reads."""
        return self.message.texts(_NODE_INPUT)

    @inputs.setter
    def inputs(self, names: Sequence[str]) -> None:
        self.message.replace(_NODE_INPUT, names)

    @property
    def outputs(self) -> list[str]:
        """Names of the tensors that it gives."""
        return self.message.texts(_NODE_OUTPUT)

    @outputs.setter
    def outputs(self, names: Sequence[str]) -> None:
        self.message.replace(_NODE_OUTPUT, names)

    @property
    def holds_graphs(self) -> bool:
        """Whether an attribute is a graph of its own, which may read any tensor around it."""
        return any(attribute.all_bytes(number) for attribute in self._attributes() for number in _ATTRIBUTE_GRAPHS)

    def integer(self, name: str, default: int) -> int:
        """An attribute that is one number."""
        attribute = self._attribute(name)
        return default if attribute is None else attribute.integer(_ATTRIBUTE_INT)

    def integers(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """An attribute that is a list of numbers."""
        attribute = self._attribute(name)
        return tuple(default) if attribute is None else tuple(attribute.integers(_ATTRIBUTE_INTS))

    def text(self, name: str, default: str) -> str:
        """An attribute that is a string."""
        attribute = self._attribute(name)
        return default if attribute is None else attribute.text(_ATTRIBUTE_STRING)

    def set_integers(self, name: str, values: Sequence[int]) -> None:
        """Give an attribute another list of numbers."""
        changed = Message.of({_ATTRIBUTE_NAME: [name], _ATTRIBUTE_INTS: values, _ATTRIBUTE_TYPE: [_TYPE_INTS]})
        others = [other.encode() for other in self._attributes() if other.text(_ATTRIBUTE_NAME) != name]
        self.message.replace(_NODE_ATTRIBUTE, [*others, changed.encode()])

    def _attributes(self) -> list[Message]:
        return self.message.messages(_NODE_ATTRIBUTE)

    def _attribute(self, name: str) -> Message | None:
        return next((attribute for attribute in self._attributes() if attribute.text(_ATTRIBUTE_NAME) == name), None)


@dataclass(eq=False)
class Graph:
    """The graph of a model file.

    Attributes:
        nodes: in the order in which they run.
    """

    nodes: list[Node]
    _model: Message
    _graph: Message
    _tensors: dict[str, Message] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> "Graph":
        """Read a model file.

        Raises:
            ValueError: the bytes are not a model with a graph.
        """
        model = Message.parse(data)
        graphs = model.all_bytes(_MODEL_GRAPH)
        if len(graphs) != 1:
            raise ValueError(f"a model file holds {len(graphs)} graphs, expected one")
        graph = Message.parse(graphs[0])
        nodes = [Node(node) for node in graph.messages(_GRAPH_NODE)]
        return cls(nodes, model, graph, {tensor.text(_TENSOR_NAME): tensor for tensor in graph.messages(_GRAPH_TENSOR)})

    def encode(self) -> bytes:
        """Return the bytes of the model file; shapes of tensors within, which may have changed, are left out."""
        self._graph.replace(_GRAPH_NODE, [node.message.encode() for node in self.nodes])
        self._graph.replace(_GRAPH_TENSOR, [tensor.encode() for tensor in self._tensors.values()])
        self._graph.replace(_GRAPH_VALUE_INFO, [])
        self._model.replace(_MODEL_GRAPH, [self._graph.encode()])
        return self._model.encode()

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        sets = self._model.messages(_MODEL_OPSETS)
        return next((opset.integer(2) for opset in sets if opset.text(1) in ("", "ai.onnx")), 0)

    def only_consumer(self, node: Node) -> Node | None:
        """The only consumer of a node's only output; None when there are others, or it is an output of the graph."""
        if len(node.outputs) != 1 or node.outputs[0] in self._names(_GRAPH_OUTPUT):
            return None
        consumers = [other for other in self.nodes if node.outputs[0] in other.inputs]
        return consumers[0] if len(consumers) == 1 else None

    def floats(self, tensor: str) -> Floats | None:
        """The float32 weights of this name; None when it is not such, or a caller may put others in its place."""
        weights = self._tensors.get(tensor)
        if weights is None or weights.integer(_TENSOR_TYPE) != _FLOAT or tensor in self._names(_GRAPH_INPUT):
            return None
        data = b"".join(weights.all_bytes(_TENSOR_RAW)) or b"".join(weights.all_bytes(_TENSOR_FLOATS))
        shape = weights.integers(_TENSOR_DIMS)
        if len(data) != 4 * int(np.prod(shape)):
            return None
        return np.frombuffer(data, "<f4").reshape(shape)

    def add_floats(self, name: str, values: Floats) -> str:
        """Add float32 weights; returns their name."""
        return self._add(name, values.shape, _FLOAT, np.ascontiguousarray(values, "<f4").tobytes())

    def add_integers(self, name: str, values: Sequence[int]) -> str:
        """Add a list of int64; returns its name."""
        return self._add(name, (len(values),), _INT64, np.array(values, "<i8").tobytes())

    def free_name(self, wanted: str) -> str:
        """A name that no tensor has."""
        taken = {name for node in self.nodes for name in (*node.inputs, *node.outputs)} | set(self._tensors)
        while wanted in taken:
            wanted += "_"
        return wanted

    def drop_unused_weights(self) -> None:
        """Leave out weights that no node consumes any more."""
        read = {name for node in self.nodes for name in node.inputs} | set(self._names(_GRAPH_OUTPUT))
        self._tensors = {name: tensor for name, tensor in self._tensors.items() if name in read}

    def _add(self, wanted: str, shape: Sequence[int], kind: int, data: bytes) -> str:
        name = self.free_name(wanted)
        self._tensors[name] = Message.of(
            {_TENSOR_DIMS: shape, _TENSOR_TYPE: [kind], _TENSOR_NAME: [name], _TENSOR_RAW: [data]}
        )
        return name

    def _names(self, number: int) -> list[str]:
        return [message.text(1) for message in self._graph.messages(number)]
